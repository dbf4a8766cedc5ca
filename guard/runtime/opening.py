"""Open an artifact's model on the device, and see that it answers there as it did when it was calibrated."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from guard.artifact import Artifact
from guard.artifact.precision import Precision
from guard.detection.base import Detector
from guard.runtime.onnx_classifier import Device, OnnxClassifier
from guard.runtime.probing import check_probe
from guard.runtime.score_shift import check_shift

__all__ = ["RuntimeOptions", "open_classifier"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RuntimeOptions:
    """How models are run.

    Attributes:
        device: ``auto`` takes CUDA where there is one.
        threads: CPU threads of one device call; None for one a core.
        max_batch_pairs: Pairs a device batch is filled up to.
        max_queue_rows: Rows that may wait or run before requests are shed.
        max_client_rows: Rows of one client that may wait for an answer; None for as many as there is room.
        precision: What the model computes in; None for what it was calibrated in.
        second_opinions: Whether second opinions are opened, where the artifact holds any.
        cuda_graphs: Whether device calls are filled up to sizes that repeat, and captured on CUDA.
    """

    device: Device = "auto"
    threads: int | None = None
    max_batch_pairs: int = 64
    max_queue_rows: int = 1024
    max_client_rows: int | None = None
    precision: Precision | None = None
    cuda_graphs: bool = False
    second_opinions: bool = False


def open_classifier(
    artifact: Artifact, detector: Detector, options: RuntimeOptions
) -> tuple[OnnxClassifier, float | None]:
    """Return the classifier, warmed up and probed; where that fails its memory is free again.

    Returns:
        With it, how far mean entropies of the stored images are off, bits, at most; None if none are stored.

    Raises:
        ArtifactError: If it fails, or answers otherwise than at calibration.
        SettingsError: If the device, or the precision, asked for is not there.
    """
    profile = artifact.profile
    precision = options.precision or profile.check.precision
    classifier = OnnxClassifier.open(
        artifact.model,
        source=profile.input,
        sink=profile.output,
        fixed_batch=profile.fixed_batch,
        overlays=artifact.overlays,
        blend=profile.check.blend_rule,
        device=options.device,
        threads=options.threads,
        precision=precision,
        cuda_graphs_up_to=options.max_batch_pairs if options.cuda_graphs else None,
        layers=tuple(record.layer for record in profile.fused.layers) if profile.fused is not None else (),
    )
    try:
        classifier.warm_up(options.max_batch_pairs)
        shift = _probed(classifier, artifact, options.max_batch_pairs)
        check_shift(classifier, detector, artifact, precision, max_pairs=options.max_batch_pairs)
    except BaseException:
        classifier.close()
        raise
    if precision != profile.check.precision:
        _log.warning(
            "scores are those of another precision than at calibration, within what the boundary tolerates",
            extra={
                "artifact": str(artifact.directory),
                "precision": precision,
                "calibrated": profile.check.precision,
                "score_shift_bits": shift,
            },
        )
    return classifier, shift


def _probed(classifier: OnnxClassifier, artifact: Artifact, max_pairs: int) -> float | None:
    if artifact.probe is None:
        return None
    n_overlays, where = artifact.profile.check.n_overlays, str(artifact.directory)
    return check_probe(classifier, artifact.probe, n_overlays, max_pairs=max_pairs, where=where)
