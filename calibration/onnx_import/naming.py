"""Readable names for what an ONNX graph calls ``/layer1/layer1.0/conv1/Conv`` or ``onnx::Conv_117``.

Names that a person gave survive in three places: in the names of weights (``layer1.0.conv1.weight``), in the
scopes that the dynamo exporter notes with every node, and in the node names of the TorchScript exporter.
"""

from __future__ import annotations

import ast
import keyword
import re

import onnx
from torch import fx

__all__ = ["Names", "clean", "is_generic", "module_path", "value_name"]

_GENERIC = re.compile(r"(onnx::|val_|_?v_|const|fold|arith|initializer|tensor|param|\d+$|/)", re.IGNORECASE)
_LEAF = re.compile(r"[._](weight|bias|kernel|gamma|beta|scale)(_\w+)?$")
_SCOPES = "pkg.torch.onnx.name_scopes"


def clean(name: str) -> str:
    """Return the name as dotted identifiers.

    Examples:
        >>> clean("encoder/layers.0/mlp:0")
        'encoder.layers.0.mlp_0'
    """
    parts = (re.sub(r"\W", "_", part) for part in re.split(r"[./]", name))
    return ".".join(part for part in parts if part.strip("_"))


def is_generic(name: str) -> bool:
    """Whether an exporter made the name up, so that it tells a reader nothing."""
    return not name or _GENERIC.match(name) is not None


def module_path(node: onnx.NodeProto, weight: str = "", bias: str = "") -> str:
    """Return a dotted path for the layer that a node becomes.

    Args:
        node: The node.
        weight: Name of its weight in the graph.
        bias: Name of its bias.

    Examples:
        >>> module_path(onnx.helper.make_node("Conv", [], [], name="n1"), weight="layer1.0.conv1.weight")
        'layer1.0.conv1'
        >>> module_path(onnx.helper.make_node("Relu", [], [], name="/layer1/layer1.0/relu/Relu"))
        'layer1.0.relu'
    """
    for name in (weight, bias):
        if not is_generic(name) and _LEAF.search(name):
            return clean(_LEAF.sub("", name))
    found = _scope_of(node) or _torchscript_path(node.name)
    return clean(found) or clean(node.name.removeprefix("node_")) or node.op_type.lower()


def value_name(node: onnx.NodeProto) -> str:
    """Return a name for what a node computes."""
    name = node.output[0] if node.output else node.name
    name = name.removesuffix("_output_0")
    return clean(name).replace(".", "_") or node.op_type.lower()


def _scope_of(node: onnx.NodeProto) -> str:
    """Return the dynamo exporter's innermost module, ``layer1.0.conv1``, or nothing."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            try:
                scopes = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError):
                return ""
            inner = scopes[-2] if isinstance(scopes, list) and len(scopes) > 1 else ""
            return inner if isinstance(inner, str) and not inner.startswith("_") else ""
    return ""


def _torchscript_path(name: str) -> str:
    """Return ``layer1.0.relu`` for ``/layer1/layer1.0/relu/Relu``: each scope repeats the one around it."""
    if not name.startswith("/"):
        return ""
    path: list[str] = []
    for part in name.strip("/").split("/")[:-1]:
        if path and part.startswith(path[-1] + "."):
            path[-1] = part
        else:
            path.append(part)
    return ".".join(path)


def _as_attribute(part: str) -> str:
    """Return a name that a module can have for an attribute: ``half`` and ``if`` are taken."""
    taken = hasattr(fx.GraphModule, part) or part in {"training", "meta"} or keyword.iskeyword(part)
    return f"{part}_" if taken else part


class Names:
    """Hands out paths in one tree of modules: none is taken twice, none lies inside a layer."""

    def __init__(self) -> None:
        self._leaves: set[str] = set()
        self._branches: set[str] = set()

    def take(self, wish: str) -> str:
        """Return the path wished for, or the nearest that is free."""
        path = ".".join(_as_attribute(part) for part in (wish or "layer").split("."))
        if path[0].isdigit():
            path = f"layer_{path}"
        if any(prefix in self._leaves for prefix in _prefixes(path)):
            path = path.replace(".", "_")
        number, free = 0, path
        while free in self._leaves or free in self._branches:
            number += 1
            free = f"{path}_{number}"
        self._leaves.add(free)
        self._branches.update(_prefixes(free))
        return free

    def is_free(self, path: str) -> bool:
        """Whether the path would be given as it is."""
        blocked = any(prefix in self._leaves for prefix in _prefixes(path))
        return not blocked and path not in self._leaves and path not in self._branches


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]
