"""Capabilities that cost passes, tried as second opinions: each on, or off with its reason.

They decide nothing, so that the certificate is none of their business. What each is fitted on and what its
p-values compare with are different images all the same, and few of either, so that the cost stays well below
that of the blends: a rate of 1 % takes a hundred scores to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int64

from calibration.capabilities.base import Bench, FittedOpinion
from calibration.capabilities.switch import Canary, Switched, switch_on
from calibration.capabilities.table import CAPABILITIES
from calibration.options import CalibrateOptions
from calibration.progress import Progress
from calibration.split import Split
from calibration.subject import Subject
from guard.arrays import Images
from guard.artifact import OpinionRecord, Opinions, SecondOpinion
from guard.detection.capabilities.opinion import OPINIONS, OpinionName
from guard.errors import UnfitModelError
from guard.runtime.onnx_classifier import ORT_ERRORS

__all__ = ["Judged", "judge_capabilities", "opinion_rows"]

LEAST_IMAGES: Final = 200
MOST_IMAGES: Final = 400
"""To fit on, and as many to compare with, a tenth of all images in between."""

MOST_BYTES: Final = 2**31 - 1
"""Of amplified copies, which are one ONNX file with its weights inside."""

_FAILURES: Final[tuple[type[Exception], ...]] = (*ORT_ERRORS, UnfitModelError)


@dataclass(frozen=True, eq=False)
class Judged:
    """What came of it.

    Attributes:
        records: Every capability that was tried, on or off.
        opinions: Those that are on.
    """

    records: tuple[OpinionRecord, ...] = ()
    opinions: Opinions | None = None

    def lines(self) -> Iterable[str]:
        """Yield what a person reads, a line for each."""
        for one in self.records:
            seen = ""
            if one.canary_aurocs:
                seen = f", AUROC on canaries {', '.join(f'{auroc:.2f}' for auroc in one.canary_aurocs)}"
            state = f"on, {one.passes} passes{seen}" if one.on else f"off: {one.why_off}"
            yield f"{one.name} is {state}"


def judge_capabilities(
    subject: Subject,
    split: Split,
    options: CalibrateOptions,
    probe: Images,
    generator: np.random.Generator,
    canaries: Sequence[Canary] = (),
) -> Judged:
    """Fit and try each capability that is asked for.

    Args:
        subject: Model and images.
        split: Which images serve what.
        options: Of the calibration.
        probe: Images whose scores are asked again on loading.
        generator: Draws the images.
        canaries: Backdoored copies of the model to try them on too.
    """
    fit, references = opinion_rows(split, generator, options.frr)
    images = subject.images.images
    bench = Bench(
        model=subject.source.model,
        source=subject.prepare.source,
        sink=subject.sink,
        fixed_batch=subject.signature.fixed_batch,
        images=subject.prepare(images[fit]),
        device=options.device,
        threads=options.threads,
        precision=options.precision,
    )
    clean = subject.prepare(images[references])
    names = [name for name in OPINIONS if name in options.capabilities]
    found = []
    with Progress(sum(_passes(name) for name in names), "second opinions", options.quiet) as progress:
        for name in names:
            found.append(_judged(name, bench, clean, probe, options.frr, canaries))
            progress.step(_passes(name))
    on = [(opinion, fitted) for _, opinion, fitted in found if opinion is not None and fitted is not None]
    copies = [fitted.copies.model for _, fitted in on if fitted.copies is not None]
    return Judged(
        tuple(record for record, _, _ in found),
        Opinions(tuple(opinion for opinion, _ in on), copies[0] if copies else None),
    )


def opinion_rows(
    split: Split, generator: np.random.Generator, frr: float
) -> tuple[Int64[np.ndarray, " f"], Int64[np.ndarray, " r"]]:
    """Return rows to fit on and rows to compare with, disjoint; of the former those that fit the detector.

    Args:
        split: Which images serve what.
        generator: Draws them.
        frr: The rate that p-values are to reach.
    """
    total = len(split.overlays) + len(split.fit) + len(split.calibration)
    count = min(MOST_IMAGES, max(LEAST_IMAGES, total // 10))
    rest = generator.permutation(split.calibration)
    fit = generator.permutation(split.fit)[:count]
    if not len(fit):
        half = min(count, len(rest) // 2)
        fit, rest = rest[:half], rest[half:]
    return fit, rest[: max(count, _least_references(frr))]


def _passes(name: OpinionName) -> int:
    return CAPABILITIES[name].passes


def _least_references(frr: float) -> int:
    """Return how many clean scores a p-value takes to get down to a rate."""
    return math.ceil(1 / frr) - 1


def _judged(
    name: OpinionName,
    bench: Bench,
    clean: np.ndarray,
    probe: np.ndarray,
    frr: float,
    canaries: Sequence[Canary],
) -> tuple[OpinionRecord, SecondOpinion | None, FittedOpinion | None]:
    row = CAPABILITIES[name]

    def off(why: str, aurocs: tuple[float, ...] = ()) -> tuple[OpinionRecord, None, None]:
        return OpinionRecord(name=name, passes=row.passes, canary_aurocs=aurocs, why_off=why), None, None

    least = _least_references(frr)
    if len(clean) < least:
        return off(f"it takes {least} clean images that it is not fitted on, and there are {len(clean)}")
    try:
        switched: Switched = switch_on(row, bench, frr, canaries)
        fitted = switched.fitted
        if not isinstance(fitted, FittedOpinion):
            return off(switched.reason, switched.aurocs)
        if fitted.copies is not None and fitted.copies.model.ByteSize() > MOST_BYTES:
            return off("its amplified copies would take more than 2 GiB", switched.aurocs)
        scores, probed = np.sort(fitted.scores(clean)), fitted.scores(probe)
    except _FAILURES as error:
        return off(f"it fails on this model ({(str(error).splitlines() or ['no reason given'])[0]})")
    if not np.isfinite(scores).all() or not np.isfinite(probed).all():
        return off("some clean inputs have no finite score", switched.aurocs)
    record = OpinionRecord(
        name=name,
        passes=fitted.passes,
        n_fitted=len(bench.images),
        n_clean=len(scores),
        canary_aurocs=switched.aurocs,
    )
    return record, SecondOpinion(name, fitted.opinion, scores, probed), fitted
