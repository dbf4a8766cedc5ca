"""One row for each form of an ONNX operator, a graph of a single node, for the suite that runs over them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Data:
    """An input of the graph; the first axis is the batch, free in the graph."""

    shape: tuple[int, ...]
    low: float = -2.0
    high: float = 2.0
    dtype: type = np.float32

    def draw(self, batch: int, seed: int = 0) -> np.ndarray:
        generator = np.random.default_rng(seed)
        shape = (batch, *self.shape)
        if self.dtype is np.bool_:
            return generator.random(shape) < 0.5
        if np.issubdtype(self.dtype, np.integer):
            return generator.integers(int(self.low), int(self.high), shape).astype(self.dtype)
        return generator.uniform(self.low, self.high, shape).astype(self.dtype)


@dataclass(frozen=True)
class Case:
    op: str
    inputs: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 18
    gives: int = TensorProto.FLOAT
    tag: str = ""
    outputs: int = 1

    def __str__(self) -> str:
        settings = self.tag or "-".join(f"{name}={value}" for name, value in self.attributes.items())
        return re.sub(r"[^\w=.,-]+", "", f"{self.op}-{self.opset}-{settings}")[:80]

    @property
    def data(self) -> list[Data]:
        """The graph's inputs; the same one may go into a node several times."""
        return list(dict.fromkeys(given for given in self.inputs if isinstance(given, Data)))

    def draw(self, batch: int) -> list[np.ndarray]:
        return [data.draw(batch, seed=batch + place) for place, data in enumerate(self.data)]

    def model(self) -> onnx.ModelProto:
        data = self.data
        names = [
            "" if given is None else f"x{data.index(given)}" if isinstance(given, Data) else f"c{place}"
            for place, given in enumerate(self.inputs)
        ]
        constants = [
            numpy_helper.from_array(np.asarray(given), f"c{place}")
            for place, given in enumerate(self.inputs)
            if given is not None and not isinstance(given, Data)
        ]
        results = [f"y{place}" for place in range(self.outputs)]
        node = helper.make_node(self.op, names, results, name="node", **self.attributes)
        sources = [
            helper.make_tensor_value_info(
                f"x{place}", helper.np_dtype_to_tensor_dtype(np.dtype(given.dtype)), ["n", *given.shape]
            )
            for place, given in enumerate(data)
        ]
        return finished([node], sources, [("y0", self.gives)], constants, self.opset)


