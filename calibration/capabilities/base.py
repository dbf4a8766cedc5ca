"""The contract of capabilities: what they are fitted on, and what they give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import onnx
from jaxtyping import Float32, Float64, Int64

from guard.arrays import Images, Probabilities
from guard.artifact import InputSpec, OutputSpec
from guard.artifact.precision import Precision
from guard.detection.base import predicted_classes
from guard.detection.capabilities.layer_distances import Layer
from guard.detection.capabilities.opinion import Asked, Opinion, Space
from guard.detection.entropy import softmax
from guard.detection.superimpose import BLEND_RULES
from guard.runtime.onnx_classifier import Device, OnnxClassifier

__all__ = ["Bench", "Capability", "Copies", "Fitted", "FittedOpinion", "Off", "batches"]

_BATCH = 128


@dataclass(frozen=True)
class Off:
    """Why a capability is off.

    Attributes:
        reason: A clause that begins with a small letter, for people.
    """

    reason: str


@runtime_checkable
class Fitted(Protocol):
    """A capability, fitted: scores inputs of one model."""

    @property
    def passes(self) -> int:
        """Forward passes an input, beside the one that gives its prediction."""
        ...

    def scores(self, images: Images) -> Float64[np.ndarray, " n"]:
        """Return one finite score for each input, higher is more suspicious, by nothing but its own row.

        Args:
            images: Rows in the model's input space, layout and dtype.
        """
        ...


@dataclass(frozen=True, eq=False)
class Copies:
    """Amplified copies of a model, joined into one graph.

    Attributes:
        model: It, with the same input.
        output: Name of its one output, the copies' own one after another.
        count: Copies.
    """

    model: onnx.ModelProto = field(repr=False)
    output: str
    count: int


@dataclass(frozen=True, eq=False)
class Bench:
    """What a capability is fitted on.

    Attributes:
        model: The classifier, weights inline.
        source: Its image input.
        sink: Its class output.
        fixed_batch: The batch size built into the graph, or None.
        images: Clean images in the model's input space and dtype, none of which calibrates; no labels.
        device: Where the model runs.
        threads: CPU threads for one call; None for one a core.
        precision: What the model computes in.
    """

    model: onnx.ModelProto = field(repr=False)
    source: InputSpec
    sink: OutputSpec
    fixed_batch: int | None
    images: Images = field(repr=False)
    device: Device = "auto"
    threads: int | None = None
    precision: Precision = "exact"

    @property
    def space(self) -> Space:
        """The model's input space."""
        return Space(self.source.value_range, self.source.datatype)

    def with_images(self, images: Images) -> Bench:
        """Return the bench with other images."""
        return replace(self, images=images)

    def with_model(self, model: onnx.ModelProto) -> Bench:
        """Return the bench with a model of other weights."""
        return replace(self, model=model)

    @contextmanager
    def asked(self, copies: Copies | None = None) -> Iterator[Asked]:
        """Have the model, and amplified copies of it, asked by the code that serves.

        Raises:
            UnfitModelError: If it cannot be loaded.
        """
        with ExitStack() as held:
            own = held.enter_context(self.open())
            if copies is None:
                yield Asked(partial(self.probabilities, own))
                return
            several = held.enter_context(self.open(copies.model, sink=self.sink_of(copies)))
            yield Asked(partial(self.probabilities, own), partial(self._by_each, several, copies.count))

    def sink_of(self, copies: Copies) -> OutputSpec:
        """Return the output of joined copies: their classes one after another."""
        classes = copies.count * self.sink.classes
        return self.sink.model_copy(update={"name": copies.output, "classes": classes, "labels": None})

    def _by_each(
        self, classifier: OnnxClassifier, count: int, images: Images
    ) -> Float32[np.ndarray, "n j k"]:
        outputs = np.concatenate([classifier.logits(some) for some in batches(images)])
        rows = outputs.reshape(len(images), count, self.sink.classes)
        return self.as_probabilities(rows)

    @contextmanager
    def open(
        self,
        model: onnx.ModelProto | None = None,
        layers: Sequence[Layer] = (),
        sink: OutputSpec | None = None,
    ) -> Iterator[OnnxClassifier]:
        """Load the model, or another in its place, by the code that serves.

        Args:
            model: One of other weights; None for its own.
            layers: Activations to return.
            sink: Its output, where that is another.

        Raises:
            UnfitModelError: If it cannot be loaded.
        """
        with OnnxClassifier.open(
            self.model if model is None else model,
            source=self.source,
            sink=sink or self.sink,
            fixed_batch=self.fixed_batch,
            overlays=self.images[:1],
            blend=BLEND_RULES["add"],
            device=self.device,
            threads=self.threads,
            precision=self.precision,
            layers=layers,
        ) as classifier:
            yield classifier

    def probabilities(self, classifier: OnnxClassifier, images: Images) -> Probabilities:
        """Return what a model answers to images, as probabilities."""
        parts = [classifier.logits(some) for some in batches(images)]
        return self.as_probabilities(np.concatenate(parts))

    def as_probabilities(self, outputs: Float32[np.ndarray, "*batch k"]) -> Probabilities:
        """Return a model's raw output as probabilities."""
        return softmax(outputs) if self.sink.kind == "logits" else outputs

    def predicted(self, classifier: OnnxClassifier, images: Images) -> Int64[np.ndarray, " n"]:
        """Return the class that a model gives to each image."""
        return predicted_classes(np.concatenate([classifier.logits(some) for some in batches(images)]))


@dataclass(frozen=True, eq=False)
class FittedOpinion:
    """A capability that costs passes, fitted: what serves, and whom it asks here.

    Attributes:
        opinion: What the artifact keeps.
        copies: Amplified copies of the model that it asks; None where it asks none.
    """

    bench: Bench
    opinion: Opinion
    copies: Copies | None = None

    @property
    def passes(self) -> int:
        """Forward passes an input, beside the one that gives its prediction."""
        return self.opinion.passes

    def scores(self, images: Images) -> Float64[np.ndarray, " n"]:
        """Return one score for each input."""
        with self.bench.asked(self.copies) as asked:
            return self.opinion.scores(images, predicted_classes(asked.model(images)), asked)


@dataclass(frozen=True)
class Capability:
    """A row of the table.

    Attributes:
        name: Its name.
        about: What it looks at, a clause.
        passes: Forward passes an input, beside the one that gives its prediction.
        needs_labels: Whether the clean images must be labelled.
        fit: Fits it on a bench, or says why the model does not allow it.
    """

    name: str
    about: str
    passes: int
    needs_labels: bool
    fit: Callable[[Bench], Fitted | Off]


def batches(images: Images) -> Iterator[Images]:
    """Yield images in portions that fit a device call; one, empty, of none."""
    for start in range(0, max(len(images), 1), _BATCH):
        yield images[start : start + _BATCH]
