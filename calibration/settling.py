"""What a calibration is made with, settled before anything is scored: detector, images by use, check."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from calibration.canaries.choice import Choice
from calibration.canary_choice import as_chosen, choose_by_canaries, images_for_canaries
from calibration.detector_choice import choose_detector
from calibration.options import CalibrateOptions
from calibration.progress import StageClock
from calibration.split import Split, split_images
from calibration.subject import Subject
from guard.detection.measurements import Statistic

__all__ = ["Settled", "settle"]


@dataclass(frozen=True, eq=False)
class Settled:
    """What is settled.

    Attributes:
        options: As asked for, but for blend rule and N where canaries chose them.
        split: Which images serve what.
        statistics: To fuse, but for what looks inside the model; ``strip`` alone for the plain detector.
        why_strip: Why the detector is STRIP where the choice was left open; empty else.
        canaries: What they chose; None where none were asked for.
    """

    options: CalibrateOptions
    split: Split
    statistics: tuple[Statistic, ...]
    why_strip: str
    canaries: Choice | None


def settle(
    subject: Subject,
    predicted: Int64[np.ndarray, " n"],
    options: CalibrateOptions,
    generator: np.random.Generator,
    clock: StageClock,
) -> Settled:
    """Choose the detector, split the images, and have canaries choose the check where they are asked for.

    Args:
        subject: Model and images.
        predicted: Class that the model gives to each image.
        options: As asked for.
        generator: Draws what is random.
        clock: Told of the stages ``split`` and ``canaries``.

    Raises:
        GuardError: What was asked for cannot be had with these images or this model.
    """
    detector = choose_detector(options, len(subject.images), subject.sink.classes)
    n_fit = images_for_canaries(options, len(subject.images), detector.n_fit)
    with clock.stage("split"):
        split = split_images(
            subject.images.images,
            options.overlays,
            generator,
            n_fit=n_fit,
            predicted=predicted if n_fit else None,
        )
    canaries = None
    if options.wants_canaries:
        with clock.stage("canaries"):
            canaries = choose_by_canaries(subject, split, predicted, options, generator, fused=detector.fused)
    taken = as_chosen(options, split, canaries, fused=detector.fused)
    return Settled(*taken, detector.why_not, canaries)
