"""The job: an artifact in, a model of a Triton model repository out."""

from __future__ import annotations

import json
import os
import re
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

import guard
from guard.artifact import Artifact, Profile
from guard.artifact.writer import place_next_version
from guard.detection.threshold import Policy
from guard.errors import ArtifactError, SettingsError, UnfitModelError
from guard.export import triton_model
from guard.export.guarded_graph import build_guarded_graph
from guard.export.parity import Parity, check_parity
from guard.export.triton_config import CONFIG_NAME, Backend, check_same_contract, config_text
from guard.export.triton_readme import README_NAME, readme_text
from guard.repository import find_versions
from guard.runtime.loader import RuntimeOptions, load_model

__all__ = ["RECORD_NAME", "Exported", "TritonOptions", "export_triton"]

RECORD_NAME: Final = "guard.json"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_FILE_MODE = 0o640


@dataclass(frozen=True)
class TritonOptions:
    """What is exported, how and where to.

    Attributes:
        artifact: ``<repository>/<model>/<version>``.
        out: Triton's model repository; made if it is not there.
        name: Name of the model in Triton; empty for its name in the guard's repository.
        policy: ``enforce`` withholds the answers to what is not accepted, ``flag`` gives them all.
        backend: What runs the graph in Triton.
        max_batch_size: Most rows of a batch.
        max_batch_pairs: Rows that one pass of the model is filled up to, in a full batch.
    """

    artifact: Path
    out: Path
    name: str = ""
    policy: Policy = Policy.ENFORCE
    backend: Backend = "onnxruntime"
    max_batch_size: int = 8
    max_batch_pairs: int = 64


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        directory: ``<out>/<name>/<version>``.
        parity: How the graph compares with the sidecar.
        n_overlays: N.
        detector: Which score decides.
    """

    directory: Path
    parity: Parity
    n_overlays: int
    detector: str


def export_triton(options: TritonOptions) -> Exported:
    """Put an artifact's model and check into one graph, compare it with the sidecar, and write it for Triton.

    Nothing is written unless the graph says what the sidecar says. A version that is there is never
    touched: the next one is written, whole or not at all.

    Raises:
        ArtifactError: If the artifact is damaged, cannot be wrapped or not be written, or what is in ``out``
            under this name is no export with the same tensors.
        SettingsError: If an option is out of its range.
    """
    name = _checked_name(options)
    held: list[Artifact] = []

    def approve(artifact: Artifact) -> None:
        _check_exportable(artifact)
        held.append(artifact)

    model = load_model(name, options.artifact, RuntimeOptions(device="cpu"), approve=approve)
    try:
        [artifact] = held
        config = config_text(
            name, artifact.profile, backend=options.backend, max_batch_size=options.max_batch_size
        )
        model_directory = options.out / name
        _check_place(model_directory, config)
        guarded = build_guarded_graph(
            artifact,
            policy=options.policy,
            overlays_per_pass=max(1, options.max_batch_pairs // options.max_batch_size),
        )
        parity = check_parity(guarded, artifact, model.classifier, model.detector, options.policy)
    finally:
        model.close()
    files = {"model.onnx": _bytes_of(guarded), RECORD_NAME: _record(artifact, options, parity)}
    if options.backend == "python":
        files["model.py"] = Path(triton_model.__file__).read_bytes()
    directory = _write(model_directory, config, readme_text(name, artifact.profile, options.backend), files)
    check = artifact.profile.check
    return Exported(directory, parity, check.n_overlays, check.detector)


def _check_exportable(artifact: Artifact) -> None:
    precision = artifact.profile.check.precision
    if precision != "exact":
        raise UnfitModelError(
            f"{artifact.directory}: calibrated in precision {precision!r}, which `guard serve` can serve in, "
            f"but which a graph does not hold to; calibrate with --precision exact"
        )
    if "BF16" in {artifact.profile.input.datatype, artifact.profile.output.datatype}:
        raise UnfitModelError(
            f"{artifact.directory}: the model takes or gives bfloat16, which `guard serve` can serve, but "
            f"which is not exported; export the model in FP32 or FP16, and calibrate it"
        )


def _checked_name(options: TritonOptions) -> str:
    name = options.name or options.artifact.resolve().parent.name
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"name {name!r} cannot be a model's in Triton; expected letters, digits, '_', '-' and '.': "
            f"give --name"
        )
    for flag, value in (
        ("--max-batch-size", options.max_batch_size),
        ("--max-batch-pairs", options.max_batch_pairs),
    ):
        if value < 1:
            raise SettingsError(f"{flag} is {value}, expected at least 1")
    if options.policy is Policy.MONITOR:
        raise SettingsError("policy 'monitor' has no meaning in one graph; expected 'enforce' or 'flag'")
    return name


def _check_place(model_directory: Path, config: str) -> None:
    """See that a version can go there, before the work is done."""
    path = model_directory / CONFIG_NAME
    try:
        present = path.read_text() if path.exists() else ""
        versions = find_versions(model_directory)
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{model_directory} cannot be read ({error}); check --out") from error
    if present:
        check_same_contract(present, config, str(path))
    elif versions:
        raise ArtifactError(
            f"{model_directory} holds version {versions[-1].name} and no {CONFIG_NAME}, so it was not "
            f"exported by this command; take another --out or --name"
        )


def _bytes_of(guarded: Any) -> bytes:
    try:
        data: bytes = guarded.SerializeToString()
    except ValueError as error:
        raise UnfitModelError(f"the guarded graph is too large for one ONNX file ({error})") from error
    return data


def _record(artifact: Artifact, options: TritonOptions, parity: Parity) -> bytes:
    profile = artifact.profile
    record = {
        "model": profile.model_name,
        "model_sha256": profile.model_sha256,
        "artifact_sha256": artifact.digest,
        "artifact_version": artifact.version,
        "policy": options.policy.value,
        "blend": profile.check.blend,
        "n_overlays": profile.check.n_overlays,
        **_boundaries(profile),
        "certified_frr": profile.promise.certified_frr,
        "compared_with_the_sidecar": asdict(parity),
        "versions": {"guard": guard.__version__, "onnxruntime": ort.__version__},
    }
    return (json.dumps(record, indent=2) + "\n").encode()


def _boundaries(profile: Profile) -> dict[str, Any]:
    """Return the detector, and its boundaries in its own units."""
    if profile.fused is None:
        block = None if profile.block is None else profile.block.boundary_bits
        return {
            "detector": profile.check.detector,
            "score": "minus the mean entropy, bits",
            "boundary_bits": profile.boundary.boundary_bits,
            "block_boundary_bits": block,
        }
    fused = profile.fused
    return {
        "detector": profile.check.detector,
        "score": "highest statistic, 0 the median of clean images and 1 what one in fifty exceeds",
        "statistics": fused.statistics,
        "boundary": fused.boundary.boundary,
        "block_boundary": None if fused.block is None else fused.block.boundary,
    }


def _write(model_directory: Path, config: str, readme: str, files: dict[str, bytes]) -> Path:
    """Write the configuration if there is none, then the version: Triton never sees one without the other."""
    try:
        model_directory.mkdir(parents=True, exist_ok=True)
        _write_once(model_directory / README_NAME, readme)
        _write_once(model_directory / CONFIG_NAME, config)
        _check_place(model_directory, config)  # what another export may have written meanwhile
        return place_next_version(model_directory, files)
    except OSError as error:
        raise ArtifactError(f"cannot write a model in {model_directory}: {error}; check --out") from error


def _write_once(path: Path, text: str) -> None:
    """Write a file whole, unless it is there."""
    handle, staged = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(staged).chmod(_FILE_MODE)
        with suppress(FileExistsError):
            os.link(staged, path)
    finally:
        Path(staged).unlink()
