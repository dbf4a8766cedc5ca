"""``profile.json``: everything the serving side must know of a calibrated model."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from guard.artifact.fused_record import FusedRecord, ScoreBoundary
from guard.artifact.opinions import OpinionRecord
from guard.artifact.precision import Precision
from guard.detection.superimpose import BLEND_RULES, BlendRule, ValueRange

__all__ = [
    "BoundaryRecord",
    "CalibrationRecord",
    "CheckSettings",
    "InputSpec",
    "OutputSpec",
    "Preprocessing",
    "Profile",
]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0.0, lt=1.0)]


class _Record(BaseModel):
    """Immutable, and strict about fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class InputSpec(_Record):
    """The model's image input, as a client sends it.

    Attributes:
        name: Tensor name in the graph.
        datatype: V2 datatype.
        shape: Shape of one row, without the batch axis: ``c h w`` or ``h w c``.
        layout: Order of the axes, the batch included.
        low, high: Range of the values a client may send: one for all, or one for each channel.
            Blend rules that clip, clip to it.
    """

    name: Annotated[str, Field(min_length=1)]
    datatype: Literal["FP32", "FP16", "BF16", "UINT8"]
    shape: tuple[Size, Size, Size]
    layout: Literal["NCHW", "NHWC"]
    low: tuple[FiniteFloat, ...]
    high: tuple[FiniteFloat, ...]

    @property
    def channel_axis(self) -> int:
        """Axis of the channels within one row."""
        return 0 if self.layout == "NCHW" else 2

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[self.channel_axis]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        height, width = (n for axis, n in enumerate(self.shape) if axis != self.channel_axis)
        return height, width

    @property
    def value_range(self) -> ValueRange:
        """The declared range, as the detection core takes it."""
        return ValueRange(self.low, self.high, self.channel_axis)

    @model_validator(mode="after")
    def _ranges_fit(self) -> InputSpec:
        if len(self.low) != len(self.high) or len(self.low) not in {1, self.channels}:
            raise ValueError(
                f"low and high must both hold 1 or {self.channels} values, "
                f"got {len(self.low)} and {len(self.high)}"
            )
        if any(low >= high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"low must be below high in every channel, got {self.low} and {self.high}")
        return self


class OutputSpec(_Record):
    """The model's class output: one row of ``classes`` values for each image.

    Attributes:
        labels: Names of the classes, in the model's order; None where they are not known.
    """

    name: Annotated[str, Field(min_length=1)]
    datatype: Literal["FP32", "FP16", "BF16"]
    classes: Annotated[int, Field(ge=2)]
    kind: Literal["logits", "probabilities"]
    labels: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _one_label_a_class(self) -> OutputSpec:
        if self.labels is not None and len(self.labels) != self.classes:
            raise ValueError(f"labels must name {self.classes} classes, got {len(self.labels)}")
        return self


class Preprocessing(_Record):
    """How image files became model inputs at calibration; clients must do the same.

    A pixel v (0..255 for 8-bit files) becomes ``(v * scale - mean) / std``, after resizing and cropping.

    Attributes:
        scale: Factor on the stored pixel values.
        mean, std: One value for all channels, or one for each, in the model's order of colours.
        resize: Height and width the images were resized to, or their shorter side alone; None if they came
            in that size.
        crop: Height and width that were kept from their middle then; None for all.
        colour: Order of colours that the model takes; files hold RGB.
        orientation: Whether files are turned as EXIF says (``apply``) or taken as stored.
        eight_bit: Whether the stored pixels were of 8 bits, as encoded images are, so that those may be sent.
    """

    scale: FiniteFloat = 1.0
    mean: tuple[FiniteFloat, ...] = (0.0,)
    std: tuple[Annotated[FiniteFloat, Field(gt=0.0)], ...] = (1.0,)
    resize: Annotated[tuple[Size, ...], Field(min_length=1, max_length=2)] | None = None
    crop: tuple[Size, Size] | None = None
    colour: Literal["RGB", "BGR"] = "RGB"
    orientation: Literal["ignore", "apply"] = "ignore"
    eight_bit: bool = False


class CheckSettings(_Record):
    """How the check is run.

    Attributes:
        detector: Which score decides.
        rounds: Overlays in each round.
        precision: What the model computed in when it was calibrated.
    """

    detector: Literal["strip", "fused"] = "strip"
    blend: Literal["add", "add_clip", "half_clip", "convex"]
    rounds: Annotated[tuple[Size, ...], Field(min_length=1)]
    precision: Precision = "exact"

    @property
    def n_overlays(self) -> int:
        """N, the number of overlays."""
        return sum(self.rounds)

    @property
    def blend_rule(self) -> BlendRule:
        """The rule named by ``blend``."""
        return BLEND_RULES[self.blend]