def finished(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[tuple[str, int]],
    constants: Sequence[onnx.TensorProto],
    opset: int,
) -> onnx.ModelProto:
    sinks = [helper.make_tensor_value_info(name, element, None) for name, element in outputs]
    graph = helper.make_graph(nodes, "case", inputs, sinks, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8 if opset <= 18 else 10
    return model


def weights(*shape: int, seed: int = 1, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


ROW = Data((5,))
IMAGE = Data((4, 7, 8))
LINE = Data((4, 9))
VOLUME = Data((2, 5, 6, 4))
POSITIVE = Data((5,), 0.1, 3.0)
SMALL = Data((5,), -0.9, 0.9)
GRID = Data((4, 3, 2), -1.2, 1.2)
FLAGS = Data((5,), dtype=np.bool_)
WHOLE = Data((5,), -9, 9, np.int64)
BOOL, INT = TensorProto.BOOL, TensorProto.INT64


def _conv() -> list[Case]:
    kernel, shift = weights(6, 4, 3, 3), weights(6, seed=2)
    grouped = weights(6, 2, 3, 2)
    turned = weights(4, 3, 3, 3)
    return [
        Case("Conv", (IMAGE, kernel), tag="plain"),
        Case("Conv", (IMAGE, kernel, shift), {"pads": [1, 1, 1, 1], "strides": [2, 2]}, opset=11),
        Case("Conv", (IMAGE, kernel, shift), {"pads": [0, 1, 2, 0]}),
        Case("Conv", (IMAGE, kernel), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        Case("Conv", (IMAGE, grouped), {"group": 2, "pads": [1, 0, 1, 1]}),
        Case("Conv", (IMAGE, weights(4, 1, 3, 3)), {"group": 4}, tag="depthwise"),
        Case("Conv", (IMAGE, kernel), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
        Case("Conv", (IMAGE, weights(6, 4, 2, 2)), {"auto_pad": "SAME_LOWER", "strides": [1, 1]}),
        Case("Conv", (IMAGE, kernel), {"auto_pad": "VALID"}),
        Case("Conv", (LINE, weights(3, 4, 3)), {"pads": [1, 1]}, tag="1d"),
        Case("Conv", (VOLUME, weights(3, 2, 2, 3, 2), weights(3)), {"strides": [1, 2, 1]}, tag="3d"),
        Case("ConvTranspose", (IMAGE, turned), tag="plain"),
        Case("ConvTranspose", (IMAGE, turned, weights(3)), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        Case("ConvTranspose", (IMAGE, turned), {"strides": [2, 2], "output_padding": [1, 1]}),
        Case("ConvTranspose", (IMAGE, turned), {"strides": [2, 2], "pads": [0, 1, 2, 1]}),
        Case("ConvTranspose", (IMAGE, turned), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        Case("ConvTranspose", (IMAGE, turned), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
        Case("ConvTranspose", (IMAGE, turned), {"strides": [2, 2], "output_shape": [14, 16]}),
        Case("ConvTranspose", (IMAGE, weights(4, 3, 2, 2)), {"strides": [3, 2], "auto_pad": "SAME_LOWER"}),
        Case("ConvTranspose", (IMAGE, turned, weights(3)), {"strides": [2, 2], "output_shape": [16, 18]}),
        Case("ConvTranspose", (IMAGE, weights(4, 2, 3, 3)), {"group": 2, "dilations": [2, 1]}),
        Case("ConvTranspose", (LINE, weights(4, 2, 3)), {"strides": [3]}, tag="1d"),
        Case("ConvTranspose", (VOLUME, weights(2, 3, 2, 2, 2)), tag="3d"),
    ]


def _linear() -> list[Case]:
    matrix, shift = weights(5, 3), weights(3)
    return [
        Case("Gemm", (ROW, matrix, shift), tag="plain"),
        Case("Gemm", (ROW, weights(3, 5), shift), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
        Case("Gemm", (ROW, matrix), tag="no bias"),
        Case("Gemm", (ROW, matrix, floats(0.5)), tag="one bias for all"),
        Case("Gemm", (weights(5, 4), Data((4,)), weights(5, 1)), {"transB": 1}, tag="constant left"),
        Case("MatMul", (ROW, matrix), tag="matrix"),
        Case("MatMul", (Data((6, 5)), matrix), tag="tokens"),
        Case("MatMul", (Data((2, 6, 5)), weights(2, 5, 3)), tag="batched"),
        Case("MatMul", (weights(3, 6), Data((6, 5))), tag="constant left"),
        Case("Einsum", (Data((6, 5)), weights(5, 3)), {"equation": "nij,jk->nik"}),
        Case("Einsum", (Data((6, 5)), weights(6, 5)), {"equation": "nij, ij -> n"}),
    ]


def _norm() -> list[Case]:
    four = (
        weights(4, low=0.5, high=1.5),
        weights(4, seed=3),
        weights(4, seed=4),
        weights(4, low=0.5, high=2.0),
    )
    scale, shift = four[:2]
    return [
        Case("BatchNormalization", (IMAGE, *four), {"epsilon": 1e-3}),
        Case("BatchNormalization", (LINE, *four), opset=11, tag="1d"),
        Case("BatchNormalization", (Data((4,)), *four), opset=15, tag="rows"),
        Case("BatchNormalization", (Data((4, 2, 3, 4)), *four), tag="3d"),
        Case("LayerNormalization", (LINE, weights(9), weights(9, seed=5)), tag="last"),
        Case("LayerNormalization", (IMAGE, weights(7, 8)), {"axis": 2, "epsilon": 1e-3}),
        Case("LayerNormalization", (IMAGE, weights(8), weights(7, 8)), {"axis": 2}, tag="broadcast"),
        Case("RMSNormalization", (LINE, weights(9)), opset=23, tag="last"),
        Case("GroupNormalization", (IMAGE, weights(2), weights(2)), {"num_groups": 2}, opset=18),
        Case("GroupNormalization", (IMAGE, scale, shift), {"num_groups": 2}, opset=21),
        Case("InstanceNormalization", (IMAGE, scale, shift), tag="2d"),
        Case("InstanceNormalization", (LINE, scale, shift), {"epsilon": 1e-2}),
        Case("LRN", (IMAGE,), {"size": 3, "alpha": 0.01}),
        Case("LpNormalization", (LINE,), {"axis": 1, "p": 2}),
        Case("LpNormalization", (LINE,), {"axis": -1, "p": 1}),
        Case("MeanVarianceNormalization", (IMAGE,), tag="default"),
        Case("MeanVarianceNormalization", (IMAGE,), {"axes": [2, 3]}),
    ]


def _pool() -> list[Case]:
    three = {"kernel_shape": [3, 3]}
    lp = {"kernel_shape": [2, 3], "p": 3}
    rows = [
        ("plain", {}),
        ("padded", {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("lopsided", {"pads": [0, 1, 2, 1], "strides": [2, 3]}),
        ("ceil", {"pads": [1, 1, 1, 1], "strides": [2, 3], "ceil_mode": 1}),
        ("ceil bare", {"strides": [2, 2], "ceil_mode": 1}),
        ("upper", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ("lower", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ]
    cases = [Case("MaxPool", (IMAGE,), {**three, **more}, tag=tag) for tag, more in rows]
    for counted in (0, 1):
        cases += [
            Case(
                "AveragePool",
                (IMAGE,),
                {**three, "count_include_pad": counted, **more},
                19,
                tag=f"{tag} {counted}",
            )
            for tag, more in rows
        ]
    return [
        *cases,
        Case("MaxPool", (IMAGE,), {**three, "dilations": [2, 2]}),
        Case("MaxPool", (LINE,), {"kernel_shape": [2], "strides": [2]}, opset=11),
        Case("MaxPool", (VOLUME,), {"kernel_shape": [2, 2, 2]}),
        Case("AveragePool", (IMAGE,), {**three, "dilations": [2, 1]}, opset=19),
        Case("AveragePool", (IMAGE,), {**three, "pads": [1, 1, 1, 1]}, opset=11),
        Case("AveragePool", (VOLUME,), {"kernel_shape": [2, 2, 2]}),
        Case("LpPool", (IMAGE,), lp),
        Case("LpPool", (IMAGE,), {**lp, "p": 2, "strides": [2, 2], "pads": [1, 0, 1, 2]}),
        Case("GlobalAveragePool", (IMAGE,)),
        Case("GlobalAveragePool", (LINE,), tag="1d"),
        Case("GlobalMaxPool", (IMAGE,)),
        Case("GlobalLpPool", (IMAGE,), {"p": 2}),
    ]


def _activation() -> list[Case]:
    plain = [
        "Celu",
        "Elu",
        "HardSwish",
        "LeakyRelu",
        "Mish",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Softsign",
    ]
    return [
        *(Case(name, (ROW,)) for name in [*plain, "Tanh", "ThresholdedRelu", "HardSigmoid", "Shrink"]),
        Case("Celu", (ROW,), {"alpha": 0.5}),
        Case("Elu", (ROW,), {"alpha": 0.3}),
        Case("LeakyRelu", (ROW,), {"alpha": 0.2}),
        Case("Selu", (ROW,), {"alpha": 1.5, "gamma": 0.9}),
        Case("HardSigmoid", (ROW,), {"alpha": 1 / 6, "beta": 0.5}),
        Case("Shrink", (ROW,), {"bias": 0.25, "lambd": 1.0}),
        Case("ThresholdedRelu", (ROW,), {"alpha": 0.4}),
        Case("Gelu", (ROW,), opset=20),
        Case("Gelu", (ROW,), {"approximate": "tanh"}, opset=20),
        Case("Swish", (ROW,), opset=24),
        Case("Swish", (ROW,), {"alpha": 1.7}, opset=24),
        Case("PRelu", (IMAGE, weights(4, 1, 1)), tag="channelwise"),
        Case("PRelu", (IMAGE, weights(1)), tag="one"),
        Case("PRelu", (ROW, weights(5)), tag="row"),
        Case("PRelu", (IMAGE, weights(7, 8)), tag="pixelwise"),
        Case("Clip", (ROW, np.float32(-1.0), np.float32(0.5)), tag="both"),
        Case("Clip", (ROW, np.float32(0.0), np.float32(6.0)), tag="relu6"),
        Case("Clip", (ROW, None, np.float32(0.5)), opset=11, tag="high"),
        Case("Clip", (ROW, np.float32(0.5)), tag="low"),
        Case("Clip", (ROW, np.float32(0.5), np.float32(0.5)), tag="one value"),
        Case("Clip", (ROW, np.float32(0.5), np.float32(-0.5)), tag="crossed"),
        Case("Clip", (WHOLE, np.int64(-3), np.int64(4)), gives=INT, tag="whole"),
        Case("Softmax", (IMAGE,), {"axis": 1}),
        Case("Softmax", (LINE,)),
        Case("Softmax", (LINE,), {"axis": 1}, opset=11),
        Case("Softmax", (LINE,), {"axis": 2}, opset=12),
        Case("LogSoftmax", (LINE,), {"axis": 1}),
        Case("LogSoftmax", (IMAGE,), {"axis": 2}, opset=11),
    ]


def _elementwise() -> list[Case]:
    any_sign = [
        "Abs",
        "Atan",
        "Asinh",
        "Ceil",
        "Cos",
        "Cosh",
        "Erf",
        "Exp",
        "Floor",
        "Neg",
        "Sign",
        "Sin",
        "Sinh",
    ]
    comparisons = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]
    other, whole = weights(5, low=0.5, high=2.0), ints(3, -2, 5, 4, -7)
    some = np.array([True, False, True, True, False])
    return [
        *(Case(name, (ROW,)) for name in [*any_sign, "Tan"]),
        *(Case(name, (SMALL,)) for name in ("Acos", "Asin", "Atanh")),
        *(Case(name, (POSITIVE,)) for name in ("Log", "Sqrt", "Reciprocal")),
        Case("Acosh", (Data((5,), 1.1, 3.0),)),
        Case("Round", (Data((5,), -9, 9),), tag="halves"),
        *(Case(name, (ROW, other)) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum")),
        *(Case(name, (other, ROW), tag="constant first") for name in ("Add", "Sub", "Mul", "Div")),
        *(Case(name, (IMAGE, weights(4, 1, 1)), tag="channelwise") for name in ("Add", "Mul")),
        *(Case(name, (ROW, np.float32(1.5)), tag="number") for name in ("Add", "Sub", "Mul", "Div")),
        Case("Max", (ROW, other, -other), tag="three"),
        Case("Sum", (ROW, other, other), tag="three"),
        Case("Mean", (ROW, other, other), tag="three"),
        Case("Div", (WHOLE, whole), gives=INT, tag="whole"),
        Case("Pow", (POSITIVE, np.float32(2.5)), tag="number"),
        Case("Pow", (ROW, ints(2)), tag="whole power"),
        Case("Pow", (POSITIVE, other), tag="elementwise"),
        Case("Mod", (WHOLE, whole), gives=INT, tag="whole"),
        Case("Mod", (ROW, other), {"fmod": 1}),
        Case("Mod", (np.float32(3.5), POSITIVE), {"fmod": 1}, tag="number first"),
        *(Case(name, (Data((5,), -2, 2, np.int64), ints(0)), gives=BOOL) for name in comparisons),
        *(Case(name, (np.float32(0.5), ROW), gives=BOOL, tag="number first") for name in comparisons),
        *(Case(name, (FLAGS, some), gives=BOOL) for name in ("And", "Or", "Xor")),
        *(Case(name, (FLAGS, some[0]), gives=BOOL, tag="one flag") for name in ("And", "Or", "Xor")),
        Case("Not", (FLAGS,), gives=BOOL),
        *(Case(f"Bitwise{name}", (WHOLE, whole), gives=INT) for name in ("And", "Or", "Xor")),
        Case("BitwiseNot", (WHOLE,), gives=INT),
        Case("IsNaN", (ROW,), gives=BOOL),
        Case("IsInf", (ROW,), gives=BOOL),
        Case("IsInf", (ROW,), {"detect_negative": 0}, gives=BOOL),
        Case("IsInf", (ROW,), {"detect_positive": 0}, gives=BOOL),
        Case("Where", (some, ROW, other)),
    ]


def _reduce() -> list[Case]:
    names = ["L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
    counts = Data((4,), -5, 5, np.int32)
    return [
        *(Case(f"Reduce{name}", (IMAGE, ints(2, 3)), tag="new") for name in names),
        *(Case(f"Reduce{name}", (IMAGE,), {"axes": [1], "keepdims": 0}, 11) for name in names),
        Case("ReduceLogSum", (Data((4, 3), 0.1, 2.0), ints(-1))),
        Case("ReduceSum", (IMAGE, ints(1)), {"keepdims": 0}, opset=13),
        Case("ReduceMean", (LINE,), {"axes": [-1]}, opset=13),
        Case("ReduceSum", (counts,), {}, 13, TensorProto.INT32, tag="whole"),
        Case("ReduceProd", (counts,), {"axes": [1]}, 13, TensorProto.INT32, tag="whole"),
        Case("ReduceSum", (ROW,), {"noop_with_empty_axes": 1}),
        Case("ArgMax", (LINE,), {"axis": 1}, gives=INT),
        Case("ArgMax", (Data((6,), 0, 3, np.int32),), {"axis": 1, "select_last_index": 1}, gives=INT),
        Case("ArgMin", (LINE,), {"axis": -1, "keepdims": 0}, gives=INT),
        Case("CumSum", (LINE, np.int64(2))),
        Case("CumSum", (LINE, np.int64(1)), {"exclusive": 1, "reverse": 1}),
        Case("TopK", (LINE, ints(3)), {"axis": 2}, outputs=2),
        Case("TopK", (LINE, ints(2)), {"axis": 1, "largest": 0}, outputs=2),
    ]


def _shape() -> list[Case]:
    return [
        Case("Shape", (IMAGE,), gives=INT),
        Case("Shape", (IMAGE,), {"start": 1, "end": -1}, gives=INT),
        Case("Size", (IMAGE,), gives=INT),
        Case("Reshape", (IMAGE, ints(0, -1))),
        Case("Reshape", (IMAGE, ints(-1, 2, 2, 56)), opset=11),
        Case("Reshape", (IMAGE, ints(-1, 8)), {"allowzero": 1}, opset=14),
        Case("Flatten", (IMAGE,)),
        Case("Flatten", (IMAGE,), {"axis": 2}),
        Case("Flatten", (IMAGE,), {"axis": 0}, opset=11),
        Case("Flatten", (IMAGE,), {"axis": -1}),
        Case("Squeeze", (Data((1, 3, 1)), ints(1))),
        Case("Squeeze", (Data((1, 3, 1)),), {"axes": [1, 3]}, opset=11),
        Case("Squeeze", (Data((1, 3, 1)),), tag="all"),
        Case("Unsqueeze", (ROW, ints(1, -1))),
        Case("Unsqueeze", (ROW,), {"axes": [0, 2]}, opset=11),
        Case("Transpose", (IMAGE,)),
        Case("Transpose", (IMAGE,), {"perm": [0, 2, 3, 1]}),
        Case("Expand", (Data((1, 3)), ints(4, 1))),
        Case("Expand", (ROW, ints(2, 1, 5)), tag="new axis"),
        Case("Tile", (LINE, ints(1, 2, 3))),
        Case("Concat", (LINE, Data((2, 9))), {"axis": 1}, tag="two"),
        Case("Concat", (LINE, LINE), {"axis": -1}, tag="itself"),
        Case("Split", (LINE, ints(1, 3)), {"axis": 1}, outputs=2),
        Case("Split", (LINE,), {"axis": 1, "split": [3, 1]}, opset=11, outputs=2),
        Case("Split", (LINE,), {"axis": 2, "num_outputs": 2}, outputs=2),
        Case("Identity", (ROW,)),
        Case("Cast", (ROW,), {"to": INT}, gives=INT),
        Case("Cast", (WHOLE,), {"to": TensorProto.FLOAT}),
        Case("Cast", (ROW,), {"to": BOOL}, gives=BOOL),
        Case("CastLike", (WHOLE, floats(1.0))),
        Case("Dropout", (ROW, np.float32(0.4)), opset=13),
        Case("Dropout", (ROW,), {"ratio": 0.3}, opset=11),
    ]


def _index() -> list[Case]:
    table = weights(6, 3)
    return [
        Case("Gather", (IMAGE, np.int64(-1)), {"axis": 2}),
        Case("Gather", (IMAGE, ints(3, 0, -2)), {"axis": 1}),
        Case("Gather", (IMAGE, np.array([[0, 1], [2, -1]])), {"axis": 3}),
        Case("Gather", (table, Data((4,), 0, 6, np.int64)), tag="embedding"),
        Case("Gather", (weights(4, 6), Data((4,), -6, 6, np.int64)), {"axis": 1}, tag="by data"),
        Case("GatherElements", (table, Data((3,), 0, 6, np.int64))),
        Case("GatherND", (weights(6, 3, 2), Data((2,), 0, 3, np.int64))),
        Case("ScatterElements", (weights(5, 6), Data((6,), 0, 5, np.int64), Data((6,))), tag="by data"),
        Case("ScatterND", (weights(9, 5), Data((1,), 0, 9, np.int64), Data((5,))), {"reduction": "add"}),
        Case("Slice", (IMAGE, ints(1, 2), ints(3, INT64_MAX), ints(2, 3))),
        Case("Slice", (IMAGE, ints(-5), ints(-1), ints(3), ints(2)), tag="steps"),
        Case("Slice", (IMAGE, ints(-1), ints(-INT64_MAX), ints(2), ints(-2)), tag="backwards"),
        Case("Slice", (IMAGE, ints(0, 0), ints(100, 2)), opset=11, tag="leading"),
        Case("Trilu", (Data((5, 5)),)),
        Case("Trilu", (Data((5, 5)), np.int64(-1)), {"upper": 0}),
        Case("OneHot", (Data((4,), -1, 6, np.int64), ints(5), floats(0.5, 2.0))),
        Case("OneHot", (Data((4,), 0, 5, np.int64), ints(5), floats(0.0, 1.0)), {"axis": 1}),
    ]


def _space() -> list[Case]:
    pads = ints(0, 0, 1, 2, 0, 0, 3, 0)
    resize = "coordinate_transformation_mode"
    up, down = floats(1, 1, 2, 2), floats(1, 1, 0.6, 0.7)
    rows: list[tuple[dict[str, Any], np.ndarray]] = [
        ({"mode": mode, resize: coordinates}, scales)
        for mode in ("nearest", "linear", "cubic")
        for coordinates in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
        for scales in (up, down)
    ]
    return [
        *(Case("Pad", (IMAGE, pads), {"mode": mode}) for mode in ("constant", "reflect", "edge")),
        Case("Pad", (IMAGE, pads), {"mode": "wrap"}, opset=19),
        Case("Pad", (IMAGE, pads, np.float32(1.5)), opset=11),
        Case("Pad", (IMAGE, ints(1, 2, 0, 1), None, ints(3, 1))),
        Case("Pad", (IMAGE, ints(0, 0, -1, 0, 0, 0, 1, -2)), tag="cut"),
        Case("DepthToSpace", (IMAGE,), {"blocksize": 2}),
        Case("DepthToSpace", (IMAGE,), {"blocksize": 2, "mode": "CRD"}),
        Case("SpaceToDepth", (Data((3, 4, 6)),), {"blocksize": 2}),
        *(
            Case(
                "GridSample",
                (Data((2, 5, 4)), GRID),
                {"mode": mode, "padding_mode": padding},
                16,
            )
            for mode, padding in [("bilinear", "zeros"), ("nearest", "border"), ("bicubic", "reflection")]
        ),
        Case("GridSample", (Data((2, 5, 4)), GRID), {"mode": "linear", "align_corners": 1}, 20),
        *(
            Case("Resize", (IMAGE, None, scales), attributes, tag=_short(attributes, scales))
            for attributes, scales in rows
        ),
        *(
            Case(
                "Resize",
                (IMAGE, None, scales),
                {"nearest_mode": mode, resize: "asymmetric"},
                13,
                tag=f"{mode} {scales[2]}",
            )
            for mode in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
            for scales in (up, down)
        ),
        Case("Resize", (IMAGE, None, None, ints(9, 5)), {"mode": "linear", "axes": [2, 3]}, tag="axes"),
        Case("Resize", (IMAGE, None, down), {"mode": "linear", "antialias": 1}),
        Case("Resize", (IMAGE, None, down), {"mode": "cubic", "antialias": 1, "cubic_coeff_a": -0.5}),
        Case("Resize", (IMAGE, None, up), {"mode": "cubic", "exclude_outside": 1}),
        Case("Resize", (IMAGE, None, down), {"mode": "linear", resize: "half_pixel_symmetric"}, 19),
    ]


def _short(attributes: dict[str, Any], scales: np.ndarray) -> str:
    return " ".join([*attributes.values(), str(scales[2])])


def _attention() -> list[Case]:
    heads = Data((2, 6, 4))
    key, value = Data((2, 5, 4)), Data((2, 5, 3))
    seen = np.tril(np.ones((6, 5), np.bool_), 1)
    return [
        Case("Attention", (heads, heads, heads), opset=23, tag="self"),
        Case("Attention", (heads, key, value, weights(6, 5)), {"scale": 0.3}, opset=23),
        Case("Attention", (heads, key, value, seen), opset=23, tag="mask of flags"),
        Case("Attention", (heads, key, value), {"is_causal": 1, "softcap": 2.0}, opset=23),
        Case(
            "Attention",
            (Data((6, 8)), Data((5, 8)), Data((5, 8), -1, 1)),
            {"q_num_heads": 2, "kv_num_heads": 2},
            23,
        ),
        Case(
            "Attention",
            (Data((6, 8)), Data((5, 4)), Data((5, 4), -1, 1)),
            {"q_num_heads": 2, "kv_num_heads": 1},
            23,
        ),
    ]


CASES: tuple[Case, ...] = (
    *_conv(),
    *_linear(),
    *_norm(),
    *_pool(),
    *_activation(),
    *_elementwise(),
    *_reduce(),
    *_shape(),
    *_index(),
    *_space(),
    *_attention(),
)
"""Every form of every operator with one node."""

ELSEWHERE: frozenset[str] = frozenset({"Constant", "ConstantOfShape", "If", "Range"})
"""Operators that make sense beside others only; they have tests of their own."""
