"""Every error the workshop raises on purpose; the one who runs the command fixes them all.

::

    GuardError
    └── CalibrationError
        ├── OptionError            a flag is wrong, or contradicts another or the model
        ├── DataError              the images or labels cannot be read, or do not fit the model
        ├── TooFewImagesError      not enough images for the guarantee that was asked for
        ├── NoBoundaryError        no boundary could reject anything
        ├── ClusterError           a cluster's workers cannot be had, or are lost again and again
        └── ModelError             the model cannot be taken in or given back
            ├── UnsupportedOperatorError   its graph holds operators, or forms of them, that are not known
            ├── UnsafeModelError           reading its file could run code
            └── ParityError                two forms of one model do not agree

A model that is no image classifier is :class:`guard.errors.UnfitModelError`, as when serving.
A message names the subject, what was expected, what came, and what to do next.
"""

from __future__ import annotations

from guard.errors import GuardError

__all__ = [
    "CalibrationError",
    "ClusterError",
    "DataError",
    "ModelError",
    "NoBoundaryError",
    "OptionError",
    "ParityError",
    "TooFewImagesError",
    "UnsafeModelError",
    "UnsupportedOperatorError",
]


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


class ClusterError(CalibrationError):
    """A cluster's workers cannot be had, are not fit for the work, or are lost again and again."""


class ModelError(CalibrationError):
    """The model cannot be made trainable, or cannot be written back."""


class UnsupportedOperatorError(ModelError):
    """The graph holds operators, or forms of them, that cannot be imported.

    Attributes:
        operators: Their names, each once, with the domain where it is not ONNX's own.
    """

    def __init__(self, message: str, *, operators: tuple[str, ...]) -> None:
        super().__init__(message)
        self.operators = operators


class UnsafeModelError(ModelError):
    """Reading the file could run code that it holds."""


class ParityError(ModelError):
    """Two forms of one model, such as a module and its ONNX file, do not give the same answers."""
