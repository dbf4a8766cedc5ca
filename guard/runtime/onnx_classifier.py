"""A classifier on ONNX Runtime, with its check built in.

One session holds the check graph (:mod:`guard.runtime.check_graph`). Plain predictions are
pairs without an overlay, so the served logits and the checked ones come from the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from guard.arrays import EntropyBits, Images, Logits, Overlays, PairIndex, held
from guard.artifact.profile import InputSpec, OutputSpec
from guard.detection.superimpose import BlendRule
from guard.errors import SettingsError, UnfitModelError
from guard.runtime import check_graph

__all__ = ["ORT_ERRORS", "Device", "OnnxClassifier"]

Device = Literal["auto", "cpu", "cuda"]

_QUIETLY = ort.RunOptions()  # errors come as exceptions; standard error is for our own log
_QUIETLY.log_severity_level = 4
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_PARITY_TOLERANCE = 1e-3
_ROUGH_PARITY_TOLERANCE = 1e-2
"""For float16 and bfloat16, which keep 11 and 8 bits, and for CUDA, whose kernels differ with the batch."""

ORT_ERRORS: Final[tuple[type[Exception], ...]] = (
    ort_state.EPFail,
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)
"""What ONNX Runtime raises when a model cannot be loaded or run."""

_LOAD_ERRORS: Final[tuple[type[Exception], ...]] = (*ORT_ERRORS, ValueError)


class OnnxClassifier:
    """Runs a model and its check; safe to call from one thread at a time.

    Build one with :meth:`open`. Rows of one call must not affect each other: :meth:`warm_up`
    tries it on random images, which finds what exporters do by mistake, not a model built to cheat.
    """

    def __init__(
        self, session: ort.InferenceSession, source: InputSpec, sink: OutputSpec, fixed_batch: int | None
    ) -> None:
        self._session: ort.InferenceSession | None = session
        self._source = source
        self._sink = sink
        self._fixed_batch = fixed_batch
        self.device = "cuda" if session.get_providers()[0] == _CUDA else "cpu"

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

        Raises:
            UnfitModelError: If ONNX Runtime cannot load the model.
            SettingsError: If ``cuda`` is asked for and there is none.
        """
        wrapped = check_graph.build_check_graph(
            model, source=source, sink=sink, overlays=overlays, blend=blend
        )
        return cls(_open_session(wrapped, device, threads), source, sink, fixed_batch)

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
        return self._run_all(images, image_index, overlay_index)

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
        self._session = None

    def __enter__(self) -> OnnxClassifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run_all(
        self, images: Images, image_index: PairIndex, overlay_index: PairIndex
    ) -> tuple[np.ndarray, np.ndarray]:
        """Run any number of pairs; the shapes are whatever the model gives."""
        if self._fixed_batch is None:
            return self._run(images, image_index, overlay_index)
        pairs = len(image_index)
        if pairs == 0:
            return np.empty((0, self._sink.classes), np.float32), np.empty(0, np.float32)
        logits, entropy = [], []
        for start in range(0, pairs, self._fixed_batch):
            part = np.arange(start, start + self._fixed_batch)
            part = np.minimum(part, pairs - 1)  # pad the last call with its last pair
            some = self._run(images, image_index[part], overlay_index[part])
            logits.append(some[0])
            entropy.append(some[1])
        return np.concatenate(logits)[:pairs], np.concatenate(entropy)[:pairs]

    def _run(
        self, images: Images, image_index: PairIndex, overlay_index: PairIndex
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._session is None:
            raise RuntimeError("the classifier is closed")
        feed = {
            check_graph.IMAGES: images,
            check_graph.IMAGE_INDEX: image_index,
            check_graph.OVERLAY_INDEX: overlay_index,
        }
        logits, entropy = self._session.run([check_graph.LOGITS, check_graph.ENTROPY], feed, _QUIETLY)
        return logits, entropy

    def _tolerance(self, logits: np.ndarray) -> float:
        """Return how far an answer may move with the batch: rounding grows with the largest value."""
        halves = {"FP16", "BF16"} & {self._source.datatype, self._sink.datatype}
        rough = bool(halves) or self.device == "cuda"
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
            logits, _ = self._run_all(images, index, np.full_like(index, -1))
        except ORT_ERRORS as error:
            raise UnfitModelError(
                f"the model fails on a batch of {len(index)} images: {_first_line(error)}; expected an "
                f"output of shape {expected}: export it with a dynamic batch axis, or with one fixed size "
                f"throughout"
            ) from error
        if logits.shape != expected:
            raise UnfitModelError(
                f"the model gives an output of shape {logits.shape} for {len(index)} images, expected "
                f"{expected} as the profile says; calibrate this model again"
            )
        return logits


def _open_session(model: onnx.ModelProto, device: Device, threads: int | None) -> ort.InferenceSession:
    available = ort.get_available_providers()
    if device == "cuda" and _CUDA not in available:
        raise SettingsError(
            f"device 'cuda' was asked for, but ONNX Runtime offers only {', '.join(available)}; install "
            f"inference-guard[gpu] in place of [cpu], or set device to 'cpu'"
        )
    # TF32 would move scores by about 1e-3 from those that the boundary was calibrated with elsewhere.
    cuda = [(_CUDA, {"use_tf32": "0"})] if device != "cpu" and _CUDA in available else []
    providers = [*cuda, _CPU]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=providers)
    except _LOAD_ERRORS as error:
        raise UnfitModelError(
            f"ONNX Runtime {ort.__version__} cannot load the model: {_first_line(error)}; export it again, "
            f"for a supported opset, and calibrate it"
        ) from error
    if device == "cuda" and session.get_providers()[0] != _CUDA:
        raise SettingsError(
            "device 'cuda' was asked for, but CUDA could not be started; see the log of ONNX Runtime"
        )
    return session


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
