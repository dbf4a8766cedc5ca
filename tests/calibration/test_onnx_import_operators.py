import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration.onnx_import import SUPPORTED, import_onnx  # noqa: E402
from tests.calibration.onnx_cases import CASES, ELSEWHERE, Case  # noqa: E402
from tests.calibration.onnx_running import difference  # noqa: E402

LARGEST_DIFFERENCE = 1e-4


def test_every_supported_operator_has_a_case() -> None:
    assert {case.op for case in CASES} | ELSEWHERE == SUPPORTED


def test_no_two_cases_have_the_same_name() -> None:
    names = [str(case) for case in CASES]
    assert sorted({name for name in names if names.count(name) > 1}) == []


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_imported_operator_answers_as_onnx_runtime_does(case: Case) -> None:
    model = case.model()
    module = import_onnx(model, "case.onnx")
    largest = max(difference(model, module, *case.draw(batch)) for batch in (3, 5))
    assert largest < LARGEST_DIFFERENCE


TRAINED = [case for case in CASES if case.gives == 1 and case.data[0].dtype is np.float32]


@pytest.mark.parametrize("case", TRAINED, ids=str)
def test_gradients_of_an_imported_operator_are_finite(case: Case) -> None:
    module = import_onnx(case.model(), "case.onnx")
    images = torch.from_numpy(case.draw(3)[0]).requires_grad_()
    result = module(images, *map(torch.from_numpy, case.draw(3)[1:]))
    total = (result[0] if isinstance(result, tuple) else result).sum()
    if not total.requires_grad:
        pytest.skip("a step function, or one of the shape only")
    wanted = [images, *module.parameters()]
    gradients = [
        gradient for gradient in torch.autograd.grad(total, wanted, allow_unused=True) if gradient is not None
    ]
    assert gradients
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
