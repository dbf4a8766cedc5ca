"""Laws over all attributes: what ONNX Runtime accepts, the imported operator computes."""

import math
from typing import Any

import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from calibration.onnx_import import import_onnx  # noqa: E402
from tests.calibration.onnx_cases import INT64_MAX, Case, Data, ints, weights  # noqa: E402
from tests.calibration.onnx_running import difference  # noqa: E402

MODES = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
LAWS = settings(max_examples=25, derandomize=True)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3)).map(list)


def agrees(case: Case) -> None:
    model: onnx.ModelProto = case.model()
    module = import_onnx(model, "case.onnx")
    assert difference(model, module, *case.draw(2)) < 1e-4


def fits(size: int, kernel: int, dilation: int, padding: int) -> bool:
    return size + padding >= (kernel - 1) * dilation + 1


@st.composite
def windows(draw: st.DrawFn, *, pooling: bool) -> tuple[tuple[int, int], dict[str, Any]]:
    """An image's height and width, and attributes of windows that fit on it."""
    size = draw(st.tuples(st.integers(5, 9), st.integers(5, 9)))
    mode = draw(st.sampled_from(MODES))
    same = mode.startswith("SAME")  # ONNX Runtime does not take dilation with it, nor gaps in pooling
    kernel, stride, dilation = draw(pairs), draw(pairs), [1, 1] if same else draw(pairs)
    if same and pooling:
        stride = [min(step, length) for step, length in zip(stride, kernel, strict=True)]
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "dilations": dilation}
    pads = [0, 0, 0, 0]
    if mode == "NOTSET":
        most = [min(kernel[axis % 2] - 1, 2) if pooling else 3 for axis in range(4)]
        pads = [draw(st.integers(0, limit)) for limit in most]
        attributes["pads"] = pads
    else:
        attributes["auto_pad"] = mode
    assume(
        same
        or all(fits(size[axis], kernel[axis], dilation[axis], pads[axis] + pads[axis + 2]) for axis in (0, 1))
    )
    return size, attributes


@LAWS
@given(windows(pooling=False), st.sampled_from([1, 2, 4]), st.booleans())
def test_any_convolution_agrees(
    drawn: tuple[tuple[int, int], dict[str, Any]], groups: int, biased: bool
) -> None:
    size, attributes = drawn
    kernel = weights(4, 4 // groups, *attributes["kernel_shape"])
    bias = [weights(4)] if biased else []
    agrees(Case("Conv", (Data((4, *size)), kernel, *bias), {**attributes, "group": groups}))


@LAWS
@given(windows(pooling=False), st.sampled_from([1, 2]), st.booleans())
def test_any_transposed_convolution_agrees(
    drawn: tuple[tuple[int, int], dict[str, Any]], groups: int, larger: bool
) -> None:
    size, attributes = drawn
    stride, dilation, kernel = (attributes[name] for name in ("strides", "dilations", "kernel_shape"))
    pads = attributes.get("pads", [0] * 4)
    extra = [int(larger and step > 1) for step in stride]
    full = [
        (size[axis] - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1 + extra[axis]
        for axis in (0, 1)
    ]
    assume(all(full[axis] > pads[axis] + pads[axis + 2] for axis in (0, 1)))
    if attributes.get("auto_pad", "NOTSET").startswith("SAME"):
        assume(all(full[axis] >= size[axis] * stride[axis] for axis in (0, 1)))
    weight = weights(4, 4 // groups, *kernel)
    agrees(
        Case(
            "ConvTranspose",
            (Data((4, *size)), weight),
            {**attributes, "group": groups, "output_padding": extra},
        )
    )


@LAWS
@given(windows(pooling=True), st.booleans())
def test_any_max_pool_agrees(drawn: tuple[tuple[int, int], dict[str, Any]], ceil: bool) -> None:
    size, attributes = drawn
    agrees(Case("MaxPool", (Data((2, *size)),), {**attributes, "ceil_mode": int(ceil)}))


@LAWS
@given(windows(pooling=True), st.booleans(), st.booleans())
def test_any_average_pool_agrees(
    drawn: tuple[tuple[int, int], dict[str, Any]], ceil: bool, counted: bool
) -> None:
    size, attributes = drawn
    flags = {"ceil_mode": int(ceil), "count_include_pad": int(counted)}
    agrees(Case("AveragePool", (Data((2, *size)),), {**attributes, **flags}, opset=19))


bounds = st.one_of(st.integers(-9, 9), st.sampled_from([INT64_MAX, -INT64_MAX]))


@LAWS
@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 3]), bounds, bounds, st.sampled_from([1, 2, 3, -1, -2])), max_size=3
    )
)
def test_any_slice_agrees(parts: list[tuple[int, int, int, int]]) -> None:
    assume(parts)
    assume(len({axis for axis, *_ in parts}) == len(parts))
    axes, starts, ends, steps = (ints(*column) for column in zip(*parts, strict=True))
    agrees(Case("Slice", (Data((4, 5, 6)), starts, ends, axes, steps)))


@LAWS
@given(
    st.sampled_from(["constant", "edge", "reflect", "wrap"]),
    st.lists(st.integers(-2, 3), min_size=6, max_size=6),
)
def test_any_padding_agrees(mode: str, widths: list[int]) -> None:
    if mode != "constant":
        widths = [max(width, 0) for width in widths]
    pads = ints(0, *widths[:3], 0, *widths[3:])
    agrees(Case("Pad", (Data((4, 5, 6)), pads), {"mode": mode}, opset=19))


@LAWS
@given(
    st.sampled_from(["nearest", "linear", "cubic"]),
    st.sampled_from(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]),
    st.tuples(st.integers(1, 11), st.integers(1, 11)),
)
def test_any_resize_to_a_size_agrees(mode: str, coordinates: str, size: tuple[int, int]) -> None:
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates, "axes": [2, 3]}
    agrees(Case("Resize", (Data((2, 5, 6)), None, None, ints(*size)), attributes))


@LAWS
@given(st.permutations([1, 2, 3]), st.integers(-3, 3), st.integers(0, 3))
def test_any_chain_of_shapes_agrees_at_any_batch(order: list[int], axis: int, start: int) -> None:
    """Transposed, its shape read in part and a product of it made the new shape."""
    perm = [0, *order]
    sizes = [0, 4, 5, 6]
    moved = [sizes[place] for place in perm]
    count = math.prod(moved[1:])
    first = Case("Transpose", (Data((4, 5, 6)),), {"perm": perm})
    second = Case(
        "Reshape", (Data(tuple(moved[1:])), ints(-1, moved[1 + start % 3], count // moved[1 + start % 3]))
    )
    third = Case("Softmax", (Data((4, 5, 6)),), {"axis": axis})
    for case in (first, second, third):
        model = case.model()
        module = import_onnx(model, "case.onnx")
        assert max(difference(model, module, *case.draw(batch)) for batch in (1, 4)) < 1e-4
