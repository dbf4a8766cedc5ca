"""A model of any face as the one that repairs work on, and back with its own face."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
from onnx import TensorProto  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from calibration.batch_norm import batch_norm_state  # noqa: E402
from calibration.export import ExportRecord, export_onnx, parity  # noqa: E402
from calibration.intake import image_shape, model_rows  # noqa: E402
from calibration.prediction import predict  # noqa: E402
from calibration.torch_to_onnx import TensorFace, to_onnx  # noqa: E402
from calibration.trainable import TrainableModel, load_trainable  # noqa: E402
from calibration.workable import Workable, make_workable  # noqa: E402

SIDE, CLASSES = 8, 4
RECORD = ExportRecord("guard test", "none", "0" * 64)
ELEMENTS = {"FP32": TensorProto.FLOAT, "FP16": TensorProto.FLOAT16, "UINT8": TensorProto.UINT8}


class Core(nn.Module):
    """Two convolutions, with batch norm or without, the mean over space, a head: float images to logits."""

    def __init__(self, norm: bool, gain: float) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1, stride=2)
        self.first_norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.second_norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.head, self.gain = nn.Linear(8, CLASSES), gain
        for name, weight in self.named_parameters():
            nn.init.uniform_(weight, 0.5 if "norm.weight" in name else -0.5, 1.0)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.first_norm(self.first(images)))
        hidden = torch.relu(self.second_norm(self.second(hidden)))
        return self.gain * self.head(hidden.mean((2, 3)))


class Faced(nn.Module):
    """The same behind a face that a served model may have."""

    def __init__(self, face: Face) -> None:
        super().__init__()
        self.core, self.face = Core(face.norm, face.gain), face
        if face.half:
            self.core.first_norm = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        if self.face.datatype == "UINT8":
            images = images.float() / 255
        if self.face.layout == "NHWC":
            images = images.permute(0, 3, 1, 2)
        logits = self.core(images)
        return torch.softmax(logits, 1) if self.face.softmax else logits


@dataclass(frozen=True)
class Face:
    datatype: str = "FP32"
    layout: str = "NCHW"
    softmax: bool = False
    norm: bool = True
    half: bool = False  # no norm after the first convolution
    folded: bool = True
    gain: float = 1.0


FACES = {
    "folded batch norm": Face(),
    "batch norm": Face(folded=False),
    "no batch norm": Face(norm=False),
    "channels last": Face(layout="NHWC"),
    "8 bits": Face("UINT8"),
    "half precision": Face("FP16"),
    "probabilities": Face(softmax=True),
    "8 bits, channels last, probabilities": Face("UINT8", "NHWC", True),
    "half precision, channels last, probabilities": Face("FP16", "NHWC", True),
}
ONE_TRAIT = {"channels last", "8 bits", "half precision", "probabilities"}  # two others have them all
by_face = pytest.mark.parametrize(
    "face",
    [
        pytest.param(face, id=name, marks=[pytest.mark.slow] if name in ONE_TRAIT else [])
        for name, face in FACES.items()
    ],
)


def network_of(face: Face) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Faced(face).eval()


@cache
def graph_of(face: Face) -> onnx.ModelProto:
    row = (3, SIDE, SIDE) if face.layout == "NCHW" else (SIDE, SIDE, 3)
    output = "FP16" if face.datatype == "FP16" else "FP32"
    network = network_of(face)
    proto = to_onnx(
        network.half() if face.datatype == "FP16" else network,
        TensorFace("pixels", ELEMENTS[face.datatype], ("batch", *row)),
        TensorFace("scores", ELEMENTS[output], ("batch", CLASSES)),
        optimize=face.folded,
    )
    proto.metadata_props.add(key="class_names", value="a,b,c,d")
    return proto


def written(folder: Path, face: Face) -> Path:
    onnx.save(graph_of(face), folder / "model.onnx")
    return folder / "model.onnx"


def images_for(model: TrainableModel, count: int = 40) -> Tensor:
    """Images in the model's own range, float32, channels first."""
    noise = torch.rand((count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(5))
    return (noise * 255).round() if model.signature.datatype == "UINT8" else noise


def taken_in(folder: Path, face: Face) -> tuple[Workable, Tensor]:
    model = load_trainable(written(folder, face))
    images = images_for(model)
    return make_workable(model, images, probabilities=face.softmax), images


def logits_of(face: Face, images: Tensor) -> Tensor:
    """What the network behind the face says, computed in single precision by torch alone."""
    with torch.no_grad():
        logits = network_of(face).core(images / 255 if face.datatype == "UINT8" else images)
    return torch.log_softmax(logits, 1) if face.softmax else logits


@by_face
def test_it_answers_float_images_channels_first_with_the_models_own_logits(
    tmp_path: Path, face: Face
) -> None:
    workable, images = taken_in(tmp_path, face)
    logits = predict(workable.module, images)
    assert logits.dtype == torch.float32
    tolerance = 2e-2 if face.datatype == "FP16" else 1e-4
    torch.testing.assert_close(logits, logits_of(face, images), atol=tolerance, rtol=tolerance)
    assert workable.shape == image_shape(workable.source.signature) == (3, SIDE, SIDE)


@by_face
def test_every_weight_is_float32_and_learns(tmp_path: Path, face: Face) -> None:
    workable, images = taken_in(tmp_path, face)
    module = workable.module.train()
    module(images).logsumexp(1).sub(module(images)[:, 0]).sum().backward()
    for name, weight in module.named_parameters():
        assert weight.dtype == torch.float32, name
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0 or "first.bias" in name or "second.bias" in name, name


@by_face
def test_what_it_lost_of_batch_norm_is_there_again(tmp_path: Path, face: Face) -> None:
    workable, _ = taken_in(tmp_path, face)
    state = batch_norm_state(workable.module, workable.shape)
    assert len(state.kept) == 2
    assert state.bare == ()
    assert workable.norms == (2 if face.folded or not face.norm else 0)


@by_face
def test_a_repaired_copy_goes_back_behind_the_models_own_face(tmp_path: Path, face: Face) -> None:
    workable, images = taken_in(tmp_path, face)
    source = workable.source
    repaired = copy.deepcopy(workable.module)
    with torch.no_grad():
        for weight in repaired.parameters():
            weight.mul_(1.1)
    given = model_rows(images.numpy(), source.signature)
    assert source.origin is not None
    restored = workable.restored(repaired)
    proto = export_onnx(restored, source.origin, RECORD, images=given)
    onnx.save(proto, tmp_path / "repaired.onnx")
    again = load_trainable(tmp_path / "repaired.onnx")
    assert again.signature == source.signature
    assert {entry.key: entry.value for entry in proto.metadata_props}["class_names"] == "a,b,c,d"
    scores = predict(repaired, images)
    if face.softmax:
        scores = torch.softmax(scores, 1)
    session_input = [given]
    assert parity(Answering(scores), proto, session_input) <= (2e-2 if face.datatype == "FP16" else 1e-4)


class Answering(nn.Module):
    """Gives the same answers whatever it is asked."""

    def __init__(self, answers: Tensor) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, images: Tensor) -> Tensor:
        del images
        return self.answers


