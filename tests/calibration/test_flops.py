import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, fx, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from calibration.flops import PRODUCTS, layer_flops  # noqa: E402
from calibration.shapes import SAMPLE_BATCH, node_shapes  # noqa: E402


class Products(nn.Module):
    """Each way to multiply tokens (6, 4) among themselves or by a matrix (5, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(5, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            x @ x.transpose(1, 2),
            x.matmul(x.transpose(1, 2)),
            torch.bmm(x, x.transpose(1, 2)),
            functional.linear(x, self.matrix),
            functional.scaled_dot_product_attention(x, x, x),
            torch.einsum("nid,njd->nij", x, x),
            torch.einsum("...id,jd->...ij", x, self.matrix),
            functional.conv1d(x.transpose(1, 2), self.matrix.unsqueeze(-1)),
        )


def test_every_way_to_write_a_product_is_counted() -> None:
    module = fx.symbolic_trace(Products())
    shapes = node_shapes(module, (6, 4))
    costs = [
        PRODUCTS[node.target](node, shapes) // SAMPLE_BATCH for node in shapes if node.target in PRODUCTS
    ]
    among, by_matrix = 2 * 6 * 6 * 4, 2 * 6 * 4 * 5
    assert costs == [among, among, among, by_matrix, 2 * among, among, by_matrix, by_matrix]


def test_layers_cost_two_for_each_weight_and_place() -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 2, 2), nn.Flatten(2), nn.Linear(49, 5)
    )
    module = fx.symbolic_trace(net)
    shapes = node_shapes(module, (4, 8, 8))
    calls = {str(node.target): node for node in shapes if node.op == "call_module"}
    costs = [
        layer_flops(net.get_submodule(name), call, shapes) // SAMPLE_BATCH for name, call in calls.items()
    ]
    # 6 maps of 6 x 6 pixels * 2 x 3 x 3 weights; 6 maps of 6 x 6 pixels * 2 x 2 x 2 weights
    assert costs == [2 * 36 * 6 * 18, 2 * 36 * 6 * 8, 0, 2 * 2 * 49 * 5]
