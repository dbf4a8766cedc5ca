"""Which detector a calibration makes, and why not the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from calibration.errors import OptionError, TooFewImagesError
from calibration.options import CalibrateOptions
from calibration.threshold import minimum_images

__all__ = ["LEAST_TO_FIT", "Choice", "choose_detector", "images_to_certify"]

LEAST_TO_FIT: Final = 300
"""Images that the fused detector takes besides overlays and those that certify the rate."""

MOST_TO_FIT: Final = 2000
LEAST_OVERLAYS: Final = 8
MOST_TABLE_BYTES: Final = 64 * 2**20


@dataclass(frozen=True)
class Choice:
    """What is made.

    Attributes:
        fused: Whether the fused detector is; else STRIP.
        n_fit: Images that it is fitted on.
        why_not: Why STRIP was taken where the choice was left open; empty else.
    """

    fused: bool
    n_fit: int = 0
    why_not: str = ""


def images_to_certify(options: CalibrateOptions) -> int:
    """Return the fewest calibration images that the rates asked for take."""
    if options.threshold != "conformal":
        return 2
    return minimum_images(options.lowest_frr, options.delta)


def choose_detector(options: CalibrateOptions, n_images: int, classes: int) -> Choice:
    """Return what ``--detector`` comes to with these images and this model.

    Raises:
        TooFewImagesError: If the fused detector is asked for and there are too few images.
        OptionError: If it is asked for and cannot be for another reason.
    """
    if options.detector == "strip":
        return Choice(fused=False)
    spare = n_images - options.overlays - images_to_certify(options)
    why_not = _why_not(options, classes)
    if why_not and options.detector == "fused":
        raise OptionError(f"--detector fused: {why_not}; or choose --detector strip")
    needed = n_images - spare + LEAST_TO_FIT
    if not why_not and spare < LEAST_TO_FIT:
        why_not = f"it takes {needed} images, and there are {n_images}"
        if options.detector == "fused":
            raise TooFewImagesError(
                f"--detector fused: {why_not} ({LEAST_TO_FIT} to fit it on, {options.overlays} overlays, the "
                f"rest to certify the rate); add images, or choose --detector strip",
                needed=needed,
                got=n_images,
            )
    if why_not:
        return Choice(fused=False, why_not=why_not)
    return Choice(fused=True, n_fit=min(spare, max(LEAST_TO_FIT, n_images // 4), MOST_TO_FIT))


def _why_not(options: CalibrateOptions, classes: int) -> str:
    if options.threshold != "conformal":
        return "its boundary is conformal, and --threshold normal was asked for"
    if options.overlays < LEAST_OVERLAYS:
        return f"it takes {LEAST_OVERLAYS} overlays at least, and --overlays is {options.overlays}"
    table = 4 * classes * classes * options.overlays
    if table > MOST_TABLE_BYTES:
        return (
            f"its table of what {classes} classes answer under {options.overlays} overlays would have "
            f"{table / 2**20:.0f} MiB, and the most is {MOST_TABLE_BYTES // 2**20}"
        )
    return ""
