"""Every error the workshop raises on purpose; the one who runs the command fixes them all.

::

    GuardError
    └── CalibrationError
        ├── OptionError            a flag is wrong, or contradicts another or the model
        ├── DataError              the images or labels cannot be read, or do not fit the model
        ├── TooFewImagesError      not enough images for the guarantee that was asked for
        └── NoBoundaryError        no boundary could reject anything

A model that is no image classifier is :class:`guard.errors.UnfitModelError`, as when serving.
A message names the subject, what was expected, what came, and what to do next.
"""

from __future__ import annotations

from guard.errors import GuardError

__all__ = ["CalibrationError", "DataError", "NoBoundaryError", "OptionError", "TooFewImagesError"]


class CalibrationError(GuardError):
    """Base of every error the workshop raises on purpose."""


class OptionError(CalibrationError):
    """A flag is wrong, or contradicts another flag or the model."""


class DataError(CalibrationError):
    """The images or labels cannot be read, or do not fit the model."""


class TooFewImagesError(CalibrationError):
    """There are not enough images for the guarantee that was asked for.

    Attributes:
        needed: Images needed.
        got: Images there are.
    """

    def __init__(self, message: str, *, needed: int, got: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.got = got


class NoBoundaryError(CalibrationError):
    """Every boundary would be at or below 0 bits, where no entropy can be, so nothing would be rejected."""
