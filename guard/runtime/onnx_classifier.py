"""A classifier on ONNX Runtime, with its check built in.

One session holds the check graph (:mod:`guard.runtime.check_graph`). Plain predictions are
pairs without an overlay, so the served logits and the checked ones come from the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import numpy as np
import onnx

from guard.arrays import EntropyBits, Features, Images, Logits, Overlays, PairIndex, held
from guard.artifact.precision import Precision
from guard.artifact.profile import InputSpec, OutputSpec
from guard.detection.capabilities.layer_distances import Layer
from guard.detection.superimpose import BlendRule
from guard.errors import UnfitModelError
from guard.runtime import check_graph
from guard.runtime.capture_gate import GPU
from guard.runtime.device_calls import Calls, FixedCalls, PlainCalls
from guard.runtime.half import in_half_precision
from guard.runtime.padding import sizes_up_to
from guard.runtime.session import ORT_ERRORS, Device, first_line, is_on_cuda, open_session

__all__ = ["ORT_ERRORS", "Device", "OnnxClassifier", "Precision"]

_PARITY_TOLERANCE = 1e-3
_ROUGH_PARITY_TOLERANCE = 1e-2
"""For float16 and bfloat16, which keep 11 and 8 bits, and for CUDA, whose kernels differ with the batch."""


class OnnxClassifier:
    """Runs a model and its check; safe to call from one thread at a time.

    Build one with :meth:`open`. Rows of one call must not affect each other: :meth:`warm_up`
    tries it on random images, which finds what exporters do by mistake, not a model built to cheat.
    """

    def __init__(
        self,
        calls: Calls,
        source: InputSpec,
        sink: OutputSpec,
        fixed_batch: int | None,
        *,
        device: str,
        precision: Precision,
        layers: Sequence[Layer] = (),
    ) -> None:
        self._calls: Calls | None = calls
        self._source = source
        self._sink = sink
        self._fixed_batch = fixed_batch
        self._features = sum(layer.width for layer in layers)
        self.device = device
        self.precision = precision

    @classmethod
    def open(
        cls,
        model: onnx.ModelProto,
        *,
        source: InputSpec,
        sink: OutputSpec,
        fixed_batch: int | None,
        overlays: Overlays,
        blend: BlendRule,
        device: Device = "auto",
        threads: int | None = None,
        precision: Precision = "exact",
        cuda_graphs_up_to: int | None = None,
        layers: Sequence[Layer] = (),
    ) -> OnnxClassifier:
        """Wrap the model in its check and load it on the device.

        Args:
            model: The classifier, weights inline.
            source: Its image input.
            sink: Its class output.
            fixed_batch: The batch size built into the graph, or None.
            overlays: Clean images in the model's input space, in the plan's order.
            blend: The blend rule.
            device: ``auto`` takes CUDA where there is one.
            threads: CPU threads for one call; None for one a core.
            precision: What the model computes in.
            cuda_graphs_up_to: Pairs of the largest call, to fill calls up to sizes that repeat, which CUDA
                captures and replays; the CPU fills them up too. None to take calls as they come.
            layers: Activations for :meth:`check_layers` to return; none for no such.

        Raises:
            UnfitModelError: If ONNX Runtime cannot load the model, or it cannot be converted or captured.
            SettingsError: If ``cuda`` is asked for and there is none.
        """
        wrapped = check_graph.build_check_graph(
            in_half_precision(model) if precision == "fp16" else model,
            source=source,
            sink=sink,
            overlays=overlays,
            blend=blend,
            layers=layers,
        )
        graphs = cuda_graphs_up_to is not None
        session = open_session(
            wrapped, device=device, threads=threads, precision=precision, cuda_graphs=graphs
        )
        calls: Calls = PlainCalls(session)
        if cuda_graphs_up_to is not None:
            sizes = sizes_up_to(cuda_graphs_up_to) if fixed_batch is None else (fixed_batch,)
            features = sum(layer.width for layer in layers)
            calls = FixedCalls(session, source, sink.classes, sizes, features)
        where = "cuda" if is_on_cuda(session) else "cpu"
        return cls(calls, source, sink, fixed_batch, device=where, precision=precision, layers=layers)

    def logits(self, images: Images) -> Logits:
        """Return the model's raw output for each image: logits or probabilities, as float32.

        Args:
            images: Rows in the model's input space, layout and dtype.
        """
        index = np.arange(len(images), dtype=np.int64)
        nothing = np.full(len(images), -1, np.int64)
        return self.check(images, index, nothing)[0]

    def check(
        self, images: Images, image_index: PairIndex, overlay_index: PairIndex
    ) -> tuple[Logits, EntropyBits]:
        """Return the model's output and its entropy, in bits, for each (image, overlay) pair.

        Args:
            images: Rows in the model's input space, layout and dtype.
            image_index: Image of each pair.
            overlay_index: Overlay of each pair; -1 for the image itself.

        Raises:
            RuntimeError: If the classifier was closed.
        """
        logits, entropies = self._run_all(images, image_index, overlay_index)[:2]
        return logits, entropies

    def check_layers(
        self, images: Images, image_index: PairIndex, overlay_index: PairIndex
    ) -> tuple[Logits, EntropyBits, Features]:
        """Return the same and, for each pair, the activations of the layers it was opened with, in a row.

        Raises:
            RuntimeError: If the classifier was closed, or opened without layers.
        """
        if not self._features:
            raise RuntimeError("the classifier was opened without layers")
        logits, entropies, features = self._run_all(images, image_index, overlay_index)
        return logits, entropies, features

    def warm_up(self, largest: int) -> None:
        """Run batches of 1, 5 and ``largest`` pairs, and see that rows do not affect each other.

        Args:
            largest: Most pairs a call will have.

        Raises:
            UnfitModelError: If the model fails, gives another shape than declared, or gives an
                image another answer in another batch.
        """
        images = self._random_images(2)
        alone = self._try(images, [0])[0]
        for batch, row in (([1, 1, 0, 1, 1], 2), (np.arange(max(largest, 2)) % 2, 0)):
            beside = self._try(images, batch)[row]
            if not np.allclose(alone, beside, rtol=0.0, atol=self._tolerance(alone), equal_nan=True):
                raise UnfitModelError(
                    f"the model answers an image differently in another batch (difference up to "
                    f"{np.abs(alone - beside).max():.3g}); rows must not affect each other: export it in "
                    f"evaluation mode with a dynamic batch axis"
                )

    def close(self) -> None:
        """Let go of the session and its memory; further calls raise RuntimeError."""
        with GPU.shared():
            self._calls = None

    def __enter__(self) -> OnnxClassifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run_all(
        self, images: Images, image_index: PairIndex, overlay_index: PairIndex
    ) -> tuple[np.ndarray, ...]:
        """Run any number of pairs; the shapes are whatever the model gives."""
        if self._fixed_batch is None:
            return self._run(images, image_index, overlay_index)
        pairs = len(image_index)
        if pairs == 0:
            shapes = [(0, self._sink.classes), (0,), *([(0, self._features)] if self._features else [])]
            return tuple(np.empty(shape, np.float32) for shape in shapes)
        parts = []
        for start in range(0, pairs, self._fixed_batch):
            part = np.arange(start, start + self._fixed_batch)
            part = np.minimum(part, pairs - 1)  # pad the last call with its last pair
            parts.append(self._run(images, image_index[part], overlay_index[part]))
        return tuple(np.concatenate(results)[:pairs] for results in zip(*parts, strict=True))

    def _run(
        self, images: Images, image_index: PairIndex, overlay_index: PairIndex
    ) -> tuple[np.ndarray, ...]:
        if self._calls is None:
            raise RuntimeError("the classifier is closed")
        return self._calls.run(images, image_index, overlay_index)

    def _tolerance(self, logits: np.ndarray) -> float:
        """Return how far an answer may move with the batch: rounding grows with the largest value."""
        halves = {"FP16", "BF16"} & {self._source.datatype, self._sink.datatype}
        rough = bool(halves) or self.device == "cuda" or self.precision != "exact"
        largest = np.abs(logits[np.isfinite(logits)]).max(initial=1.0)
        return float(largest) * (_ROUGH_PARITY_TOLERANCE if rough else _PARITY_TOLERANCE)

    def _random_images(self, count: int) -> Images:
        low, high = (
            np.broadcast_to(bound, self._source.shape) for bound in self._source.value_range.bounds()
        )
        images = np.random.default_rng(0).uniform(low, high, (count, *self._source.shape))
        return held(images, self._source.datatype)

    def _try(self, images: Images, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        index = np.asarray(rows, np.int64)
        expected = (len(index), self._sink.classes)
        try:
            logits, _, *features = self._run_all(images, index, np.full_like(index, -1))
        except ORT_ERRORS as error:
            raise UnfitModelError(
                f"the model fails on a batch of {len(index)} images: {first_line(error)}; expected an "
                f"output of shape {expected}: export it with a dynamic batch axis, or with one fixed size "
                f"throughout"
            ) from error
        if logits.shape != expected:
            raise UnfitModelError(
                f"the model gives an output of shape {logits.shape} for {len(index)} images, expected "
                f"{expected} as the profile says; calibrate this model again"
            )
        if features and features[0].shape != (len(index), self._features):
            raise UnfitModelError(
                f"the model gives layers of shape {features[0].shape} for {len(index)} images, expected "
                f"{(len(index), self._features)} as the profile says; calibrate this model again"
            )
        return logits
