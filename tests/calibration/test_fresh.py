import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, fx, nn  # noqa: E402

from calibration.checkpoint import fingerprint  # noqa: E402
from calibration.repair.fresh import fresh_copy  # noqa: E402


class Sundry(nn.Module):
    """One layer of each kind, and weights of no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 400, 3, groups=1)
        self.depthwise = nn.Conv2d(400, 400, 3, groups=400, padding=1)
        self.norm = nn.BatchNorm2d(400)
        self.up = nn.ConvTranspose2d(400, 20, 2, groups=2)
        self.slope = nn.PReLU()
        self.group_norm = nn.GroupNorm(2, 20)
        self.linear = nn.Linear(20, 300)
        self.layer_norm = nn.LayerNorm(300)
        self.product = nn.Parameter(torch.empty(300, 200))
        self.scale = nn.Parameter(torch.empty(200))
        self.position = nn.Parameter(torch.empty(1, 200))
        self.register_buffer("constant", torch.tensor(3.0))

    def forward(self, images: Tensor) -> Tensor:
        seen = self.slope(self.up(self.norm(self.depthwise(self.conv(images)))))
        pooled = self.layer_norm(self.linear(self.group_norm(seen).mean((2, 3))))
        return (torch.matmul(pooled, self.product) * self.scale + self.position) * self.constant


def used() -> fx.GraphModule:
    """Return a network whose every weight and statistic is 7."""
    model = fx.symbolic_trace(Sundry())
    with torch.no_grad():
        for tensor in (*model.parameters(), model.norm.running_mean, model.norm.running_var):
            tensor.fill_(7.0)
    return model.eval().requires_grad_(False)


def fresh(seed: int = 0) -> fx.GraphModule:
    return fresh_copy(used(), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "deviation"),
    [  # He et al., eq. 10: the root of 2 / fan-in, the inputs that one output is summed from
        ("conv.weight", (2 / 27) ** 0.5),
        ("depthwise.weight", (2 / 9) ** 0.5),
        ("up.weight", (2 / (400 * 4 / 2)) ** 0.5),
        ("linear.weight", (2 / 20) ** 0.5),
        ("product", (2 / 300) ** 0.5),
        ("position", 0.02),
    ],
)
def test_weights_are_drawn_with_the_deviation_of_their_kind(name: str, deviation: float) -> None:
    drawn = dict(fresh().named_parameters())[name]
    assert drawn.std().item() == pytest.approx(deviation, rel=0.15)
    assert abs(drawn.mean().item()) < 5 * deviation / drawn.numel() ** 0.5


def test_biases_are_nought_norms_as_new_and_factors_one() -> None:
    model = fresh()
    for bias in (model.conv.bias, model.depthwise.bias, model.up.bias, model.linear.bias, model.norm.bias):
        assert not bias.any()
    for scale in (model.norm.weight, model.group_norm.weight, model.layer_norm.weight, model.scale):
        assert (scale == 1).all()
    assert not model.norm.running_mean.any()
    assert (model.norm.running_var == 1).all()
    assert model.slope.weight.item() == 0.25
    assert model.constant.item() == 3.0


def test_nothing_of_the_old_weights_is_left_and_the_old_network_is_as_it_was() -> None:
    old = used()
    model = fresh_copy(old, torch.Generator().manual_seed(0))
    assert not any((weight == 7).any() for weight in model.parameters())
    assert all((weight == 7).all() for weight in old.parameters())
    assert all(weight.requires_grad for weight in model.parameters())
    assert not model.training


def test_one_seed_is_one_network_and_the_global_generator_is_left_alone() -> None:
    first, other = fresh(1), fresh(2)
    torch.manual_seed(5)
    again = fresh(1)
    before = torch.random.get_rng_state()
    prints = [fingerprint(model.state_dict().values()) for model in (first, again, other)]
    assert prints[0] == prints[1] != prints[2]
    fresh_copy(first, torch.Generator().manual_seed(3))
    assert torch.equal(torch.random.get_rng_state(), before)
