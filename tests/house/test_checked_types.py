"""While tests run, every call is checked: types by beartype, and shapes where there are any."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float32

from guard.detection.entropy import entropy_of_logits
from guard.detection.plan import default_rounds
from tests.checked_types import tells_a_shape

Images = Float32[np.ndarray, "n c h w"]


def no_arrays(first: int, *rest: Path, named: dict[str, list[int]] | None = None) -> Callable[[int], str]:
    raise NotImplementedError


def an_array(images: Images) -> None:
    raise NotImplementedError


def arrays_of_arrays(images: dict[str, list[Images | None]]) -> None:
    raise NotImplementedError


def a_callable_of_arrays(ask: Callable[[Images], object]) -> None:
    raise NotImplementedError


def what_is_not_there_yet(later: "NobodyMadeThis") -> None:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("function", "tells"),
    [
        (no_arrays, False),
        (an_array, True),
        (arrays_of_arrays, True),
        (a_callable_of_arrays, True),
        (what_is_not_there_yet, True),
    ],
)
def test_a_shape_is_seen_wherever_an_annotation_holds_it(function: Callable[..., Any], tells: bool) -> None:
    assert tells_a_shape(function) is tells


def test_an_array_of_another_dtype_is_refused_at_the_call() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="logits"):
        entropy_of_logits(np.array([[1, 0]], np.int64))


def test_a_value_of_another_type_is_refused_at_the_call() -> None:
    with pytest.raises(BeartypeCallHintViolation, match="n_overlays"):
        default_rounds("32")  # type: ignore[arg-type]
