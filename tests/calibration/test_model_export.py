from collections.abc import Sequence

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch import nn  # noqa: E402

from calibration import export  # noqa: E402
from calibration.errors import ModelError, ParityError  # noqa: E402
from calibration.export import ExportRecord, export_onnx  # noqa: E402
from calibration.onnx_import import import_onnx  # noqa: E402
from guard.artifact.signature import read_signature  # noqa: E402
from tests.calibration.onnx_running import runtime  # noqa: E402
from tests.tiny_models import conv_classifier, linear_classifier  # noqa: E402

RECORD = ExportRecord(repaired_by="guard 0.1.0", method="fine-tuning", source_sha256="a" * 64)
IMAGES = np.random.default_rng(0).random((5, 3, 8, 8)).astype(np.float32)


def round_trip(model: onnx.ModelProto) -> onnx.ModelProto:
    return export_onnx(import_onnx(model, "m.onnx"), model, RECORD)


def faces(model: onnx.ModelProto) -> list[str]:
    return [str(value) for value in (*model.graph.input, *model.graph.output)]


@pytest.mark.parametrize(
    ("model", "images"),
    [
        (linear_classifier(softmax=True, layout="NHWC"), IMAGES.transpose(0, 2, 3, 1)),
        (linear_classifier(batch=2, opset=13), IMAGES[:2]),
        (linear_classifier(datatype="UINT8"), (IMAGES * 255).astype(np.uint8)),
    ],
    ids=["probabilities of channels last", "a batch of two", "uint8"],
)
def test_a_model_comes_back_with_its_tensors_and_its_answers(
    model: onnx.ModelProto, images: np.ndarray
) -> None:
    again = round_trip(model)
    assert faces(again) == faces(model)
    assert read_signature(again, "again") == read_signature(model, "model")
    difference = np.abs(runtime(again, images)[0] - runtime(model, images)[0]).max()
    assert difference < 1e-4


def test_half_precision_goes_in_and_out_and_the_weights_are_single() -> None:
    model = linear_classifier(datatype="FP16", gain=0.1)
    again = round_trip(model)
    assert faces(again) == faces(model)
    images = IMAGES.astype(np.float16)
    assert np.abs(runtime(again, images)[0] - runtime(model, images)[0]).max() < 2e-2
    assert {tensor.data_type for tensor in again.graph.initializer if len(tensor.dims) == 2} == {1}


def test_the_record_is_in_the_metadata_and_nothing_of_this_machine_is() -> None:
    again = round_trip(conv_classifier())
    assert {entry.key: entry.value for entry in again.metadata_props} == vars(RECORD)
    text = str(again)
    assert "/calibration/" not in text
    assert "doc_string" not in text
    assert not [tensor for tensor in again.graph.initializer if tensor.external_data]
    onnx.checker.check_model(again, full_check=True)


def test_what_the_original_says_of_itself_is_kept_but_for_an_older_record() -> None:
    model = conv_classifier()
    for key, value in (("names", "cat, dog"), ("method", "an earlier repair")):
        model.metadata_props.add(key=key, value=value)
    again = round_trip(model)
    assert {entry.key: entry.value for entry in again.metadata_props} == {"names": "cat, dog", **vars(RECORD)}


def test_a_signature_serves_as_well_as_the_original_graph() -> None:
    model = conv_classifier(classes=7)
    signature = read_signature(model, "m.onnx")
    again = export_onnx(import_onnx(model, "m.onnx"), signature, RECORD, images=IMAGES)
    assert read_signature(again, "again") == signature
    assert np.abs(runtime(again, IMAGES)[0] - runtime(model, IMAGES)[0]).max() < 1e-4


def test_exporting_leaves_the_module_as_it_was() -> None:
    model = conv_classifier()
    module = import_onnx(model, "m.onnx").train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    export_onnx(module, model, RECORD)
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_module_that_changes_with_each_run_is_refused() -> None:
    class Restless(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.runs = torch.nn.Linear(192, 10), 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.runs += 1
            return self.linear(images.flatten(1)) + float(self.runs)

    with pytest.raises(ParityError, match=r"differ from the module's by .* expected at most 1e-04"):
        export_onnx(Restless(), linear_classifier(), RECORD)


def test_what_torch_cannot_export_is_refused_in_one_line() -> None:
    class Deciding(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :10] if images.sum() > 0 else images.flatten(1)[:, 10:20]

    with pytest.raises(ModelError, match="torch cannot export the module to ONNX: ") as raised:
        export_onnx(Deciding(), linear_classifier(), RECORD)
    assert "\n" not in str(raised.value)


def test_a_module_whose_answers_are_no_numbers_is_refused() -> None:
    model = linear_classifier()
    module = import_onnx(model, "m.onnx")
    with torch.no_grad():
        next(module.parameters()).fill_(torch.nan)
    with pytest.raises(ParityError, match="differ from the module's by nan"):
        export_onnx(module, model, RECORD)


def test_every_real_image_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(module: nn.Module, proto: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> float:
        seen.extend(len(batch) for batch in inputs)
        return 0.0

    monkeypatch.setattr(export, "parity", counted)
    for model in (linear_classifier(), linear_classifier(batch=2)):
        export_onnx(import_onnx(model, "m.onnx"), model, RECORD, images=IMAGES)
    assert seen == [1, 3, 3, 2, 2, 2, 2]
