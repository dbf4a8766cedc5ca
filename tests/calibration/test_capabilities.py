"""One contract for all capabilities: what their scores are, when they are off, and how the trial fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType

import numpy as np
import onnx
import pytest

from calibration.capabilities.base import Bench, Capability, Fitted, Off
from calibration.capabilities.switch import Switched, switch_on
from calibration.capabilities.table import CAPABILITIES
from guard.detection.capabilities.opinion import OPINIONS
from tests.calibration.capability_models import (
    bench_of,
    clean_images,
    linear_net,
    numb_net,
    residual_net,
    saturated_net,
)

FRR = 0.05
SEED = 3


@dataclass(frozen=True)
class Case:
    """Models that do not allow a capability, or on which it is blind, and what it says then."""

    refused: Callable[[], onnx.ModelProto]
    reason: str
    blind: Callable[[], onnx.ModelProto]
    says: str


CASES = MappingProxyType(
    {
        "layers": Case(linear_net, "no activation of a convolution", numb_net, "hardly tell .* apart"),
        "scale_up": Case(saturated_net, "keep their class when amplified", saturated_net, "cannot stand out"),
        "ibd_psc": Case(
            linear_net, "the model has 0 norm layers", lambda: residual_net(quiet=True), "fewer than 60"
        ),
        "teco_lite": Case(saturated_net, "corruptions do not touch", saturated_net, "tell nothing"),
    }
)
EACH = pytest.mark.parametrize("name", sorted(CAPABILITIES))


@dataclass(frozen=True)
class Planted:
    """A canary."""

    model: onnx.ModelProto
    triggered: np.ndarray


@cache
def bench() -> Bench:
    return bench_of(residual_net(SEED), 240)


@cache
def switched(name: str) -> Switched:
    return switch_on(CAPABILITIES[name], bench(), FRR)


def fitted(name: str) -> Fitted:
    one = switched(name).fitted
    assert one is not None, switched(name).reason
    return one


def test_every_capability_has_a_case() -> None:
    assert set(CASES) == set(CAPABILITIES)
    assert [name for name, row in CAPABILITIES.items() if row.name != name] == []


def test_those_that_cost_passes_are_those_that_are_asked_beside_the_check() -> None:
    assert {name for name, row in CAPABILITIES.items() if row.passes} == set(OPINIONS)


@EACH
def test_it_is_on_where_the_model_allows_it(name: str) -> None:
    assert switched(name).on, switched(name).reason
    assert switched(name).reason == ""
    assert fitted(name).passes == CAPABILITIES[name].passes


@EACH
def test_each_input_has_one_finite_score_that_depends_on_nothing_else(name: str) -> None:
    images = clean_images(24, seed=5)
    scores = fitted(name).scores(images)
    assert (scores.shape, scores.dtype) == ((24,), np.float64)
    assert np.isfinite(scores).all()
    assert np.ptp(scores) > 0
    again = np.concatenate([fitted(name).scores(part) for part in (images[:1], images[1:8], images[8:])])
    np.testing.assert_allclose(again, scores, rtol=1e-3, atol=1e-3 * scores.std())
    np.testing.assert_array_equal(fitted(name).scores(images), scores)


@EACH
def test_no_labels_are_asked_for(name: str) -> None:
    assert not CAPABILITIES[name].needs_labels
    assert not hasattr(bench(), "labels")


@EACH
def test_a_model_that_does_not_allow_it_is_told_why(name: str) -> None:
    found = switch_on(CAPABILITIES[name], bench_of(CASES[name].refused(), 240), FRR)
    assert not found.on
    assert_says(found.reason, CASES[name].reason)


@EACH
def test_a_model_on_which_it_is_blind_turns_it_off(name: str) -> None:
    found = switch_on(CAPABILITIES[name], bench_of(CASES[name].blind(), 240), FRR)
    assert not found.on
    assert_says(found.reason, CASES[name].says)


@EACH
def test_canaries_that_it_does_not_see_turn_it_off(name: str) -> None:
    """Their trigger does nothing, so that nobody could see it."""
    unseen = Planted(bench().model, clean_images(60, seed=6))
    found = switch_on(CAPABILITIES[name], bench(), FRR, [unseen])
    assert not found.on
    assert_says(found.reason, "blind to the planted canaries")
    assert found.aurocs[0] == pytest.approx(0.5, abs=0.15)


@EACH
def test_a_canary_for_which_it_is_off_counts_as_unseen(name: str) -> None:
    refused = Planted(CASES[name].refused(), clean_images(20, seed=6))
    assert switch_on(CAPABILITIES[name], bench(), FRR, [refused]).aurocs == (0.0,)


def test_a_canary_that_it_sees_leaves_it_on() -> None:
    """Noise goes through the network otherwise than any pattern."""
    seen = Planted(bench().model, np.random.default_rng(0).uniform(0, 1, (60, 3, 8, 8)).astype(np.float32))
    found = switch_on(CAPABILITIES["layers"], bench(), FRR, [seen])
    assert found.on
    assert found.aurocs[0] > 0.9


def test_few_images_turn_all_off() -> None:
    for row in CAPABILITIES.values():
        found = switch_on(row, bench().with_images(clean_images(40)), FRR)
        assert found.reason == "it takes 100 clean images, and there are 40"


@dataclass(frozen=True)
class FakeScore:
    """Scores that the trial must not pass."""

    kind: str
    passes: int = 1

    def scores(self, images: np.ndarray) -> np.ndarray:
        mean = images.mean(axis=(1, 2, 3), dtype=np.float64)
        if self.kind == "coarse":
            return (mean > 0.35).astype(np.float64)
        if self.kind == "nan":
            return np.where(mean > np.median(mean), np.nan, mean)
        if self.kind == "by batch":
            return mean - mean[0]
        return mean


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("coarse", "too coarse for a rate of 5.00%"),
        ("nan", "no finite score"),
        ("by batch", "in another order get other scores"),
        ("fine", ""),
    ],
)
def test_scores_that_cannot_hold_a_rate_are_turned_off(kind: str, reason: str) -> None:
    row = replace(CAPABILITIES["scale_up"], fit=lambda _bench: FakeScore(kind))
    found = switch_on(row, bench(), FRR)
    assert found.on == (reason == "")
    assert reason in found.reason


def test_a_capability_that_only_half_the_images_allow_is_off() -> None:
    def fit(some: Bench) -> Fitted | Off:
        return FakeScore("fine") if len(some.images) < 200 else Off("no more than half")

    found = switch_on(Capability("picky", "", 1, False, fit), bench(), FRR)
    assert (found.on, found.reason) == (False, "no more than half")


def assert_says(reason: str, pattern: str) -> None:
    assert re.search(pattern, reason), reason
    assert reason[0].islower()
    assert not reason.endswith(".")
