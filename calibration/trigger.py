"""Attacks on disk: a folder with ``trigger.json`` and, where there are arrays, ``trigger.npz``.

Nothing is pickled. ``trigger.json`` holds the attack's name in the table and its parameters; an array is a
reference into ``trigger.npz``, and an attack that wraps another holds it as such:

::

    {"format": 1,
     "attack": "all_to_all",
     "parameters": {"classes": 10,
                    "trigger": {"attack": "wanet",
                                "parameters": {"field": {"array": "trigger.field"}, ...}}}}

What an attack needs only to poison, such as perturbed training images, is left out: a loaded attack stamps
as the saved one does, and says so if it is asked for more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from calibration.annotated import require_fitting
from calibration.attacks.base import Attack
from calibration.attacks.table import ATTACKS
from calibration.errors import DataError
from guard.artifact.reader import NPY_ERRORS
from guard.errors import UnsafeArrayError

__all__ = ["ARRAYS", "PARAMETERS", "load_trigger", "save_trigger"]

PARAMETERS, ARRAYS = "trigger.json", "trigger.npz"
FORMAT = 1

Arrays = dict[str, np.ndarray]

LARGEST_BYTES = 2**30
"""What a trigger's arrays may come to, unpacked: a small file of zeros can hold more than any memory."""

_READ_ERRORS = (*NPY_ERRORS, RuntimeError)
"""What numpy and zipfile raise over a file that holds no arrays, or damaged or encrypted ones."""

_MAKE_ERRORS = (KeyError, TypeError, ValueError, ArithmeticError, RecursionError)
"""What comes of a record that is none, beside what an attack itself refuses."""


def save_trigger(attack: Attack, folder: Path) -> None:
    """Write an attack into a folder, which is made if it is not there.

    Args:
        attack: One of the table's.
        folder: Gets ``trigger.json``, and ``trigger.npz`` if the attack holds arrays.

    Raises:
        ValueError: If the attack is not one of the table's, or holds something that is not saved.
    """
    arrays: Arrays = {}
    record = {"format": FORMAT, **_encode_attack(attack, "", arrays)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PARAMETERS).write_text(json.dumps(record, indent=2) + "\n")
    (folder / ARRAYS).unlink(missing_ok=True)
    if arrays:
        np.savez_compressed(folder / ARRAYS, **arrays)  # type: ignore[arg-type]


def load_trigger(folder: Path) -> Attack:
    """Return the attack that was written into a folder.

    Raises:
        DataError: If a file is missing, malformed or too large, names an attack that is not in the table,
            or holds what that attack does not: another type or shape, or something infinite.
        UnsafeArrayError: If an array holds pickled objects.
    """
    try:
        record = json.loads((folder / PARAMETERS).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder / PARAMETERS}: expected a trigger's parameters; {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f"{folder / PARAMETERS}: expected format {FORMAT}; save the trigger again")
    try:
        return _decode_attack(record, _read_arrays(folder / ARRAYS))
    except _MAKE_ERRORS as error:
        raise DataError(f"{folder / PARAMETERS}: not a trigger that can be loaded; {error}") from error


def _encode_attack(attack: Attack, path: str, arrays: Arrays) -> dict[str, Any]:
    if attack.name not in ATTACKS:
        raise ValueError(f"attack {attack.name!r} is not in the table; there are {', '.join(ATTACKS)}")
    parameters = {
        field.name: _encode(getattr(attack, field.name), f"{path}{field.name}", arrays)
        for field in fields(attack)  # type: ignore[arg-type]
        if field.metadata.get("saved", True)
    }
    return {"attack": attack.name, "parameters": parameters}


def _encode(value: object, path: str, arrays: Arrays) -> object:
    if isinstance(value, np.generic):
        return _encode(value.item(), path, arrays)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        arrays[path] = value
        return {"array": path}
    if isinstance(value, Attack):
        return _encode_attack(value, f"{path}.", arrays)
    if isinstance(value, Mapping):
        return {"mapping": {key: _encode(part, f"{path}.{key}", arrays) for key, part in value.items()}}
    if isinstance(value, tuple):
        return [_encode(part, f"{path}.{place}", arrays) for place, part in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{path}: expected numbers, text, tuples, arrays or attacks, got {type(value).__name__}")


def _decode_attack(record: Mapping[str, Any], arrays: Arrays) -> Attack:
    name, parameters = record["attack"], record["parameters"]
    if name not in ATTACKS:
        raise ValueError(f"attack {name!r} is not in the table; there are {', '.join(ATTACKS)}")
    if not isinstance(parameters, dict):
        raise ValueError(f"parameters: expected an object, got {type(parameters).__name__}")
    values = {key: _decode(value, arrays) for key, value in parameters.items()}
    kind = ATTACKS[name].load()
    require_fitting(kind, values)
    attack: Attack = kind(**values)
    return attack


def _decode(value: object, arrays: Arrays) -> object:
    if isinstance(value, list):
        return tuple(_decode(part, arrays) for part in value)
    if not isinstance(value, dict):
        return value
    if "attack" in value:
        return _decode_attack(value, arrays)
    if isinstance(value.get("mapping"), dict):
        return {key: _decode(part, arrays) for key, part in value["mapping"].items()}
    if value["array"] not in arrays:
        raise ValueError(f"array {value['array']!r} is not in {ARRAYS}")
    return arrays[value["array"]]


def _read_arrays(path: Path) -> Arrays:
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            size = sum(member.file_size for member in stored.zip.infolist())
            if size > LARGEST_BYTES:
                raise DataError(f"{path}: expected up to {LARGEST_BYTES} bytes of arrays, got {size}")
            return dict(stored)
    except _READ_ERRORS as error:
        if "allow_pickle" in str(error):
            raise UnsafeArrayError(f"{path}: holds pickled objects, which are never read") from error
        raise DataError(f"{path}: expected a trigger's arrays; {error}") from error
