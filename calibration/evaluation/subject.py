"""A model to be measured: ONNX by the code that serves, a factory's network by torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.attacks.base import Images
from calibration.evaluation.measuring import Answer
from calibration.intake import model_rows
from calibration.model_source import ModelSource, read_model
from calibration.outputs import count_classes
from calibration.preprocessing import Prepare
from guard.artifact import OutputSpec
from guard.artifact.signature import Layout, Signature, read_signature
from guard.detection.superimpose import BLEND_RULES
from guard.errors import UnfitModelError
from guard.runtime.onnx_classifier import ORT_ERRORS, Device, OnnxClassifier

__all__ = ["Candidate", "read_candidate"]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model that was read and can be run.

    Attributes:
        where: It, as given.
        sha256: Digest of the file, or of a factory's weights.
        signature: Its tensors.
        source: Its graph; None where a factory made it.
        network: A factory's network, a torch module; None where there is a graph.
    """

    where: str
    sha256: str
    signature: Signature
    source: ModelSource | None
    network: Any = None

    def classes(self, row: Images) -> int:
        """Return the number of classes; where the graph does not say, the model is run on one image."""
        if self.source is None:
            return int(self.signature.classes or 0)
        return count_classes(self.source, self.signature, model_rows(row, self.signature))

    @contextmanager
    def opened(
        self, prepare: Prepare, row: Images, classes: int, device: Device, threads: int | None
    ) -> Iterator[Answer]:
        """Give what answers images, channels first.

        Args:
            prepare: Says in what range the images lie.
            row: One image.
            classes: k.
            device: Where ONNX Runtime runs.
            threads: Of it; None for one a core.

        Raises:
            UnfitModelError: If the model cannot be run.
        """
        if self.source is None:
            yield self._by_torch
            return
        signature = self.signature
        sink = OutputSpec(
            name=signature.output_name, datatype=signature.output_datatype, classes=classes, kind="logits"
        )
        source = prepare.source.model_copy(
            update={"name": signature.input_name, "layout": signature.layout, "shape": signature.shape}
        )
        try:
            with OnnxClassifier.open(
                self.source.model,
                source=source,
                sink=sink,
                fixed_batch=signature.fixed_batch,
                overlays=model_rows(row, signature),
                blend=BLEND_RULES["add"],
                device=device,
                threads=threads,
            ) as classifier:
                yield lambda images: classifier.logits(model_rows(images, signature))
        except ORT_ERRORS as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnfitModelError(f"{self.where} failed while running: {reason}; export it again") from error

    def _by_torch(self, images: Images) -> np.ndarray:
        import torch  # noqa: PLC0415 only a factory's network needs it

        with torch.no_grad():
            answers: np.ndarray = self.network(torch.from_numpy(model_rows(images, self.signature))).numpy()
        return answers


def read_candidate(
    spec: str,
    *,
    weights: Path | None,
    input_shape: tuple[int, int, int] | None,
    layout: Layout | None,
    size: tuple[int, int] | None,
) -> Candidate:
    """Read a model; ``load_trainable`` says which forms there are.

    Raises:
        GuardError: If the file is missing, unsafe to read, or no image classifier.
    """
    if Path(spec).suffix.lower() == ".onnx":
        source = read_model(Path(spec))
        return Candidate(
            spec, source.sha256, read_signature(source.model, spec, layout=layout, size=size), source
        )
    from calibration.trainable import load_trainable  # noqa: PLC0415 ONNX needs no torch

    model = load_trainable(spec, weights=weights, input_shape=input_shape, layout=layout, size=size)
    if model.origin is None:
        return Candidate(spec, model.source_sha256, model.signature, None, model.module)
    data = model.origin.SerializeToString(deterministic=True)
    return Candidate(
        spec,
        model.source_sha256,
        model.signature,
        ModelSource(Path(spec), model.origin, data, model.source_sha256),
    )
