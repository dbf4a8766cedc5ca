"""What takes several nodes in a graph of operators that have meant the same since opset 9."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from guard.runtime.node_list import NodeList

__all__ = ["add_all", "add_highest", "add_nan", "add_row_sums"]


def add_row_sums(g: NodeList, table: str, width: int, output: str) -> str:
    """Add the sums of a float64 table's rows, (r, ``width``) to (r, 1); ReduceSum has changed since."""
    ones = g.constant(output.removeprefix(g.prefix) + "_ones", np.ones((width, 1), np.float64))
    return g.node("MatMul", [table, ones], output)


def add_all(g: NodeList, mask: str, width: int, output: str) -> str:
    """Add whether a row holds nothing but true, (r, ``width``) to (r, 1); there is no ReduceAll."""
    name = output.removeprefix(g.prefix)
    untrue = g.node("Cast", [g.node("Not", [mask], output + "_not")], output + "_fp32", to=TensorProto.FLOAT)
    ones = g.constant(name + "_ones", np.ones((width, 1), np.float32))
    count = g.node("MatMul", [untrue, ones], output + "_count")
    return g.node("Less", [count, g.constant(name + "_half", np.array(0.5, np.float32))], output)


def add_highest(g: NodeList, table: str, height: int, output: str) -> str:
    """Add the highest of each column, (``height``, n) to (1, n), by halves; ReduceMax has changed since.

    What it makes of NaN is not certain: whoever uses it checks for that beside it.
    """
    name = output.removeprefix(g.prefix)
    while height > 1:
        half = (height + 1) // 2
        rows = {"upper": np.arange(half), "lower": np.arange(height - half, height)}
        halves = [
            g.node(
                "Gather",
                [table, g.constant(f"{name}_{which}_of_{height}", index)],
                f"{output}_{which}_{height}",
                axis=0,
            )
            for which, index in rows.items()
        ]
        table = g.node("Max", halves, f"{output}_up_to_{half}")
        height = half
    return g.node("Identity", [table], output)


def add_nan(g: NodeList) -> str:
    """Add a float32 NaN, once; return its name."""
    name = g.prefix + "nan"
    if all(tensor.name != name for tensor in g.constants):
        g.constant("nan", np.array(np.nan, np.float32))
    return name
