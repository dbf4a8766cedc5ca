import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from calibration.onnx_import import SUPPORTED, import_onnx  # noqa: E402
from tests.calibration.onnx_cases import CASES, ELSEWHERE, Case  # noqa: E402
from tests.calibration.onnx_running import difference  # noqa: E402

LARGEST_DIFFERENCE = 1e-4


def test_every_supported_operator_has_a_case() -> None:
    assert {case.op for case in CASES} | ELSEWHERE == SUPPORTED


def test_no_two_cases_have_the_same_name() -> None:
    names = [str(case) for case in CASES]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def gradients(module: nn.Module, case: Case) -> list[torch.Tensor]:
    """Return the gradients of the sum of the outputs, of images and weights; none for a step function."""
    inputs = [torch.from_numpy(array) for array in case.draw(3)]
    real = [values.requires_grad_() for values in inputs if values.is_floating_point()]
    result = module(*inputs)
    total = (result[0] if isinstance(result, tuple) else result).sum()
    if not total.requires_grad:
        return []
    found = torch.autograd.grad(total, [*real, *module.parameters()], allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_imported_operator_answers_as_onnx_runtime_does_and_has_finite_gradients(case: Case) -> None:
    model = case.model()
    module = import_onnx(model, "case.onnx")
    assert max(difference(model, module, *case.draw(batch)) for batch in (3, 5)) < LARGEST_DIFFERENCE
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients(module, case))


WITHOUT_SLOPE = {"ArgMax", "ArgMin", "Cast", "IsInf", "IsNaN", "Shape", "Size"}


def test_every_operator_on_real_numbers_can_be_trained_through() -> None:
    """All but those that give whole numbers or truths."""
    real = [case for case in CASES if case.gives == 1 and case.op not in WITHOUT_SLOPE]
    trained = {
        op
        for op in {case.op for case in real}
        if any(gradients(import_onnx(case.model(), "case.onnx"), case) for case in real if case.op == op)
    }
    assert {case.op for case in real} - trained == {"CastLike"}
