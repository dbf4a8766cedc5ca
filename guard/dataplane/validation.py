"""Does a request fit the model, and can its rows be checked?"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from jaxtyping import Bool

from guard.arrays import Images
from guard.artifact import InputSpec, OutputSpec, Profile
from guard.dataplane.answer import GUARD_OUTPUTS
from guard.detection.superimpose import ValueRange
from guard.errors import InvalidRequestError, UnsupportedRequestError
from guard.messages import InferRequest, Tensor
from guard.metrics import UncheckableReason

__all__ = [
    "accepted_images",
    "require_only_input",
    "require_rows",
    "uncheckable_rows",
    "unread_rows",
]

_MAX_WORDS: Final = 16_384  # of a classification; each costs the event loop more than a microsecond


def accepted_images(request: InferRequest, profile: Profile, max_rows: int) -> Images:
    """Return the request's images if the request fits the model.

    Args:
        request: The decoded request.
        profile: Profile of the model it is for.
        max_rows: Most rows a request may have.

    Raises:
        InvalidRequestError: Naming the tensor, what came, and what was expected.
        UnsupportedRequestError: If it carries ``guard_*`` parameters, which are ours to send.
    """
    _refuse_our_parameters(request)
    _check_outputs(request, profile)
    tensor = _only_input(request, profile.input)
    _check_tensor(tensor, profile.input)
    require_rows(tensor.data.shape[0], tensor.name, max_rows)
    _check_classification(request, profile.output, tensor.data.shape[0])
    return tensor.data


def unread_rows(request: InferRequest, name: str, max_rows: int) -> int:
    """Return how many rows a request has that nobody looks into, if it names the model's input, ``name``.

    Raises:
        InvalidRequestError: If it names another input, or too many rows.
        UnsupportedRequestError: If it carries ``guard_*`` parameters.
    """
    _refuse_our_parameters(request)
    named = request.unread or ()
    require_only_input([tensor.name for tensor in named], request.model_name, name)
    rows = named[0].shape[0] if named[0].shape else 0
    require_rows(rows, named[0].name, max_rows)
    return rows


def require_only_input(names: list[str], model: str, expected: str) -> None:
    """Refuse other inputs than the one that a model takes.

    Args:
        names: Of the inputs that came.
        model: Its name.
        expected: Name of its input.

    Raises:
        InvalidRequestError: If there are others.
    """
    if names != [expected]:
        raise InvalidRequestError(
            f"model {model!r} takes exactly one input, {expected!r}, "
            f"got {', '.join(map(repr, names)) or 'none'}; send {expected!r} alone"
        )


def require_rows(rows: int, name: str, max_rows: int) -> None:
    """Refuse a batch of no rows, or of too many.

    Raises:
        InvalidRequestError: If it is one.
    """
    if not 1 <= rows <= max_rows:
        raise InvalidRequestError(
            f"input {name!r} has a batch of {rows} rows, expected 1 to {max_rows}; "
            f"{'send at least one image' if not rows else 'split the request'}"
        )


def uncheckable_rows(
    images: Images, spec: InputSpec
) -> tuple[Bool[np.ndarray, " n"], dict[int, tuple[UncheckableReason, str]]]:
    """Return which rows can be checked, and for each of the others why not.

    A row with NaN or infinite values, or with values outside the range the model was calibrated
    for, cannot: neither its blends nor the boundary mean anything there. A thousandth of the
    range is allowed on either side, for the rounding of resizers.

    Returns:
        The mask of rows that can be checked, and reason and explanation by row.
    """
    if spec.datatype == "UINT8" and max(spec.low) <= 0 and min(spec.high) >= 255:
        return np.ones(len(images), np.bool_), {}
    low, high, highest_low, lowest_high = _limits(spec.value_range)
    if images.size and images.min() >= highest_low and images.max() <= lowest_high:  # not so where one is NaN
        return np.ones(len(images), np.bool_), {}
    inside = (images >= low) & (images <= high)
    fits = np.asarray(inside.reshape(len(images), -1).all(axis=1))
    return fits, {int(row): _explain(images[row], spec) for row in np.flatnonzero(~fits)}


@lru_cache
def _limits(value_range: ValueRange) -> tuple[np.ndarray, np.ndarray, np.float32, np.float32]:
    """Return the tolerated bounds, and those that are within the bounds of every channel."""
    low, high = value_range.tolerated()
    return low, high, low.max(), high.min()


def _refuse_our_parameters(request: InferRequest) -> None:
    ours = sorted(name for name in request.parameters if name.startswith("guard_"))
    if ours:
        raise UnsupportedRequestError(
            f"parameter {ours[0]!r} is set by the guard, not by callers; leave it out"
        )


def _explain(image: np.ndarray, spec: InputSpec) -> tuple[UncheckableReason, str]:
    finite = np.isfinite(image)
    if not finite.all():
        return UncheckableReason.NON_FINITE, f"holds {int((~finite).sum())} NaN or infinite values"
    return UncheckableReason.OUT_OF_RANGE, (
        f"holds values from {image.min():.4g} to {image.max():.4g}, outside the calibrated range "
        f"{_show(spec.low)} to {_show(spec.high)}"
    )


def _show(bound: tuple[float, ...]) -> str:
    return "/".join(f"{value:.4g}" for value in bound)


def _check_outputs(request: InferRequest, profile: Profile) -> None:
    known = (profile.output.name, *GUARD_OUTPUTS)
    for name in request.outputs:
        if name not in known:
            raise InvalidRequestError(
                f"output {name!r} is not one of model {request.model_name!r}; "
                f"expected one of {', '.join(known)}"
            )


def _check_classification(request: InferRequest, sink: OutputSpec, rows: int) -> None:
    """Refuse more classes than can be put into words on the event loop; a model server has its own limit."""
    count = min(request.classifications.get(sink.name, 0), sink.classes)
    if sink.name in request.outputs and rows * count > _MAX_WORDS:
        raise InvalidRequestError(
            f"output {sink.name!r}: {count} classes of each of {rows} rows are {rows * count} words, "
            f"expected at most {_MAX_WORDS}; ask for fewer classes, for fewer rows, or for the scores"
        )


def _only_input(request: InferRequest, spec: InputSpec) -> Tensor:
    require_only_input([tensor.name for tensor in request.inputs], request.model_name, spec.name)
    return request.inputs[0]


def _check_tensor(tensor: Tensor, spec: InputSpec) -> None:
    if tensor.datatype != spec.datatype:
        raise InvalidRequestError(
            f"input {tensor.name!r} has datatype {tensor.datatype}, expected {spec.datatype}; "
            f"convert the images"
        )
    if tensor.data.ndim != 4 or tensor.data.shape[1:] != spec.shape:
        expected = ", ".join(map(str, ("batch", *spec.shape)))
        raise InvalidRequestError(
            f"input {tensor.name!r} has shape {tuple(tensor.data.shape)}, expected ({expected}) "
            f"in {spec.layout} order"
        )
