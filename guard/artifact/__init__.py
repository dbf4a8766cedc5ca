"""The model artifact: the one thing that crosses from calibration to production.

A directory ``<repository>/<model>/<version>/`` holding ``model.onnx``, ``overlays.npy``,
``profile.json``, a ``probe.npz`` (artifacts made before there was one do without), a ``fused.npz``
where the detector is the fused one, an ``opinions.npz`` and an ``amplified.onnx`` where there are second
opinions, and ``manifest.json`` (the SHA-256 of each). Reading it never
runs code: no pickle, no path out of the directory, every byte used is a byte that was hashed.
"""

from guard.artifact.fused_record import EarlyRecord, FusedRecord, ScoreBoundary
from guard.artifact.manifest import MANIFEST_NAME, Manifest
from guard.artifact.opinions import OpinionRecord, Opinions, SecondOpinion
from guard.artifact.probe import Probe
from guard.artifact.profile import (
    BoundaryRecord,
    CalibrationRecord,
    CheckSettings,
    InputSpec,
    OutputSpec,
    Preprocessing,
    Profile,
)
from guard.artifact.reader import Artifact, read_artifact
from guard.artifact.writer import next_version, write_artifact

__all__ = [
    "MANIFEST_NAME",
    "Artifact",
    "BoundaryRecord",
    "CalibrationRecord",
    "CheckSettings",
    "EarlyRecord",
    "FusedRecord",
    "InputSpec",
    "Manifest",
    "OpinionRecord",
    "Opinions",
    "OutputSpec",
    "Preprocessing",
    "Probe",
    "Profile",
    "ScoreBoundary",
    "SecondOpinion",
    "next_version",
    "read_artifact",
    "write_artifact",
]
