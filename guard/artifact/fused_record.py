"""The fused detector in an artifact: scales and boundaries in the profile, tables in ``fused.npz``."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from guard.artifact.npy import load_npz
from guard.detection.capabilities.layer_distances import Layer, LayerDistances
from guard.detection.fused import Early, Fused
from guard.detection.fusion import Fusion, View
from guard.detection.measurements import KNOWN_EARLY, Measures, Statistic
from guard.detection.plan import CheckPlan
from guard.detection.responses import Responses
from guard.detection.stratified import Strata
from guard.errors import ProfileError

__all__ = [
    "EarlyRecord",
    "FusedRecord",
    "FusionRecord",
    "LayerRecord",
    "ScoreBoundary",
    "ViewRecord",
    "fused_bytes",
    "fused_detector",
    "plain_fusion",
    "read_measures",
]

Rate = Annotated[float, Field(gt=0.0, lt=1.0)]
Size = Annotated[int, Field(ge=1)]
Scale = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]

_EXPECTED: Final = "expected"
_STRATA: Final = ("overlay_classes", "strata", "strata_means", "strata_spreads")
_CENTRES: Final = "layer_centres"
_WHITENING: Final = "layer_whitening_{}"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ScoreBoundary(_Record):
    """A boundary on scores, with a finite-sample guarantee.

    Attributes:
        boundary: A score strictly above it is suspicious.
        frr: α, the false-rejection rate asked for.
        confidence: 1 − δ of the guarantee.
        certified_frr: Upper bound of the true false-rejection rate at that confidence.
        expected_frr: Mean of the true rate over calibration draws.
        rank: From the highest score down, which one the boundary is.
        n_scores: Calibration images scored.
    """

    method: Literal["conformal"] = "conformal"
    boundary: FiniteFloat
    frr: Rate
    confidence: Rate
    certified_frr: Rate
    expected_frr: Rate
    rank: Size
    n_scores: Size


class ViewRecord(_Record):
    """One way to look at all statistics; see :class:`guard.detection.fusion.View`."""

    weights: Annotated[tuple[tuple[Weight, ...], ...], Field(min_length=1)]
    centre: FiniteFloat
    scale: Scale


class FusionRecord(_Record):
    """How statistics become one score; see :class:`guard.detection.fusion.Fusion`.

    Attributes:
        centres, scales: Of each statistic, on clean inputs.
        views: What the score is the highest of; none for each statistic by itself, as in artifacts that do
            not say.
    """

    centres: tuple[FiniteFloat, ...]
    scales: tuple[Scale, ...]
    views: tuple[ViewRecord, ...] = ()

    @property
    def fusion(self) -> Fusion:
        """It, as the detection core has it."""
        views = tuple(View(np.array(view.weights), view.centre, view.scale) for view in self.views)
        return Fusion(np.array(self.centres), np.array(self.scales), views)

    def is_of(self, count: int) -> bool:
        """Return whether it is one of so many statistics."""
        widths = {len(row) for view in self.views for row in view.weights}
        return {len(self.centres), len(self.scales), *widths} == {count}


class EarlyRecord(FusionRecord):
    """A round after which inputs may be accepted; see :class:`guard.detection.fused.Early`."""

    passes: Size
    below: FiniteFloat

    @classmethod
    def of(cls, early: Early) -> EarlyRecord:
        """Return what is stored of it."""
        return cls(passes=early.passes, below=early.below, **plain_fusion(early.fusion))

    @property
    def early(self) -> Early:
        """It, as the detection core has it."""
        return Early(self.passes, self.fusion, self.below)


class LayerRecord(_Record):
    """An activation that the check returns; see :class:`Layer`."""

    name: Annotated[str, Field(min_length=1)]
    width: Size
    over_space: bool

    @property
    def layer(self) -> Layer:
        """It, as the detection core has it."""
        return Layer(self.name, self.width, self.over_space)


class FusedRecord(FusionRecord):
    """The fused detector.

    Attributes:
        statistics: Which are fused; centres, scales and views are those over all N blends.
        early: Rounds after which inputs may be accepted.
        boundary: For flags, or for all where there is no other.
        block: A higher one, for refusals; None for no such tier.
        clean_scores: Score of every calibration image, ascending; the p-values' reference.
        n_fitted: Clean images that what is expected was fitted on; none of them calibrated.
        probe_scores: Score of each image of the probe; None in artifacts that do not say.
        layers: Where layer distances are taken, if those are one of the statistics.
    """

    statistics: Annotated[tuple[Statistic, ...], Field(min_length=1)]
    early: tuple[EarlyRecord, ...]
    boundary: ScoreBoundary
    block: ScoreBoundary | None = None
    clean_scores: Annotated[tuple[FiniteFloat, ...], Field(min_length=1)]
    n_fitted: Size
    probe_scores: tuple[FiniteFloat, ...] | None = None
    layers: tuple[LayerRecord, ...] = ()

    @model_validator(mode="after")
    def _fits_itself(self) -> FusedRecord:
        count = len(self.statistics)
        if len(set(self.statistics)) != count or not self.is_of(count):
            raise ValueError(
                "fused: statistics, centres, scales and the weights in a view's row must be as many, each "
                "statistic once"
            )
        known = sum(name in KNOWN_EARLY for name in self.statistics)
        if not all(early.is_of(known) for early in self.early):
            raise ValueError(
                f"fused.early: expected scales and weights of the {known} statistics that are known early"
            )
        ends = [early.passes for early in self.early]
        if (ends and not known) or len(set(ends)) != len(ends):
            raise ValueError(
                "fused.early: expected each round once, and none where no statistic is known early"
            )
        if not all(one.fusion.is_finite for one in (self, *self.early)):
            raise ValueError("fused: weights over scales, and those times centres, must be finite")
        if bool(self.layers) != ("layers" in self.statistics):
            raise ValueError("fused.layers must be there if 'layers' is a statistic, and only then")
        if list(self.clean_scores) != sorted(self.clean_scores):
            raise ValueError("fused.clean_scores must be ascending")
        count = len(self.clean_scores)
        for tier in (self.boundary, self.block):
            if tier is not None and (tier.n_scores != count or tier.rank > count):
                raise ValueError("fused: rank and n_scores of boundaries must fit fused.clean_scores")
        if self.block is not None and self.block.boundary < self.boundary.boundary:
            raise ValueError("fused.block must not lie below fused.boundary")
        return self


def plain_fusion(fusion: Fusion) -> dict[str, Any]:
    """Return what a :class:`FusionRecord` stores of a fusion, by field."""
    views = tuple(
        ViewRecord(weights=view.weights.tolist(), centre=view.centre, scale=view.scale)
        for view in fusion.views
    )
    centres, scales = tuple(fusion.centres.tolist()), tuple(fusion.scales.tolist())
    return {"centres": centres, "scales": scales, "views": views}


def fused_bytes(measures: Measures) -> bytes:
    """Return the content of ``fused.npz``."""
    arrays = {_EXPECTED: measures.responses.expected}
    if measures.strata is not None:
        strata = measures.strata
        arrays |= dict(
            zip(_STRATA, (strata.overlay_classes, strata.classes, strata.means, strata.spreads), strict=True)
        )
    if measures.layers is not None:
        arrays[_CENTRES] = measures.layers.centres
        arrays |= {_WHITENING.format(place): one for place, one in enumerate(measures.layers.whitening)}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def read_measures(
    data: bytes, classes: int, n_overlays: int, widths: tuple[int, ...], where: str
) -> Measures:
    """Read the tables and see that they fit the model and its overlays.

    Args:
        data: Content of ``fused.npz``.
        classes: Classes of the model.
        n_overlays: N.
        widths: Numbers of each layer that distances are taken at; none for no such.
        where: The file, for errors.

    Raises:
        UnsafeArrayError: If an array holds pickled objects.
        ArtifactError: If the bytes are no ``.npz`` file.
        ProfileError: If an array is missing, of another shape or dtype, or holds what cannot be.
    """
    arrays = load_npz(data, where)
    of_layers = {_CENTRES, *(_WHITENING.format(place) for place in range(len(widths)))} if widths else set()
    if set(arrays) - of_layers not in ({_EXPECTED}, {_EXPECTED, *_STRATA}) or not of_layers <= set(arrays):
        expected_names = ", ".join(sorted({_EXPECTED, *of_layers}))
        raise ProfileError(
            f"{where} holds the arrays {sorted(arrays)}, expected {expected_names}; calibrate again"
        )
    expected = _checked(arrays[_EXPECTED], (classes, n_overlays, classes), np.float32, where)
    if expected.min() < 0 or not np.allclose(expected.sum(axis=2), 1.0, atol=1e-3):
        raise ProfileError(f"{where}: rows of {_EXPECTED!r} are no probabilities; calibrate again")
    layers = _layers(arrays, classes, widths, where) if widths else None
    if _STRATA[0] not in arrays:
        return Measures(Responses(expected), None, layers)
    of_overlays = _checked(arrays["overlay_classes"], (n_overlays,), np.int64, where)
    strata = np.unique(of_overlays)
    of_strata = _checked(arrays["strata"], strata.shape, np.int64, where)
    if len(strata) < 2 or strata[0] < 0 or strata[-1] >= classes or (of_strata != strata).any():
        raise ProfileError(f"{where}: the overlays' classes are not those of the model; calibrate again")
    means = _checked(arrays["strata_means"], (classes, len(strata)), np.float64, where)
    spreads = _checked(arrays["strata_spreads"], (len(strata),), np.float64, where)
    if spreads.min() <= 0:
        raise ProfileError(f"{where}: a spread is not above 0; calibrate again")
    return Measures(Responses(expected), Strata(of_overlays, strata, means, spreads), layers)


def _layers(
    arrays: Mapping[str, np.ndarray], classes: int, widths: tuple[int, ...], where: str
) -> LayerDistances:
    centres = _checked(arrays[_CENTRES], (classes, sum(widths)), np.float32, where)
    names = [_WHITENING.format(place) for place in range(len(widths))]
    whitening = [
        _checked(arrays[name], (width, width), np.float32, where)
        for name, width in zip(names, widths, strict=True)
    ]
    return LayerDistances(widths, centres, tuple(whitening))


def fused_detector(
    record: FusedRecord, measures: Measures, rounds: tuple[int, ...], *, takes_logits: bool
) -> Fused:
    """Return the detector that a record and its tables describe."""
    return Fused(
        plan=CheckPlan(rounds),
        measures=measures,
        statistics=record.statistics,
        fusion=record.fusion,
        early=tuple(one.early for one in record.early),
        boundary=record.boundary.boundary,
        block_boundary=None if record.block is None else record.block.boundary,
        takes_logits=takes_logits,
    )


def _checked(array: np.ndarray, shape: tuple[int, ...], dtype: type[np.generic], where: str) -> np.ndarray:
    if array.shape != shape or array.dtype != dtype:
        raise ProfileError(
            f"{where}: expected shape {shape} of {np.dtype(dtype)} as the profile says, got {array.shape} of "
            f"{array.dtype}; calibrate again"
        )
    if not np.isfinite(array).all():
        raise ProfileError(f"{where} holds NaN or infinite values; calibrate again")
    return array
