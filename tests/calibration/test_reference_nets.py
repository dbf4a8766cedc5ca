import pytest

torch = pytest.importorskip("torch")

from collections.abc import Callable  # noqa: E402

from calibration.nets.resnet import resnet18  # noqa: E402
from calibration.nets.vgg import plain_cnn, vgg  # noqa: E402

NETS = {
    "resnet18": lambda generator: resnet18(10, width=4, generator=generator),
    "vgg": lambda generator: vgg(10, channels=(4, 8), generator=generator),
    "plain_cnn": lambda generator: plain_cnn(10, 3, width=4, generator=generator),
}


# 11.17 million is what the widely used ResNet-18 with a 3x3 stem has for ten classes.
def test_resnet_18_has_as_many_parameters_as_its_likes() -> None:
    assert sum(weight.numel() for weight in resnet18().parameters()) == 11_173_962


def test_an_eighth_as_wide_resnet_fits_into_a_megabyte() -> None:
    assert 4 * sum(weight.numel() for weight in resnet18(43, width=8).parameters()) < 900_000


def test_resnet_halves_the_side_three_times() -> None:
    sides: list[int] = []
    model = resnet18(width=4).eval()
    for name in ("group1", "group2", "group3", "group4"):
        model.get_submodule(name).register_forward_hook(lambda _, __, out: sides.append(out.shape[2]))
    model(torch.rand(1, 3, 32, 32))
    assert sides == [32, 16, 8, 4]


def test_vgg_and_the_plain_network_have_no_batch_norm() -> None:
    for model in (vgg(), plain_cnn()):
        assert not any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in model.modules())


def test_the_plain_network_takes_digits() -> None:
    assert plain_cnn()(torch.rand(3, 1, 28, 28)).shape == (3, 10)


@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_one_seed_is_one_network_whose_answers_are_of_ordinary_size(
    make: Callable[[torch.Generator], torch.nn.Module],
) -> None:
    first, second, third = (make(torch.Generator().manual_seed(seed)).eval() for seed in (0, 0, 1))
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first(images), second(images))
    assert not torch.equal(first(images), third(images))
    assert 0.01 < first(images).std().item() < 100


def test_sizes_that_make_no_network_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^width: expected 1 channel or more, got 0$"):
        resnet18(width=0)
    with pytest.raises(ValueError, match="expected stages of 1 or more"):
        vgg(channels=())
