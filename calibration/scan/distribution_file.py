"""A patch distribution on disk: a folder with the generators' weights and, in JSON, everything else.

``distribution.json`` says what the patches are for, where they belong and how the generators are made;
``distribution.safetensors`` holds weights ``<member>.<name>`` and the two ends of the value range. Nothing is
pickled, and nothing read is run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import torch
from safetensors.numpy import load, save

from calibration.errors import DataError
from calibration.scan.patch_generator import Generator, PatchDistribution, Where

__all__ = ["RECORD", "WEIGHTS", "load_distribution", "save_distribution"]

RECORD, WEIGHTS = "distribution.json", "distribution.safetensors"

_FORMAT: Final = 1
_SIZES: Final = ("channels", "size", "chunk", "width")
_NUMBERS: Final = ("target", *_SIZES)
_LARGEST: Final = 65_536
"""No class, row, layer or patch is larger; a record that asks for more is damaged."""
_READ_ERRORS: Final = (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError, RecursionError)


def save_distribution(distribution: PatchDistribution, folder: Path) -> None:
    """Write a distribution into a folder, which is made if it is not there."""
    record = {
        "format": _FORMAT,
        **{name: getattr(distribution, name) for name in _NUMBERS},
        "noise": distribution.noise,
        "betas": distribution.betas,
        "where": distribution.where,
    }
    arrays = {"low": distribution.low, "high": distribution.high}
    for place, member in enumerate(distribution.members):
        arrays |= {f"{place}.{name}": np.array(value, order="C") for name, value in member.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    (folder / WEIGHTS).write_bytes(save(arrays))


def load_distribution(folder: Path) -> PatchDistribution:
    """Return the distribution that was written into a folder.

    Raises:
        DataError: If a file is missing or malformed, or the weights are not those of the generators.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record.get("format") != _FORMAT:
            raise ValueError(f"expected format {_FORMAT}")
        return _checked(record, load((folder / WEIGHTS).read_bytes()))
    except _READ_ERRORS as error:
        said = " ".join(str(error).split())
        raise DataError(
            f"{folder}: expected a distribution of patches; {type(error).__name__}: {said}"
        ) from error


def _checked(record: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> PatchDistribution:
    numbers = {name: _whole(record[name], name) for name in _NUMBERS}
    betas = tuple(float(beta) for beta in record["betas"])
    members = tuple(
        {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith(f"{place}.")}
        for place in range(len(betas))
    )
    for member in members:
        _require_weights(member, numbers)
    for name in ("low", "high"):
        if arrays[name].shape != (numbers["channels"],) or arrays[name].dtype != np.float32:
            raise ValueError(f"{name}: expected {numbers['channels']} float32 numbers")
    finite = all(np.isfinite(value).all() for value in arrays.values())
    if not finite:
        raise ValueError("arrays: expected finite numbers")
    noise = float(record["noise"])
    if not 0 <= noise < float("inf"):
        raise ValueError(f"noise: expected 0 or more, got {noise}")
    return PatchDistribution(
        **numbers,
        betas=betas,
        members=members,
        noise=noise,
        where=_where(record["where"]),
        low=arrays["low"],
        high=arrays["high"],
    )


def _whole(value: object, name: str) -> int:
    least = 1 if name in _SIZES else 0
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
        raise ValueError(f"{name}: expected a whole number from {least} up to {_LARGEST}, got {value!r}")
    return value


def _where(value: object) -> Where:
    if value == "anywhere":
        return "anywhere"
    if value == "corners":
        return "corners"
    if isinstance(value, list) and len(value) == 2:
        return _whole(value[0], "row"), _whole(value[1], "column")
    raise ValueError(f"where: expected 'anywhere', 'corners' or a row and a column, got {value!r}")


def _require_weights(member: Mapping[str, np.ndarray], numbers: Mapping[str, int]) -> None:
    with torch.device("meta"):  # shapes alone
        net = Generator(numbers["channels"], numbers["size"], chunk=numbers["chunk"], width=numbers["width"])
    expected = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    got = {name: value.shape for name, value in member.items()}
    if got != expected:
        odd = min(name for name in expected | got if expected.get(name) != got.get(name))
        raise ValueError(f"weights {odd}: expected {expected.get(odd)}, got {got.get(odd)}")
