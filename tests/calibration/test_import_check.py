from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from onnx import helper  # noqa: E402

from calibration import trainable  # noqa: E402
from calibration.errors import ParityError  # noqa: E402
from calibration.import_check import check_import  # noqa: E402
from calibration.onnx_import import import_onnx  # noqa: E402
from guard.artifact.signature import read_signature  # noqa: E402
from guard.errors import UnfitModelError  # noqa: E402
from tests.tiny_models import conv_classifier, linear_classifier  # noqa: E402

MODELS = [
    conv_classifier(),
    linear_classifier(datatype="UINT8"),
    linear_classifier(datatype="FP16"),
    linear_classifier(batch=3),
]


@pytest.mark.parametrize("model", MODELS, ids=["float32", "uint8", "float16", "batches of three"])
def test_a_faithful_import_passes_and_another_network_does_not(model: onnx.ModelProto) -> None:
    module, signature = import_onnx(model, "m.onnx"), read_signature(model, "m.onnx")
    check_import(module, model, signature, "m.onnx")
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(1.5)
    with pytest.raises(
        ParityError, match=r"m\.onnx was not imported faithfully: .* differ from ONNX Runtime"
    ):
        check_import(module, model, signature, "m.onnx")


def test_a_model_that_would_be_imported_wrongly_is_not_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(conv_classifier(), tmp_path / "m.onnx")
    other = import_onnx(conv_classifier(seed=2), "other.onnx")
    monkeypatch.setattr(trainable, "import_onnx", lambda *_: other)
    with pytest.raises(ParityError, match="not imported faithfully"):
        trainable.load_trainable(tmp_path / "m.onnx")


def test_answers_that_are_no_numbers_are_no_parity() -> None:
    model = linear_classifier()
    model.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(
            np.full(tuple(model.graph.initializer[0].dims), np.nan, np.float32),
            model.graph.initializer[0].name,
        )
    )
    with pytest.raises(ParityError, match="by nan of the largest"):
        check_import(import_onnx(model, "m.onnx"), model, read_signature(model, "m.onnx"), "m.onnx")


def test_a_graph_that_onnx_runtime_cannot_run_is_refused() -> None:
    model = linear_classifier()
    module, signature = import_onnx(model, "m.onnx"), read_signature(model, "m.onnx")
    model.graph.node.append(helper.make_node("Nonsense", [model.graph.output[0].name], ["more"]))
    with pytest.raises(UnfitModelError, match=r"ONNX Runtime cannot run m\.onnx: .*; export it again"):
        check_import(module, model, signature, "m.onnx")


def test_a_model_of_images_too_large_for_this_machine_is_refused() -> None:
    model = conv_classifier(size=(10**7, 10**7))
    module, signature = import_onnx(model, "m.onnx"), read_signature(model, "m.onnx")
    with pytest.raises(UnfitModelError, match=r"m\.onnx does not run on random images: Unable to allocate"):
        check_import(module, model, signature, "m.onnx")
