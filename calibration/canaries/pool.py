"""The images that canaries are planted, measured and judged with, and how a model is asked about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from jaxtyping import Float32, Int64

from calibration.attacks.base import Attack, Images
from calibration.canaries.measuring import Asked
from calibration.canaries.stamps import Values
from calibration.errors import TooFewImagesError
from calibration.intake import ends_of, model_rows, rows_of
from calibration.options import CalibrateOptions
from calibration.progress import Progress
from calibration.scoring import answer_images
from calibration.split import Split
from calibration.subject import Subject
from guard.detection.entropy import softmax
from guard.detection.superimpose import BLEND_RULES
from guard.runtime.onnx_classifier import OnnxClassifier

__all__ = ["MOST_CLEAN", "MOST_TRIGGERED", "Pool", "lay_out_pool", "least_images"]

TRAINED: Final = 0.6
"""Share of the pool that copies are fine-tuned on, and the detector fitted; the rest is held out."""

MOST_FITTED: Final = 400
MOST_CLEAN: Final = 400
MOST_TRIGGERED: Final = 100


def least_images(to_certify: int) -> int:
    """Return the fewest images to fit on with which canaries can be judged, for that many to certify a rate.

    Examples:
        >>> least_images(299)
        748
    """
    return int(np.ceil(to_certify / (1 - TRAINED)))


@dataclass(frozen=True, eq=False)
class Pool:
    """The images, in the model's values, float32, channels first.

    Attributes:
        train: Copies are fine-tuned on these.
        train_classes: Class that the model gives to each.
        held: These judge a copy; boundaries are set on them, and triggers stamped on them.
        held_classes: Class that the model gives to each.
        held_labels: Their classes, or what the model says where none are given.
        labelled: Whether they were given.
        overlays: In an order in which any first N are even over the classes.
        overlay_classes: Class that the model gives to each.
        values: From the model's values to [0, 1] and back.
        classes: k.
    """

    subject: Subject
    options: CalibrateOptions
    train: Float32[np.ndarray, "t c h w"]
    train_classes: Int64[np.ndarray, " t"]
    held: Float32[np.ndarray, "d c h w"]
    held_classes: Int64[np.ndarray, " d"]
    held_labels: Int64[np.ndarray, " d"]
    labelled: bool
    overlays: Float32[np.ndarray, "m c h w"]
    overlay_classes: Int64[np.ndarray, " m"]
    values: Values
    classes: int

    def answers(self, model: onnx.ModelProto, rows: Images) -> np.ndarray:
        """Return a model's raw output on images, by ONNX Runtime."""
        with self._open(model, self.options.blend_rule.name) as classifier:
            batch = self.subject.batch
            parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
            return np.concatenate([classifier.logits(self.typed(part)) for part in parts])

    def ask(self, model: onnx.ModelProto, blend: str, rows: Images, progress: Progress) -> Asked:
        """Return a model's answers to images under all overlays, by the code that serves."""
        typed = self.typed(rows)
        with self._open(model, blend) as classifier:
            predicted = np.concatenate(
                [
                    classifier.logits(typed[start : start + self.subject.batch])
                    for start in range(0, len(typed), self.subject.batch)
                ]
            ).argmax(axis=1)
            outputs, bits = answer_images(
                classifier, typed, _as_it_is, len(self.overlays), self.subject.batch, progress
            )
        probabilities = softmax(outputs) if self.subject.sink.kind == "logits" else outputs
        return Asked(predicted, probabilities, bits)

    def stamped(self, attack: Attack) -> tuple[Images, Int64[np.ndarray, " r"]]:
        """Return held images that an attack applies to, stamped, and their classes."""
        rows = np.flatnonzero(attack.applies_to(self.held_classes))
        return self.values.stamp(attack, self.held[rows]), self.held_classes[rows]

    def typed(self, rows: Images) -> Images:
        """Return images as the model takes them: its layout and dtype."""
        return model_rows(rows, self.subject.signature)

    def _open(self, model: onnx.ModelProto, blend: str) -> OnnxClassifier:
        return OnnxClassifier.open(
            model,
            source=self.subject.prepare.source,
            sink=self.subject.sink,
            fixed_batch=self.subject.signature.fixed_batch,
            overlays=self.typed(self.overlays),
            blend=BLEND_RULES[blend],
            device=self.options.device,
            threads=self.options.threads,
            precision=self.options.precision,
        )


def lay_out_pool(
    subject: Subject,
    split: Split,
    predicted: Int64[np.ndarray, " n"],
    options: CalibrateOptions,
    to_certify: int,
    generator: np.random.Generator,
) -> Pool:
    """Part the images to fit on into those that copies learn from and those that judge them.

    Raises:
        TooFewImagesError: If too few are held out to set a boundary on.
    """
    needed = least_images(to_certify)
    if len(split.fit) < needed:
        raise TooFewImagesError(
            f"canaries take {needed} images besides those that calibrate and overlays, and there are "
            f"{len(split.fit)}; add {needed - len(split.fit)} images or more, or leave --canaries out",
            needed=needed,
            got=len(split.fit),
        )
    order = generator.permutation(split.fit)
    cut = min(round(TRAINED * len(order)), len(order) - to_certify)
    train, held = order[:cut], order[cut:]
    labels = subject.images.labels

    def rows(chosen: Int64[np.ndarray, " _"]) -> Images:
        return rows_of(subject.images.images[chosen], subject.prepare, subject.signature)

    return Pool(
        subject=subject,
        options=options,
        train=rows(train),
        train_classes=predicted[train],
        held=rows(held),
        held_classes=predicted[held],
        held_labels=(predicted if labels is None else labels)[held],
        labelled=labels is not None,
        overlays=rows(split.overlays),
        overlay_classes=predicted[split.overlays],
        values=Values(*ends_of(subject.prepare, subject.signature)),
        classes=subject.sink.classes,
    )


def _as_it_is(images: Images) -> Images:
    return images
