"""Tamper with an artifact the way an attacker who may write its directory would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from guard.artifact.manifest import sha256_of

Json = dict[str, Any]


def edit_json(path: Path, change: Callable[[Json], None]) -> None:
    """Change a JSON file in place; its hash in the manifest stays what it was."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def replace_file(directory: Path, name: str, data: bytes) -> None:
    """Put other content into a file, and its hash into the manifest, so that only the content is wrong."""
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    record = {"sha256": sha256_of(data), "bytes": len(data)}
    edit_json(directory / "manifest.json", lambda manifest: manifest["files"].update({name: record}))


def edit_profile(directory: Path, change: Callable[[Json], None]) -> None:
    """Change ``profile.json``, and its hash in the manifest."""
    edit_json(directory / "profile.json", change)
    replace_file(directory, "profile.json", (directory / "profile.json").read_bytes())


def replace_model(directory: Path, model: onnx.ModelProto) -> None:
    """Put another model in, with its hash in the manifest and in the profile."""
    data = model.SerializeToString()
    replace_file(directory, "model.onnx", data)
    edit_profile(directory, lambda profile: profile.update(model_sha256=sha256_of(data)))


def move_out(tensor: onnx.TensorProto, location: str, **entries: str) -> bytes:
    """Make a tensor's data external, at ``location``, and return the data."""
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return data
