"""Names of the classes, which clients are told where they ask for a classification."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from calibration.data import ImageSet
from calibration.errors import OptionError

__all__ = ["class_names_of"]

_LONGEST: Final = 200
_SHOWN: Final = 40


def class_names_of(
    given: Path | tuple[str, ...] | None, images: ImageSet, classes: int
) -> tuple[str, ...] | None:
    """Return the name of each class, in the model's order; None where they are not known.

    Args:
        given: The names, or a file with one a line; None for the names of class folders, if they are names at
            all and as many as the classes.
        images: That were read.
        classes: Of the model.

    Raises:
        OptionError: If the file cannot be read, or does not name each class.
    """
    if isinstance(given, Path):
        return _read(given, classes)
    if given is not None:
        return given
    names = images.class_names
    numbered = names is not None and all(name.isascii() and name.isdecimal() for name in names)
    return names if names is not None and len(names) == classes and not numbered else None


def _read(file: Path, classes: int) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in file.read_text("utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"--class-names {file} cannot be read ({error}); give a text file in UTF-8"
        ) from error
    if len(names) != classes:
        raise OptionError(
            f"--class-names {file} has {len(names)} lines, expected {classes}, one for each class"
        )
    for number, name in enumerate(names, start=1):
        if not name or len(name) > _LONGEST or not name.isprintable():
            raise OptionError(
                f"--class-names {file}, line {number}: expected 1 to {_LONGEST} printable characters, got "
                f"{name[:_SHOWN]!r}; give each class its name on a line of its own"
            )
    return names
