"""Second opinions in an artifact.

The profile says which are on, ``opinions.npz`` holds their tables, ``amplified.onnx`` the joined copies of
the model that one of them asks.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np
import onnx
from jaxtyping import Float64
from pydantic import BaseModel, ConfigDict, Field, model_validator

from guard.artifact.external_data import external_files, parse_model
from guard.artifact.npy import load_npz
from guard.detection.capabilities.by_class import ClassMeans
from guard.detection.capabilities.ibd_psc import COPIES, Consistency, IbdPsc
from guard.detection.capabilities.opinion import Opinion, OpinionName, Space
from guard.detection.capabilities.scale_up import ScaleUp
from guard.detection.capabilities.teco_lite import CORRUPTIONS, Robustness, TecoLite
from guard.errors import ProfileError

__all__ = [
    "COPIES_OUTPUT",
    "OpinionRecord",
    "Opinions",
    "SecondOpinion",
    "opinions_bytes",
    "read_copies",
    "read_opinions",
]

COPIES_OUTPUT: Final = "copies/outputs"
"""Name of the one output of ``amplified.onnx``: the copies' own one after another."""

_Count = Annotated[int, Field(ge=0)]
_Auroc = Annotated[float, Field(ge=0.0, le=1.0)]
_CLEAN, _PROBE = "{}_clean", "{}_probe"
_PSC_MEANS, _PSC_SPREAD = "ibd_psc_means", "ibd_psc_spread"
_TECO_MEANS, _TECO_PRECISION = "teco_lite_means", "teco_lite_precision"


