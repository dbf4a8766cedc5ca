from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from calibration.scan.logits import Logits  # noqa: E402
from calibration.trainable import TrainableModel, load_trainable  # noqa: E402
from tests.tiny_models import linear_classifier, linear_weights  # noqa: E402

IMAGES = torch.rand((3, 3, 8, 8), generator=torch.Generator().manual_seed(0))


def taken_in(folder: Path, **options: object) -> TrainableModel:
    onnx.save(linear_classifier(**options), folder / "model.onnx")  # type: ignore[arg-type]
    return load_trainable(str(folder / "model.onnx"))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_logits_are_the_models_whatever_its_layout(tmp_path: Path, layout: str) -> None:
    network = Logits(taken_in(tmp_path, layout=layout))
    weight, bias = linear_weights()
    expected = IMAGES.flatten(1).numpy() @ weight + bias
    np.testing.assert_allclose(network(IMAGES).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_logarithms_of_probabilities_are_logits_up_to_a_constant(tmp_path: Path) -> None:
    network = Logits(taken_in(tmp_path, softmax=True), probabilities=True)
    weight, bias = linear_weights()
    expected = torch.log_softmax(IMAGES.flatten(1) @ torch.from_numpy(weight) + torch.from_numpy(bias), 1)
    torch.testing.assert_close(network(IMAGES), expected, rtol=1e-3, atol=1e-3)


def test_a_model_that_is_sure_still_has_gradients(tmp_path: Path) -> None:
    network = Logits(taken_in(tmp_path, softmax=True, gain=4.0), probabilities=True)
    images = IMAGES.clone().requires_grad_()
    logits = network(images)
    assert float(logits.detach().min()) < -30  # lower than a clamp at 1e-12 would let through
    least = logits[torch.arange(3), logits.argmin(1)].clamp_max(0)
    (gradient,) = torch.autograd.grad(least.sum(), images)
    assert torch.isfinite(gradient).all()
    assert (gradient.flatten(1).abs().amax(1) > 0).any()
