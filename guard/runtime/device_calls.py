"""Device calls: images and two index vectors go in, small results come out, all else stays on the device.

The bank of overlays and the weights are initializers, so that they live on the device; blends, activations
and probabilities are between nodes, so that they never leave it. :class:`PlainCalls` takes shapes as they
come and lets ONNX Runtime copy: nothing on the CPU, what goes in and comes out on CUDA. :class:`FixedCalls`
keeps to a few shapes, each bound to tensors of its own whose addresses never change, so that CUDA may capture
a call once and replay it. Each is the same code on every device; the CPU captures nothing.

Binding the calls of any shape too would copy no less, and takes 40 µs more a call in Python.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from guard.arrays import HELD, Images, PairIndex
from guard.artifact.profile import InputSpec
from guard.runtime import check_graph
from guard.runtime.capture_gate import GPU
from guard.runtime.padding import PaddedBatch, padded_batches
from guard.runtime.session import is_on_cuda

__all__ = ["Calls", "FixedCalls", "PlainCalls"]

_UNCAPTURED: Final = -1
"""The graph of a run that is neither captured nor replayed, as ONNX Runtime has it; 0 is its own."""


@runtime_checkable
class Calls(Protocol):
    """Runs the check graph."""

    def run(self, images: Images, image_index: PairIndex, overlay_index: PairIndex) -> tuple[np.ndarray, ...]:
        """Return the graph's results, a row for each pair, in arrays of the caller's own.

        They are output, entropy and, where the graph gives them, features; shapes are as the model's.
        """
        ...


class PlainCalls:
    """Shapes as they come."""

    def __init__(self, session: ort.InferenceSession) -> None:
        session.disable_fallback()  # to the CPU, and to standard output: a device that fails is an error
        self._session = session
        self._outputs = _outputs_of(session)
        self._options = _run_options()

    def run(self, images: Images, image_index: PairIndex, overlay_index: PairIndex) -> tuple[np.ndarray, ...]:
        """Run one call.

        Raises:
            ORT_ERRORS: If it fails.
        """
        feed = dict(zip(_INPUTS, (images, image_index, overlay_index), strict=True))
        with GPU.shared():
            return tuple(self._session.run(self._outputs, feed, self._options))


@dataclass(frozen=True, eq=False)
class _Place:
    """The tensors of one shape.

    Attributes:
        staging: Images on the CPU, as many as the tensor has; what is behind those of a batch is left over.
    """

    staging: np.ndarray
    inputs: tuple[ort.OrtValue, ...]
    outputs: tuple[ort.OrtValue, ...]
    binding: ort.IOBinding
    capturing: ort.RunOptions


class FixedCalls:
    """A few shapes, each captured and replayed where the session captures.

    ONNX Runtime keeps the graphs of each thread apart, so that a thread's first call of a shape captures.

    Args:
        session: The check graph.
        source: The model's image input.
        classes: Columns of the output.
        sizes: Numbers of images, and of pairs, that a call may have; ascending.
        features: Columns of the features; 0 where the graph gives none.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        source: InputSpec,
        classes: int,
        sizes: tuple[int, ...],
        features: int = 0,
    ) -> None:
        self._session = session
        self._device = "cuda" if is_on_cuda(session) else "cpu"
        self._row = (source.shape, HELD[source.datatype])
        shapes: tuple[tuple[int, ...], ...] = ((classes,), (), (features,))
        self._results = dict(zip(_outputs_of(session), shapes, strict=False))
        self._sizes = sizes
        self._places: dict[tuple[int, int], _Place] = {}
        self._plain = _run_options(_UNCAPTURED)
        self._here = threading.local()

    def run(self, images: Images, image_index: PairIndex, overlay_index: PairIndex) -> tuple[np.ndarray, ...]:
        """Run as many calls as it takes.

        Raises:
            ValueError: If the images are not what the model takes, or a pair is of none of them.
            ORT_ERRORS: If a call fails.
        """
        shape, dtype = self._row
        if images.shape[1:] != shape or images.dtype != dtype:
            raise ValueError(
                f"Unexpected input data: expected images of shape {shape} and dtype {dtype}, "
                f"got {images.shape[1:]} and {images.dtype}"
            )
        parts = [tuple(np.empty((0, *shape), np.float32) for shape in self._results.values())]
        for batch in padded_batches(images, image_index, overlay_index, self._sizes):
            parts.append(self._run(batch))
        return tuple(np.concatenate(results) for results in zip(*parts, strict=True))

    def _run(self, batch: PaddedBatch) -> tuple[np.ndarray, ...]:
        with self._turn(batch.shape) as captures, _as_ort_error():
            place = self._places.get(batch.shape) or self._new_place(*batch.shape)
            place.staging[: len(batch.images)] = batch.images
            arrays = (place.staging, batch.image_index, batch.overlay_index)
            for value, array in zip(place.inputs, arrays, strict=True):
                value.update_inplace(array)
            self._session.run_with_iobinding(place.binding, place.capturing if captures else self._plain)
            # Copied: on the CPU these are views of what the next call writes.
            return tuple(np.array(value.numpy()[: batch.pairs]) for value in place.outputs)

    @contextmanager
    def _turn(self, shape: tuple[int, int]) -> Iterator[bool]:
        """Hold the GPU as a call of this shape must; yields whether it may be captured or replayed."""
        captured: set[tuple[int, int]] = self._here.__dict__.setdefault("captured", set())
        if shape in captured:
            with GPU.shared():
                yield True
            return
        with GPU.alone_if_free() as alone:
            yield alone
            if alone:
                captured.add(shape)

    def _new_place(self, image_rows: int, pairs: int) -> _Place:
        shape, dtype = self._row
        inputs = (
            self._tensor((image_rows, *shape), dtype),
            self._tensor((pairs,), np.dtype(np.int64)),
            self._tensor((pairs,), np.dtype(np.int64)),
        )
        outputs = tuple(
            self._tensor((pairs, *shape), np.dtype(np.float32)) for shape in self._results.values()
        )
        binding = self._session.io_binding()
        for name, value in zip(_INPUTS, inputs, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name, value in zip(self._results, outputs, strict=True):
            binding.bind_ortvalue_output(name, value)
        options = _run_options(1 + len(self._places))
        place = _Place(np.zeros((image_rows, *shape), dtype), inputs, outputs, binding, options)
        self._places[image_rows, pairs] = place
        return place

    def _tensor(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype.type, self._device, 0)


_INPUTS: Final = (check_graph.IMAGES, check_graph.IMAGE_INDEX, check_graph.OVERLAY_INDEX)
_OUTPUTS: Final = (check_graph.LOGITS, check_graph.ENTROPY, check_graph.FEATURES)


def _outputs_of(session: ort.InferenceSession) -> tuple[str, ...]:
    there = {output.name for output in session.get_outputs()}
    return tuple(name for name in _OUTPUTS if name in there)


def _run_options(graph: int | None = None) -> ort.RunOptions:
    options = ort.RunOptions()
    options.log_severity_level = 4  # errors come as exceptions; standard error is for our own log
    if graph is not None:
        options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


@contextmanager
def _as_ort_error() -> Iterator[None]:
    """Raise what a bound call raises, which is a bare RuntimeError, as what ONNX Runtime raises elsewhere."""
    try:
        yield
    except RuntimeError as error:
        raise ort_state.RuntimeException(str(error)) from error
