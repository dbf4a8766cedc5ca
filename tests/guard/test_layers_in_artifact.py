"""What the fused detector needs of layers is written, read back alike, and refused where it does not fit."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from guard.artifact.fused_record import EarlyRecord, FusedRecord, LayerRecord, fused_bytes, read_measures
from guard.detection.capabilities.layer_distances import Layer, fit_layer_distances
from guard.detection.measurements import Measures
from guard.detection.responses import Responses
from guard.errors import ProfileError

CLASSES, OVERLAYS, WIDTHS = 3, 4, (5, 2)
BOUNDARY = {
    "boundary": 2.0, "frr": 0.01, "confidence": 0.95, "certified_frr": 0.01, "expected_frr": 0.005,
    "rank": 1, "n_scores": 2,
}  # fmt: skip


def measures() -> Measures:
    random = np.random.default_rng(0)
    predicted, features = random.integers(0, CLASSES, 60), random.normal(0, 1, (60, 7)).astype(np.float32)
    expected = np.full((CLASSES, OVERLAYS, CLASSES), 1 / CLASSES, np.float32)
    return Measures(Responses(expected), None, fit_layer_distances(predicted, features, WIDTHS, CLASSES))


def changed(**arrays: np.ndarray | None) -> bytes:
    with np.load(io.BytesIO(fused_bytes(measures()))) as kept:
        content = {**kept, **arrays}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value for name, value in content.items() if value is not None})
    return buffer.getvalue()


def record(**changes: Any) -> FusedRecord:
    early = EarlyRecord(passes=2, centres=(0.0, 0.0), scales=(1.0, 1.0), below=0.1)
    values: dict[str, Any] = {
        "statistics": ("departure", "layers"),
        "centres": (0.0, 3.0),
        "scales": (1.0, 0.5),
        "early": (early,),
        "boundary": BOUNDARY,
        "clean_scores": (0.0, 1.0),
        "n_fitted": 300,
        "layers": (LayerRecord(name="relu_3", width=5, over_space=True),),
    }
    return FusedRecord.model_validate(values | changes)


def test_what_is_written_is_read_back() -> None:
    read = read_measures(fused_bytes(measures()), CLASSES, OVERLAYS, WIDTHS, "fused.npz").layers
    written = measures().layers
    assert read is not None
    assert written is not None
    np.testing.assert_array_equal(read.centres, written.centres)
    assert len(read.whitening) == len(WIDTHS)
    for one, other in zip(read.whitening, written.whitening, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"layer_whitening_1": None},
            "expected expected, layer_centres, layer_whitening_0, layer_whitening_1",
        ),
        ({"layer_centres": np.zeros((CLASSES, 6), np.float32)}, r"expected shape \(3, 7\)"),
        ({"layer_whitening_0": np.zeros((5, 5), np.float64)}, "float32"),
        ({"layer_whitening_0": np.full((5, 5), np.nan, np.float32)}, "NaN"),
        ({"another": np.zeros(1)}, "another"),
    ],
)
def test_tables_that_do_not_fit_are_refused(arrays: dict[str, np.ndarray | None], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        read_measures(changed(**arrays), CLASSES, OVERLAYS, WIDTHS, "fused.npz")


def test_tables_of_layers_that_the_profile_does_not_know_are_refused() -> None:
    with pytest.raises(ProfileError, match="expected expected; calibrate again"):
        read_measures(fused_bytes(measures()), CLASSES, OVERLAYS, (), "fused.npz")


def test_the_record_says_where_distances_are_taken() -> None:
    (layer,) = record().layers
    assert layer.layer == Layer("relu_3", 5, over_space=True)
    assert FusedRecord.model_validate_json(record().model_dump_json()) == record()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ()}, "fused.layers must be there"),
        ({"statistics": ("departure", "surprise")}, "fused.layers must be there"),
        ({"early": (EarlyRecord(passes=2, centres=(0.0,), scales=(1.0,), below=0.1),)}, "the 2 statistics"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        record(**changes)
