"""Reads ``torch.export`` archives (``.pt2``) without running what they may hold.

``torch.export.load`` is not safe on a file from elsewhere. It unpickles tensors and objects that the archive
marks so, and sample inputs whatever they hold; it evaluates symbolic sizes as Python expressions and guards
as Python code; operators are looked up by dotted name anywhere under ``torch``, from where the operating
system is in reach; compiled kernels are loaded as shared libraries.

So the archive is not given to it. A new one is made of the few records that a network needs, each checked:
the graph (operators of ATen and arithmetic only, sizes that are plain sums and products, no code, no notes)
and tensors as raw bytes. What is not on that list is left behind; what cannot be left behind is refused.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any, Final, NoReturn

import torch
from torch.export import ExportedProgram

from calibration.errors import UnsafeModelError
from guard.errors import UnfitModelError

__all__ = ["read_archive", "safe_archive"]

_GRAPH: Final = "models/model.json"
_WEIGHTS: Final = "data/weights/"
_CONSTANTS: Final = "data/constants/"
_SAMPLES: Final = "data/sample_inputs/model.pt"
_CONFIGS: Final = {_WEIGHTS: "model_weights_config.json", _CONSTANTS: "model_constants_config.json"}
_PLAIN: Final[tuple[str, ...]] = ("archive_format", "archive_version", "byteorder", ".data/version")

_OPERATOR: Final = re.compile(
    r"torch\.ops\.aten\.(?!(from_file|save|_print|warn)\b)\w+(\.\w+)?"  # those reach beyond the graph
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(floor|ceil|trunc|sqrt)"
    r"|torch\.sym_(int|float|min|max|not|ite|sum)"
)
_SYMBOL: Final = re.compile(r"Symbol\('[suz]\d+'(, (positive|integer|nonnegative)=True)*\)")
_FUNCTION: Final = re.compile(
    r"[suz]\d+|Add|Mul|Pow|Integer|Rational|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|TruncToInt"
)
_POWER: Final = re.compile(r"\bPow\b")
_SMALL_POWER: Final = re.compile(r"\([suz]\d+,\s*(Integer\()?-?\d\)?\)")
"""A size to the power of one digit; towers of powers take for ever to compute."""
_EXPRESSION: Final = re.compile(r"[\w\s+*/(),<>=%-]*")
_STRUCTURE: Final = re.compile(r"builtins\.(tuple|list|dict)")
_FORBIDDEN: Final = frozenset(
    {"as_custom_obj", "as_graph", "as_operator", "as_complex", "as_nested_tensors", "custom_obj", "hoo"}
)
"""Kinds of arguments that a network has no need of."""

_MALFORMED: Final = (
    zipfile.BadZipFile, AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError
)  # fmt: skip
"""What reading a damaged archive raises: a wrong checksum, encryption, JSON of another structure."""


def read_archive(data: bytes, where: str) -> ExportedProgram:
    """Load a ``.pt2`` archive.

    Args:
        data: Content of the file.
        where: Its name, for errors.

    Raises:
        UnsafeModelError: If loading it would need code from it.
        UnfitModelError: If it is no archive of one exported program.
    """
    clean = safe_archive(data, where)
    try:
        return torch.export.load(io.BytesIO(clean))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnfitModelError(f"{where} cannot be loaded: {reason}; export the model again") from error


def safe_archive(data: bytes, where: str) -> bytes:
    """Return an archive of the graph and the tensors alone, all of them checked.

    Raises:
        UnsafeModelError: If something that cannot be left out would run code.
        UnfitModelError: If it is no archive of one exported program.
    """
    try:
        return _zipped(_kept(_records(data, where), where))
    except _MALFORMED as error:
        raise UnfitModelError(
            f"{where} is no sound torch.export archive ({type(error).__name__}: {error}); export the model "
            f"again"
        ) from error


def _kept(records: dict[str, bytes], where: str) -> dict[str, bytes]:
    graph = _checked_graph(_json(records, _GRAPH, where), where)
    kept = {name: records[name] for name in _PLAIN if name in records}
    kept[_GRAPH] = json.dumps(graph).encode()
    kept[_SAMPLES] = b""
    for folder, config in _CONFIGS.items():
        kept |= _tensors(records, folder, config, where)
    return kept


def _records(data: bytes, where: str) -> dict[str, bytes]:
    """Return the archive's records without the folder around them."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile as error:
        raise UnfitModelError(f"{where} is no torch.export archive: {error}") from error
    with archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise UnfitModelError(
                f"{where} is compressed, and torch.export archives are not; export it again"
            )
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    if records.get("archive_format", b"").strip() != b"pt2" or _GRAPH not in records:
        raise UnfitModelError(
            f"{where} is no archive of one exported program; expected what torch.export.save writes today"
        )
    if any(name.startswith("data/aotinductor/") for name in records):
        _refuse(where, "holds compiled kernels, which are programs of their own")
    return records


