"""Second opinions of a loaded version: opened beside the model, off where they answer otherwise than before.

What asks the model itself is put to the model that is loaded anyway; only amplified copies are loaded
besides. Nothing here decides, so what answers otherwise than at calibration is off with its reason, and the
model is served all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

import numpy as np
import onnx
from jaxtyping import Float32

from guard.arrays import Images, Logits, Probabilities
from guard.artifact import Artifact, OutputSpec, SecondOpinion
from guard.artifact.manifest import COPIES_NAME
from guard.artifact.opinions import COPIES_OUTPUT
from guard.artifact.signature import read_signature
from guard.detection.base import predicted_classes
from guard.detection.capabilities.ibd_psc import COPIES
from guard.detection.capabilities.opinion import Asked
from guard.detection.entropy import softmax
from guard.errors import ProfileError
from guard.runtime.onnx_classifier import ORT_ERRORS, OnnxClassifier
from guard.runtime.opening import RuntimeOptions
from guard.runtime.session import first_line

__all__ = ["NOT_WANTED", "LoadedOpinions", "no_opinions", "open_opinions"]

MAY_MOVE: Final = 0.1
"""Share of the spread of clean scores by which a stored image's may be off."""

NOT_WANTED: Final = 'the setting second_opinions is "off"'
_ELSEWHERE: Final = "a model server makes the predictions, and it has no amplified copies of the model"

Predict = Callable[[Images], Logits]


@dataclass(frozen=True, eq=False)
class LoadedOpinions:
    """What can be asked of one version.

    Attributes:
        sink: The model's output.
        each: Those that are on here.
        off: Why each of the others is off, by name.
        copies: Amplified copies of the model; None where none of them asks any.
    """

    sink: OutputSpec
    each: tuple[SecondOpinion, ...] = ()
    off: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    copies: OnnxClassifier | None = None

    @property
    def told(self) -> tuple[tuple[str, str], ...]:
        """Each by name, with why it is off; nothing for those that are on."""
        return (*((one.name, "") for one in self.each), *sorted(self.off.items()))

    def asked(self, predict: Predict) -> Asked:
        """Return whom they ask.

        Args:
            predict: Returns the model's raw output for images.
        """

        def model(images: Images) -> Probabilities:
            return _probabilities(predict(images), self.sink)

        return Asked(model, None if self.copies is None else self._by_copies)

    def close(self) -> None:
        """Free the copies."""
        if self.copies is not None:
            self.copies.close()

    def _by_copies(self, images: Images) -> Float32[np.ndarray, "n j k"]:
        assert self.copies is not None
        rows = self.copies.logits(images).reshape(len(images), COPIES, self.sink.classes)
        return _probabilities(rows, self.sink)


def no_opinions(artifact: Artifact, why: str) -> LoadedOpinions:
    """Return second opinions none of which is on, for a reason that is told of those that could be."""
    off: dict[str, str] = {one.name: one.why_off or why for one in artifact.profile.opinions}
    return LoadedOpinions(artifact.profile.output, (), off)


def open_opinions(
    artifact: Artifact, options: RuntimeOptions, classifier: OnnxClassifier | None
) -> LoadedOpinions:
    """Open the second opinions that an artifact holds.

    Args:
        artifact: Verified.
        options: How the model is run.
        classifier: The model, loaded, which nobody else asks yet; None where a model server makes the
            predictions, of which nothing is asked.

    Raises:
        UnfitModelError: If the amplified copies cannot be loaded.
        ProfileError: If they take or give something else than this model.
    """
    if not options.second_opinions or artifact.opinions is None:
        return no_opinions(artifact, NOT_WANTED)
    off: dict[str, str] = {one.name: one.why_off for one in artifact.profile.opinions if not one.on}
    each = artifact.opinions.each
    if classifier is None:
        off |= {one.name: _ELSEWHERE for one in each if one.opinion.asks_copies}
        return LoadedOpinions(artifact.profile.output, tuple(one for one in each if one.name not in off), off)
    copies = _open_copies(artifact, options) if artifact.opinions.copies is not None else None
    opened = LoadedOpinions(artifact.profile.output, each, off, copies)
    try:
        return _probed(opened, artifact, classifier)
    except BaseException:
        opened.close()
        raise


def _open_copies(artifact: Artifact, options: RuntimeOptions) -> OnnxClassifier:
    profile = artifact.profile
    assert artifact.opinions is not None
    assert artifact.opinions.copies is not None
    classes = COPIES * profile.output.classes
    _check_signature(artifact, artifact.opinions.copies, classes)
    copies = OnnxClassifier.open(
        artifact.opinions.copies,
        source=profile.input,
        sink=profile.output.model_copy(update={"name": COPIES_OUTPUT, "classes": classes, "labels": None}),
        fixed_batch=profile.fixed_batch,
        overlays=artifact.overlays[:1],
        blend=profile.check.blend_rule,
        device=options.device,
        threads=1,
        precision=options.precision or profile.check.precision,
    )
    try:
        copies.warm_up(1)
    except BaseException:
        copies.close()
        raise
    return copies


def _check_signature(artifact: Artifact, copies: onnx.ModelProto, classes: int) -> None:
    source, where = artifact.profile.input, str(artifact.directory / COPIES_NAME)
    actual, model = (
        read_signature(graph, where, layout=source.layout, size=source.size)
        for graph in (copies, artifact.model)
    )
    stated = replace(model, output_name=COPIES_OUTPUT, classes=classes)
    if actual != stated:
        raise ProfileError(f"{where} is {actual}, expected {stated} as the model has it; calibrate again")


def _probed(opened: LoadedOpinions, artifact: Artifact, classifier: OnnxClassifier) -> LoadedOpinions:
    """Return those that answer the stored images as at calibration; the others are off."""
    if artifact.probe is None:
        return opened
    images, asked, off = artifact.probe.images, opened.asked(classifier.logits), dict(opened.off)
    predicted = predicted_classes(asked.model(images))
    for one in opened.each:
        try:
            scores = one.opinion.scores(images, predicted, asked)
        except ORT_ERRORS as error:
            off[one.name] = f"it fails on the stored images ({first_line(error)})"
            continue
        moved = float(np.abs(scores - one.probe).max())
        allowed = MAY_MOVE * float(one.clean.std())
        if not moved <= allowed:
            off[one.name] = (
                f"its scores of the stored images are off those at calibration by up to {moved:.3g}, "
                f"expected at most {allowed:.3g}: another device, precision, or ONNX Runtime?"
            )
    return replace(opened, each=tuple(one for one in opened.each if one.name not in off), off=off)


def _probabilities(outputs: Float32[np.ndarray, "*batch k"], sink: OutputSpec) -> Probabilities:
    return softmax(outputs) if sink.kind == "logits" else outputs
