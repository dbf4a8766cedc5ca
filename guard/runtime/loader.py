"""Turn an artifact on disk into a model that is ready to serve."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guard.artifact import Artifact, Probe, Profile, read_artifact
from guard.artifact.detector import detector_of
from guard.artifact.signature import Signature, read_signature
from guard.detection.base import Detector
from guard.errors import ProfileError
from guard.runtime.onnx_classifier import OnnxClassifier
from guard.runtime.opening import RuntimeOptions, open_classifier
from guard.runtime.opinions import LoadedOpinions, open_opinions
from guard.runtime.scheduler import Scheduler
from guard.runtime.upstream_classifier import Predict, UpstreamClassifier

__all__ = ["LoadedModel", "RuntimeOptions", "load_model"]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that is warmed up and has its device thread running.

    Attributes:
        name: Name it is served under.
        version: Its version, a positive integer as text.
        digest: SHA-256 of its manifest.
        detector: Decides of each input.
        clean_values: Minus the scores of the calibration images, ascending, for p-values.
        probe: Images and what the model answered to them at calibration; None for an older artifact.
        score_shift_bits: How far mean entropies of the stored images are off those at calibration, at most;
            None where nothing was asked.
        opinions: Whom others may ask about what was judged.
        loaded_at: Seconds since the epoch.
    """

    name: str
    version: str
    digest: str
    profile: Profile
    classifier: OnnxClassifier | UpstreamClassifier
    scheduler: Scheduler
    detector: Detector
    clean_values: np.ndarray
    probe: Probe | None
    score_shift_bits: float | None
    opinions: LoadedOpinions
    loaded_at: float

    @property
    def probed(self) -> bool:
        """Whether it was asked a golden probe, and so passed it; a model server is asked once it is up."""
        return self.probe is not None

    def close(self) -> None:
        """Finish what was accepted, then free the device."""
        self.scheduler.close()
        self.classifier.close()
        self.opinions.close()


def load_model(
    name: str,
    directory: Path,
    options: RuntimeOptions,
    *,
    on_batch: Callable[[int, float], None] = lambda _pairs, _seconds: None,
    approve: Callable[[Artifact], None] = lambda _artifact: None,
    predict_by: Callable[[Profile, str], Predict] | None = None,
) -> LoadedModel:
    """Read, verify, load, warm up and probe the model in ``directory``.

    Args:
        name: Name to serve it under.
        directory: An artifact, ``<repository>/<model>/<version>``.
        options: How to run it.
        on_batch: Told the pairs and seconds of each device call.
        approve: Shown the verified artifact before anything of it is run; raises if it is not wanted.
        predict_by: Returns what asks a model server for a version, which then makes all predictions; None to
            run the model here. The server may be down just now: nothing is asked of it yet.

    Raises:
        ArtifactError: If the artifact is damaged or not what its profile says.
        SettingsError: If the device, or the precision, asked for is not there.
    """
    artifact = read_artifact(directory)
    _check_signature(artifact)
    approve(artifact)
    profile = artifact.profile
    detector = detector_of(artifact)
    classifier, shift = _opened(artifact, detector, options, predict_by)
    opinions = _opinions(artifact, options, classifier)
    scheduler = Scheduler(
        classifier,
        detector,
        max_batch_pairs=options.max_batch_pairs,
        max_queue_rows=options.max_queue_rows,
        max_client_rows=options.max_client_rows,
        on_batch=on_batch,
        name=name,
    )
    return LoadedModel(
        name=name,
        version=artifact.version,
        digest=artifact.digest,
        profile=profile,
        classifier=classifier,
        scheduler=scheduler,
        detector=detector,
        clean_values=_clean_values(profile),
        probe=artifact.probe,
        score_shift_bits=shift,
        opinions=opinions,
        loaded_at=time.time(),
    )


def _clean_values(profile: Profile) -> np.ndarray:
    if profile.fused is None:
        return np.asarray(profile.calibration.clean_entropies_bits, np.float64)
    return -np.asarray(profile.fused.clean_scores, np.float64)[::-1]


def _opened(
    artifact: Artifact,
    detector: Detector,
    options: RuntimeOptions,
    predict_by: Callable[[Profile, str], Predict] | None,
) -> tuple[OnnxClassifier | UpstreamClassifier, float | None]:
    if predict_by is not None:
        return _remote(artifact, predict_by), None
    return open_classifier(artifact, detector, options)


def _opinions(
    artifact: Artifact, options: RuntimeOptions, classifier: OnnxClassifier | UpstreamClassifier
) -> LoadedOpinions:
    """Open second opinions; where that fails the model's memory is free again."""
    try:
        local = classifier if isinstance(classifier, OnnxClassifier) else None
        return open_opinions(artifact, options, local)
    except BaseException:
        classifier.close()
        raise


def _remote(artifact: Artifact, predict_by: Callable[[Profile, str], Predict]) -> UpstreamClassifier:
    profile = artifact.profile
    if profile.fused is not None and profile.fused.layers:
        raise ProfileError(
            f"{artifact.directory}: its score looks inside the model, of which a model server returns only "
            f"the output; calibrate it with --layers off, or run the model here"
        )
    return UpstreamClassifier(
        predict_by(profile, artifact.version),
        source=profile.input,
        sink=profile.output,
        overlays=artifact.overlays,
        blend=profile.check.blend_rule,
    )


def _check_signature(artifact: Artifact) -> None:
    """Compare the graph's tensors with the profile's.

    Raises:
        ProfileError: If they differ, or if the output is named as only the guard's own are.
    """
    source, sink = artifact.profile.input, artifact.profile.output
    where = str(artifact.directory / "model.onnx")
    if sink.name.startswith("guard_"):
        raise ProfileError(
            f"{where} names its output {sink.name!r}; names that begin with 'guard_' are those of the "
            f"guard's verdicts: rename the output and calibrate the model again"
        )
    actual = read_signature(artifact.model, where, layout=source.layout, size=source.size)
    stated = Signature(
        input_name=source.name,
        datatype=source.datatype,
        shape=source.shape,
        layout=source.layout,
        fixed_batch=artifact.profile.fixed_batch,
        output_name=sink.name,
        output_datatype=sink.datatype,
        classes=actual.classes and sink.classes,
    )
    if actual != stated:
        raise ProfileError(f"{where} is {actual}, but its profile says {stated}; calibrate this model again")
