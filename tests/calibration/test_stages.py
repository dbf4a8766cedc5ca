from functools import cache

import pytest

torch = pytest.importorskip("torch")

from torch import fx, nn  # noqa: E402

from calibration.onnx_import import import_onnx  # noqa: E402
from calibration.stages import Stage, features, find_stages  # noqa: E402
from tests.calibration.families import FAMILIES, folded_proto, images, lively  # noqa: E402
from tests.tiny_models import linear_classifier  # noqa: E402

Shape = tuple[int, int, int]


def shapes(stages: tuple[Stage, ...]) -> list[Shape]:
    return [(stage.channels, stage.height, stage.width) for stage in stages]


@cache
def imported(name: str) -> fx.GraphModule:
    return import_onnx(folded_proto(name), f"{name}.onnx")


def test_the_stages_of_a_wide_resnet_are_what_its_groups_give() -> None:
    net, module = lively("preactivation_wide_resnet"), imported("preactivation_wide_resnet")
    stages = find_stages(module, (3, 32, 32))
    assert shapes(stages) == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    given: list[torch.Tensor] = []
    for group in (net.group1, net.group2, net.group3):
        group.register_forward_hook(lambda _, __, out: given.append(out))
    batch = images("vit", 3)
    with torch.no_grad():
        expected = net(batch)
        logits, maps = features(module, batch, stages)
    assert torch.allclose(logits, expected, atol=1e-4)
    assert all(torch.allclose(got, want, atol=1e-4) for got, want in zip(maps, given, strict=True))


@pytest.mark.slow
# The last map of each resolution, by the architectures' papers: with the stem where it has a resolution
# of its own, and for the vision transformer the grid of patches.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet", [(64, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2)]),
        ("vgg", [(8, 32, 32), (16, 16, 16), (32, 8, 8), (32, 4, 4)]),
        ("densenet", [(16, 32, 32), (32, 16, 16), (32, 8, 8), (32, 4, 4), (32, 2, 2)]),
        ("shufflenet", [(8, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]),
        ("convnext", [(16, 16, 16), (32, 8, 8), (64, 4, 4)]),
        ("vit", [(32, 4, 4)]),
        ("swin", [(16, 16, 16), (32, 8, 8)]),
    ],
)
def test_stages_are_found_in_every_kind_of_network(name: str, expected: list[Shape]) -> None:
    module = imported(name)
    side = FAMILIES[name].side
    stages = find_stages(module, (3, side, side))
    assert shapes(stages) == expected
    with torch.no_grad():
        _, maps = features(module, images(name, 2), stages)
    assert [tuple(found.shape) for found in maps] == [(2, *shape) for shape in expected]


def test_a_group_of_a_post_activation_network_ends_in_its_activation() -> None:
    module = imported("resnet")
    stages = find_stages(module, (3, 32, 32))
    with torch.no_grad():
        _, maps = features(module, images("resnet", 2), stages)
    assert min(float(found.min()) for found in maps) == 0.0
    assert [stage.node for stage in stages][1:] == [f"layer{n}_layer{n}_0_relu_1_Relu" for n in (1, 2, 3)]


def test_tokens_become_a_map_without_the_class_token() -> None:
    module = imported("vit")
    (stage,) = find_stages(module, (3, 32, 32))
    assert stage.layout == "NTC"
    tokens: list[torch.Tensor] = []
    catcher = fx.Interpreter(module)
    run_node = catcher.run_node
    catcher.run_node = lambda n: tokens.append(run_node(n)) or tokens[-1]  # type: ignore[method-assign]
    batch = images("vit", 2)
    with torch.no_grad():
        catcher.run(batch)
        _, (grid,) = features(module, batch, [stage])
    sequence = tokens[[node.name for node in module.graph.nodes].index(stage.node)]
    assert sequence.shape == (2, 17, 32)
    assert torch.equal(grid[:, :, 1, 2], sequence[:, 1 + 4 + 2])


def test_maps_in_channels_last_come_back_channels_first() -> None:
    module = imported("swin")
    stages = find_stages(module, (3, 32, 32))
    assert {stage.layout for stage in stages} == {"NHWC"}
    assert features(module, images("swin", 2), stages)[1][0].shape == (2, 16, 16, 16)


def test_features_are_differentiable_and_leave_nothing_behind() -> None:
    module = imported("preactivation_wide_resnet")
    stages = find_stages(module, (3, 32, 32))
    code = module.code
    _, maps = features(module, images("vit", 2), stages)
    sum(found.square().mean() for found in maps).backward()
    assert float(module.get_parameter("stem.weight").grad.abs().sum()) > 0.0
    assert module.code == code
    assert all(not layer._forward_hooks for layer in module.modules())


def test_a_network_without_maps_has_no_stages() -> None:
    assert find_stages(import_onnx(linear_classifier(), "m.onnx"), (3, 8, 8)) == ()


def test_a_gate_and_a_pooled_branch_are_no_stages() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gate = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
            self.head = nn.Linear(8, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            maps = torch.relu(self.conv(images))
            gated = maps * torch.sigmoid(self.gate(maps.mean((2, 3), keepdim=True)))
            return self.head(gated.mean((2, 3)))

    (stage,) = find_stages(fx.symbolic_trace(Gated()), (3, 6, 6))
    assert stage == Stage("stage1", "mul", 8, 6, 6)


def test_an_oblong_image_keeps_its_proportions_in_every_stage() -> None:
    module = imported("preactivation_wide_resnet")
    assert shapes(find_stages(module, (3, 16, 48))) == [(16, 16, 48), (32, 8, 24), (64, 4, 12)]
