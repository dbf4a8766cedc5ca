"""A bench on its way to another process of ours, and an exception on its way back.

A ``torch.fx`` module is not left to pickle: that traces its code again when it arrives, and functions that
look at sizes, as imported graphs call them, cannot be traced. Here the graph goes node by node and stays what
it is.

This is for a process that talks to its own workers. What comes from anywhere else is never unpickled.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import torch
from torch import fx, nn
from torch.fx.graph import CodeGen
from torch.fx.node import map_arg

from calibration.scan.base import Bench

__all__ = ["Raised", "pack", "unpack"]

_MODULE_STATE: Final = frozenset(nn.Module().__dict__)


def pack(bench: Bench) -> bytes:
    """Return a bench as bytes; the model of what :func:`unpack` makes of them answers alike to the bit.

    Raises:
        pickle.PicklingError: If a class or function of the model cannot be imported by its name.
    """
    file = io.BytesIO()
    _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(bench)
    return file.getvalue()


def unpack(data: bytes) -> Bench:
    """Return the bench that was packed by a process of ours."""
    bench: Bench = pickle.loads(data)
    return bench


class Raised:
    """An exception that can be sent: its class, its arguments, what else it holds.

    Exceptions whose constructors want more than their arguments do not survive pickling by themselves.
    """

    def __init__(self, error: Exception, trace: str) -> None:
        self._kind, self._trace = type(error), trace
        with suppress(Exception):
            self._arguments = error.__reduce__()[1]  # more than ``args`` where a file is named
            self._state = dict(error.__dict__)
            pickle.dumps((self._arguments, self._state))
            return
        self._arguments, self._state = (str(error),), {}

    def error(self) -> Exception:
        """Return an exception of the same class, with the same message, and a note of where it came from."""
        try:
            error = self._kind(*self._arguments)
        except Exception:  # noqa: BLE001  a constructor that wants other arguments
            error = self._kind.__new__(self._kind, *self._arguments)
        error.__dict__.update(self._state)
        error.add_note(self._trace)
        return error


_Node = tuple[str, str, Any, tuple[Any, ...], Mapping[str, Any]]
"""What it does, its name, what it calls, arguments and options."""


class _Pickler(pickle.Pickler):
    def reducer_override(self, item: Any) -> Any:
        if isinstance(item, fx.GraphModule) and type(item.graph._codegen) is CodeGen:
            return _assemble, (type(item).__name__, _state(item), [_flat(node) for node in item.graph.nodes])
        if type(item) is torch.Tensor and item.untyped_storage().nbytes() > item.nbytes:
            reduce: Any = item.detach().clone().__reduce_ex__  # a slice without the rest
            return reduce(pickle.HIGHEST_PROTOCOL)
        return NotImplemented


class _Ref(str):
    """Name of a node, in place of it."""

    __slots__ = ()


def _state(module: fx.GraphModule) -> dict[str, Any]:
    """Return what a module holds besides its graph, and besides what is made from the graph."""
    read = {str(node.target).partition(".")[0] for node in module.graph.nodes if node.op == "get_attr"}
    return {name: value for name, value in module.__dict__.items() if name in _MODULE_STATE | read}


def _flat(node: fx.Node) -> _Node:
    def named(other: fx.Node) -> _Ref:
        return _Ref(other.name)

    arguments, options = map_arg((node.args, dict(node.kwargs)), named)
    return node.op, node.name, node.target, arguments, options


def _assemble(name: str, state: Mapping[str, Any], nodes: Sequence[_Node]) -> fx.GraphModule:
    graph, made = fx.Graph(), dict[str, fx.Node]()
    for kind, called, target, arguments, options in nodes:
        placed, placed_options = _place((arguments, dict(options)), made)
        made[called] = graph.create_node(kind, target, placed, placed_options, name=called)
    module = fx.GraphModule(nn.Module(), fx.Graph(), class_name=name)
    module.__dict__.update(state)
    module.graph = graph
    return module


def _place(item: Any, made: Mapping[str, fx.Node]) -> Any:
    """Put nodes where their names are."""
    if isinstance(item, _Ref):
        return made[item]
    if isinstance(item, slice):
        return slice(_place(item.start, made), _place(item.stop, made), _place(item.step, made))
    if isinstance(item, dict):
        return {key: _place(value, made) for key, value in item.items()}
    if isinstance(item, (tuple, list)):
        return type(item)(_place(part, made) for part in item)
    return item