class BoundaryRecord(_Record):
    """The boundary and what is promised of it.

    Attributes:
        method: ``conformal`` (finite-sample guarantee) or ``normal`` (the paper's percentile,
            no guarantee).
        boundary_bits: τ; a mean entropy strictly below it is suspicious.
        frr: α, the false-rejection rate asked for.
        confidence: 1 − δ of the guarantee; None without one.
        certified_frr: Upper bound of the true false-rejection rate at that confidence; None
            without a guarantee.
        expected_frr: Mean of the true rate over calibration draws.
        rank: k of the order statistic the boundary is; None for ``normal``.
        n_scores: Calibration images scored.
    """

    method: Literal["conformal", "normal"]
    boundary_bits: FiniteFloat
    frr: Rate
    confidence: Rate | None
    certified_frr: Rate | None
    expected_frr: Rate
    rank: Size | None
    n_scores: Size


class CalibrationRecord(_Record):
    """Where the boundary came from.

    Attributes:
        clean_entropies_bits: Mean entropy of every calibration image, ascending; the p-values'
            reference.
        mean_passes_clean: Mean blends the curtailed check spends on a calibration image.
        accuracy: Share of calibration images classified as labelled; None without labels.
        seed: Seed of the overlay draw where the user gave one; None for one that was drawn, since overlays
            are secret and could be rebuilt from it.
        n_images: Images read, overlays and calibration together.
        data_sha256: Digest of the images used, in reading order.
        created: UTC, ISO 8601.
        versions: Versions of the packages that made it.
    """

    clean_entropies_bits: Annotated[tuple[FiniteFloat, ...], Field(min_length=1)]
    mean_passes_clean: FiniteFloat
    accuracy: Annotated[float, Field(ge=0.0, le=1.0)] | None
    seed: int | None
    n_images: Size
    data_sha256: Sha256
    created: str
    versions: dict[str, str]


class Profile(_Record):
    """The whole profile.

    Attributes:
        model_sha256: Digest of the ``model.onnx`` this profile was measured on.
        fixed_batch: The batch size built into the graph, or None where the axis is dynamic.
        boundary: STRIP's, which is there whatever the detector is.
        block: STRIP's for refusals, where ``boundary`` is only for flags; None for no such tier.
        fused: The fused detector; None where the detector is STRIP.
        opinions: Capabilities that were tried as second opinions, on or off; they decide nothing.
    """

    format: Literal[1] = 1
    model_name: Annotated[str, Field(min_length=1)]
    model_sha256: Sha256
    fixed_batch: Size | None
    input: InputSpec
    output: OutputSpec
    preprocessing: Preprocessing
    check: CheckSettings
    boundary: BoundaryRecord
    block: BoundaryRecord | None = None
    fused: FusedRecord | None = None
    opinions: tuple[OpinionRecord, ...] = ()
    calibration: CalibrationRecord

    @model_validator(mode="after")
    def _scores_are_sorted(self) -> Profile:
        scores = self.calibration.clean_entropies_bits
        if any(a > b for a, b in pairwise(scores)):
            raise ValueError("calibration.clean_entropies_bits must be ascending")
        return self

    @model_validator(mode="after")
    def _boundary_fits_the_scores(self) -> Profile:
        count = len(self.calibration.clean_entropies_bits)
        for name, tier in (("boundary", self.boundary), ("block", self.block)):
            if tier is not None and (tier.n_scores != count or (tier.rank or 1) > count):
                raise ValueError(f"{name}.rank and n_scores must fit calibration.clean_entropies_bits")
        return self

    @model_validator(mode="after")
    def _the_detector_is_there(self) -> Profile:
        if (self.fused is None) == (self.check.detector == "fused"):
            raise ValueError("fused must be there if check.detector is 'fused', and only then")
        if self.block is not None and self.block.boundary_bits > self.boundary.boundary_bits:
            raise ValueError("block.boundary_bits must not be above boundary.boundary_bits")
        ends = set(accumulate(self.check.rounds[:-1]))
        if self.fused is not None and not {early.passes for early in self.fused.early} <= ends:
            raise ValueError(f"fused.early: inputs are accepted after {sorted(ends)} passes or none")
        return self

    @model_validator(mode="after")
    def _each_opinion_is_there_once(self) -> Profile:
        names = [one.name for one in self.opinions]
        if len(set(names)) != len(names):
            raise ValueError(f"opinions must name each capability once, got {names}")
        return self

    @property
    def promise(self) -> BoundaryRecord | ScoreBoundary:
        """The boundary of the detector that decides."""
        return self.boundary if self.fused is None else self.fused.boundary