class OpinionRecord(BaseModel):
    """A capability that costs passes, as it was tried at calibration.

    Attributes:
        name: The capability's.
        passes: Forward passes of an input, beside the one that gives its prediction.
        n_fitted: Clean images that it was fitted on; 0 where it is off.
        n_clean: Others whose scores are the p-values' reference; 0 where it is off.
        canary_aurocs: How well it told each canary's triggered inputs from clean ones, if there were any.
        why_off: Why it is off; empty where it is on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: OpinionName
    passes: _Count
    n_fitted: _Count = 0
    n_clean: _Count = 0
    canary_aurocs: tuple[_Auroc, ...] = ()
    why_off: str = ""

    @property
    def on(self) -> bool:
        """Whether it is on."""
        return not self.why_off

    @model_validator(mode="after")
    def _has_a_reference_if_it_is_on(self) -> OpinionRecord:
        if self.on != (self.n_clean > 0):
            raise ValueError("opinions: n_clean must be above 0 where why_off is empty, and only there")
        return self


@dataclass(frozen=True, eq=False)
class SecondOpinion:
    """A capability that is on.

    Attributes:
        name: Its name.
        opinion: It, fitted.
        clean: Scores of clean images that it was not fitted on, ascending.
        probe: Scores of the artifact's probe; empty where there is none.
    """

    name: OpinionName
    opinion: Opinion
    clean: Float64[np.ndarray, " m"]
    probe: Float64[np.ndarray, " w"]


@dataclass(frozen=True, eq=False)
class Opinions:
    """All that are on.

    Attributes:
        copies: Amplified copies of the model that one of them asks, joined; None where none does.
    """

    each: tuple[SecondOpinion, ...] = ()
    copies: onnx.ModelProto | None = None


def opinions_bytes(opinions: Sequence[SecondOpinion]) -> bytes:
    """Return the content of ``opinions.npz``."""
    arrays: dict[str, np.ndarray] = {}
    for one in opinions:
        arrays |= {_CLEAN.format(one.name): one.clean, _PROBE.format(one.name): one.probe}
        arrays |= _tables_of(one.opinion)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def read_opinions(
    data: bytes, names: Mapping[OpinionName, int], space: Space, classes: int, probed: int, where: str
) -> tuple[SecondOpinion, ...]:
    """Read the tables and see that they fit the model.

    Args:
        data: Content of ``opinions.npz``.
        names: Those that are on, and how many clean scores each has.
        space: The model's input space.
        classes: k.
        probed: Images of the artifact's probe.
        where: The file, for errors.

    Raises:
        UnsafeArrayError: If an array holds pickled objects.
        ArtifactError: If the bytes are no ``.npz`` file.
        ProfileError: If an array is missing, of another shape or dtype, not finite or not ascending.
    """
    arrays = load_npz(data, where)
    shapes = _shapes(names, classes, probed)
    if set(arrays) != set(shapes):
        raise ProfileError(
            f"{where} holds the arrays {sorted(arrays)}, expected {sorted(shapes)} as the profile says; "
            f"calibrate again"
        )
    for name, shape in shapes.items():
        _check(arrays[name], shape, name, where)
    for one in names:
        if (np.diff(arrays[_CLEAN.format(one)]) < 0).any():
            raise ProfileError(f"{where}: {_CLEAN.format(one)} is not ascending; calibrate again")
    if _PSC_SPREAD in arrays and arrays[_PSC_SPREAD][0] <= 0:
        raise ProfileError(f"{where}: {_PSC_SPREAD} is not above 0; calibrate again")
    return tuple(
        SecondOpinion(
            name,
            _opinion_of(name, arrays, space),
            arrays[_CLEAN.format(name)],
            arrays[_PROBE.format(name)],
        )
        for name in names
    )


def read_copies(data: bytes, classes: int, where: str) -> onnx.ModelProto:
    """Return the amplified copies.

    Args:
        data: Content of ``amplified.onnx``.
        classes: k.
        where: The file, for errors.

    Raises:
        UnfitModelError: If that is no ONNX model.
        ProfileError: If its weights are elsewhere, or its output is not what calibration writes.
    """
    model = parse_model(data, where)
    if external_files(model, where):
        raise ProfileError(f"{where} keeps weights in other files, expected them inside; calibrate again")
    outputs = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
        for value in model.graph.output
    }
    if outputs != {COPIES_OUTPUT: [COPIES * classes]}:
        raise ProfileError(
            f"{where} gives {outputs}, expected {COPIES_OUTPUT!r} with {COPIES} times {classes} values; "
            f"calibrate again"
        )
    return model


def _tables_of(opinion: Opinion) -> dict[str, np.ndarray]:
    if isinstance(opinion, IbdPsc):
        consistency = opinion.consistency
        return {_PSC_MEANS: consistency.means.means, _PSC_SPREAD: np.array([consistency.spread])}
    if isinstance(opinion, TecoLite):
        robustness = opinion.robustness
        return {_TECO_MEANS: robustness.means.means, _TECO_PRECISION: robustness.precision}
    return {}


def _opinion_of(name: OpinionName, arrays: Mapping[str, np.ndarray], space: Space) -> Opinion:
    if name == "ibd_psc":
        return IbdPsc(Consistency(ClassMeans(arrays[_PSC_MEANS]), float(arrays[_PSC_SPREAD][0])))
    if name == "teco_lite":
        return TecoLite(space, Robustness(ClassMeans(arrays[_TECO_MEANS]), arrays[_TECO_PRECISION]))
    return ScaleUp(space)


def _shapes(names: Mapping[OpinionName, int], classes: int, probed: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, count in names.items():
        shapes |= {_CLEAN.format(name): (count,), _PROBE.format(name): (probed,)}
    if "ibd_psc" in names:
        shapes |= {_PSC_MEANS: (classes, 1), _PSC_SPREAD: (1,)}
    if "teco_lite" in names:
        kinds = len(CORRUPTIONS)
        shapes |= {_TECO_MEANS: (classes, kinds), _TECO_PRECISION: (kinds, kinds)}
    return shapes


def _check(array: np.ndarray, shape: tuple[int, ...], name: str, where: str) -> None:
    if array.shape != shape or array.dtype != np.float64:
        raise ProfileError(
            f"{where}: expected {name} of shape {shape} and float64 as the profile says, "
            f"got {array.shape} of {array.dtype}; calibrate again"
        )
    if not np.isfinite(array).all():
        raise ProfileError(f"{where}: {name} holds NaN or infinite values; calibrate again")
