"""The subject of a calibration: a model, clean images, and how the one becomes input of the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from calibration.class_names import class_names_of
from calibration.data import ImageSet
from calibration.detector_choice import images_to_certify
from calibration.errors import TooFewImagesError
from calibration.intake import geometry_of
from calibration.model_source import ModelSource, read_model
from calibration.options import CalibrateOptions
from calibration.outputs import check_labels, count_classes
from calibration.preprocessing import Prepare, plan_input
from calibration.scoring import batch_size
from calibration.sources import read_images
from guard.arrays import Images
from guard.artifact import OutputSpec
from guard.artifact.signature import Signature, read_signature
from guard.detection.capabilities.layer_distances import Layer
from guard.runtime.onnx_classifier import OnnxClassifier

__all__ = ["Subject", "read_subject"]


@dataclass(frozen=True)
class Subject:
    """A model and its images, read and fitted to each other.

    Attributes:
        sink: The model's output; its ``kind`` is ``logits`` until it has been seen.
        batch: Model inputs in one device call.
    """

    source: ModelSource
    signature: Signature
    images: ImageSet
    prepare: Prepare
    sink: OutputSpec
    batch: int

    def with_kind(self, kind: Literal["logits", "probabilities"]) -> Subject:
        """Return the subject with what its output was found to be."""
        return replace(self, sink=self.sink.model_copy(update={"kind": kind}))

    def open(
        self, overlays: Images, options: CalibrateOptions, layers: Sequence[Layer] = ()
    ) -> OnnxClassifier:
        """Load the model with these overlays, and these layers to return, by the code that serves."""
        return OnnxClassifier.open(
            self.source.model,
            source=self.prepare.source,
            sink=self.sink,
            fixed_batch=self.signature.fixed_batch,
            overlays=overlays,
            blend=options.blend_rule,
            device=options.device,
            threads=options.threads,
            precision=options.precision,
            layers=layers,
        )


def read_subject(options: CalibrateOptions) -> Subject:
    """Read model and images, and refuse at once what cannot be calibrated.

    Raises:
        GuardError: Whatever does not fit, each with its own class and message.
    """
    source = read_model(options.model)
    wish = options.transform
    signature = read_signature(source.model, str(options.model), layout=options.layout, size=wish.size)
    geometry = geometry_of(signature, wish)
    images = read_images(options.data, options.labels, geometry)
    _require_enough(len(images), options)
    prepare = plan_input(signature, images.images, wish)
    row = prepare(images.images[:1])
    classes = count_classes(source, signature, row)
    check_labels(images, classes)
    sink = OutputSpec(
        name=signature.output_name,
        datatype=signature.output_datatype,
        classes=classes,
        kind="logits",
        labels=class_names_of(options.class_names, images, classes),
    )
    return Subject(source, signature, images, prepare, sink, batch_size(row.astype(np.float32).nbytes))


def _require_enough(n_images: int, options: CalibrateOptions) -> None:
    """Refuse too few images before anything is scored."""
    conformal = options.threshold == "conformal"
    least = images_to_certify(options)
    needed = least + options.overlays
    if n_images >= needed:
        return
    purpose = (
        f"{least} to certify a false-rejection rate of {options.lowest_frr:.3%} with "
        f"{options.confidence:.1%} confidence"
        if conformal
        else f"{least} to fit a Normal"
    )
    raise TooFewImagesError(
        f"{options.data} holds {n_images} images, expected at least {needed}: {options.overlays} overlays, "
        f"{purpose}; add images, raise {'--frr' if options.block_frr is None else '--block-frr'}, or lower "
        f"--confidence or --overlays",
        needed=needed,
        got=n_images,
    )
