import pytest

torch = pytest.importorskip("torch")

from calibration.nets.wide_resnet import wide_resnet  # noqa: E402


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# In millions, as in table 4 of the paper.
@pytest.mark.parametrize(("depth", "width", "millions"), [(40, 1, 0.6), (40, 2, 2.2), (16, 8, 11.0)])
def test_parameters_are_as_many_as_the_paper_counts(depth: int, width: int, millions: float) -> None:
    model = wide_resnet(depth, width)
    assert round(sum(weight.numel() for weight in model.parameters()) / 1e6, 1) == millions


def test_the_demo_size_has_175066_parameters() -> None:
    assert sum(weight.numel() for weight in wide_resnet(16, 1).parameters()) == 175_066


@pytest.mark.parametrize(
    ("in_channels", "side", "classes"),
    [(3, 32, 10), (1, 28, 10), (3, 32, 43)],
    ids=["cifar", "mnist", "gtsrb"],
)
def test_a_row_of_logits_comes_back_for_each_image(in_channels: int, side: int, classes: int) -> None:
    model = wide_resnet(10, 1, classes, in_channels).eval()
    assert model(torch.rand(4, in_channels, side, side)).shape == (4, classes)


def test_the_second_and_third_group_halve_the_side_and_double_the_channels() -> None:
    features: dict[str, torch.Tensor] = {}
    model = wide_resnet(16, 2).eval()
    for name in ("group1", "group2", "group3"):
        getattr(model, name).register_forward_hook(lambda _, __, out, name=name: features.update({name: out}))
    model(torch.rand(1, 3, 32, 32))
    shapes = {name: tuple(hidden.shape[1:]) for name, hidden in features.items()}
    assert shapes == {"group1": (32, 32, 32), "group2": (64, 16, 16), "group3": (128, 8, 8)}


def test_only_blocks_that_keep_the_shape_add_their_very_input() -> None:
    model = wide_resnet(16, 1)
    kept = [block.shortcut is None for group in (model.group1, model.group2, model.group3) for block in group]
    assert kept == [True, True, False, True, False, True]


def test_a_block_of_silent_convolutions_passes_its_input_on() -> None:
    block = wide_resnet(16, 1).eval().group1[0]
    torch.nn.init.zeros_(block.conv2.weight)
    features = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(features), features)


def test_the_generator_alone_decides_the_weights() -> None:
    first, again, other = (wide_resnet(10, 1, generator=seeded(seed)) for seed in (1, 1, 2))
    images = torch.rand(2, 3, 32, 32, generator=seeded(3))
    assert torch.equal(first.eval()(images), again.eval()(images))
    assert not torch.equal(first(images), other.eval()(images))


@pytest.mark.parametrize("depth", [4, 15, 18])
def test_a_depth_that_is_not_6b_plus_4_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"expected 6 b \+ 4 .* got {depth}"):
        wide_resnet(depth)