@by_face
def test_the_model_that_was_taken_in_is_left_as_it_was(tmp_path: Path, face: Face) -> None:
    model = load_trainable(written(tmp_path, face))
    code, before = model.module.code, {name: part.clone() for name, part in model.module.state_dict().items()}
    workable = make_workable(model, images_for(model), probabilities=face.softmax)
    workable.restored(workable.module)
    assert model.module.code == code
    assert all(torch.equal(before[name], part) for name, part in model.module.state_dict().items())


def test_a_model_that_is_very_sure_of_its_probabilities_still_learns(tmp_path: Path) -> None:
    workable, images = taken_in(tmp_path, Face(softmax=True, gain=5000.0))
    logits = workable.module(images)
    least = logits.min()
    assert least < -150  # its probability is 0 in single precision
    least.backward()
    head = [weight for weight in workable.module.parameters() if weight.shape == (CLASSES, 8)]
    assert head[0].grad is not None
    assert head[0].grad.abs().max() > 0


def test_of_a_network_folded_in_part_all_norms_are_folded_on_the_way_back(tmp_path: Path) -> None:
    workable, images = taken_in(tmp_path, Face(folded=False, half=True))
    kept = batch_norm_state(workable.source.module, workable.shape)
    assert (len(kept.kept), len(kept.bare), workable.norms) == (1, 1, 1)
    assert len(batch_norm_state(workable.module, workable.shape).kept) == 2
    restored = workable.restored(workable.module)
    assert batch_norm_state(restored, workable.shape).kept == ()
    torch.testing.assert_close(
        predict(restored, images), predict(workable.source.module, images), atol=1e-4, rtol=1e-4
    )


def test_without_images_no_batch_norm_is_put_back(tmp_path: Path) -> None:
    model = load_trainable(written(tmp_path, Face()))
    workable = make_workable(model, torch.empty((0, 3, SIDE, SIDE)))
    assert workable.norms == 0
    images = images_for(model)
    torch.testing.assert_close(predict(workable.module, images), predict(model.module, images))
    assert np.isfinite(predict(workable.restored(workable.module), images).numpy()).all()