def _json(records: dict[str, bytes], name: str, where: str) -> Any:
    try:
        return json.loads(records[name])
    except (KeyError, ValueError) as error:
        raise UnfitModelError(f"{where}: {name} is missing or is no JSON; export the model again") from error


def _checked_graph(model: Any, where: str) -> Any:
    """Return the graph without code and notes, once nothing in it can run code."""
    model["guards_code"] = []
    for part in _parts(model):
        if "target" in part and "inputs" in part:
            part["metadata"] = {}
        for key, value in part.items():
            _check(key, value, where)
    model["graph_module"]["metadata"] = {}
    return model


def _check(key: str, value: Any, where: str) -> None:
    if key == "target" and isinstance(value, str) and not _OPERATOR.fullmatch(value):
        _refuse(where, f"calls {value!r}, which is no operator of ATen on tensors")
    if key == "expr_str" and not _is_plain_expression(value):
        _refuse(where, f"has a size {value!r} that is more than arithmetic")
    if key in {"in_spec", "out_spec"} and isinstance(value, str) and not _is_plain_structure(value):
        _refuse(where, "takes or gives something other than tensors in tuples")
    if key in _FORBIDDEN and value not in (None, "", [], {}):
        _refuse(where, f"holds an argument of the kind {key!r}")


def _is_plain_expression(text: Any) -> bool:
    if not isinstance(text, str):
        return False
    bare = _SYMBOL.sub("s0", text)
    words = re.findall(r"[A-Za-z_]\w*", bare)
    plain = bool(_EXPRESSION.fullmatch(bare)) and all(_FUNCTION.fullmatch(word) for word in words)
    return (
        plain and "**" not in bare and all(_SMALL_POWER.match(bare, at.end()) for at in _POWER.finditer(bare))
    )


def _is_plain_structure(text: str) -> bool:
    if not text:
        return True
    try:
        parts = list(_parts(json.loads(text)))
    except ValueError:
        return False
    types = [part.get("type") for part in parts]
    return all(name is None or _STRUCTURE.fullmatch(str(name)) for name in types)


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a JSON value, however deep."""
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from _parts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _parts(part)


def _tensors(records: dict[str, bytes], folder: str, config: str, where: str) -> dict[str, bytes]:
    """Return the records of a folder's tensors, all of them raw bytes."""
    entries = _json(records, folder + config, where)
    kept = {folder + config: records[folder + config]}
    for name, entry in entries["config"].items():
        path = str(entry["path_name"])
        raw = re.fullmatch(r"(weight|tensor)_\d+", path)
        if entry.get("use_pickle") is not False or not raw or folder + path not in records:
            _refuse(where, f"keeps {name!r} as a pickle or an object, not as a plain tensor")
        kept[folder + path] = records[folder + path]
    return kept


def _zipped(records: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def _refuse(where: str, reason: str) -> NoReturn:
    raise UnsafeModelError(
        f"{where} {reason}, and loading that could run code; give the model as ONNX, or as a factory with "
        f"safetensors weights"
    )
