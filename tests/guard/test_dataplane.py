"""The data plane over a real tiny model: policies, findings, and every count."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from fake_classifier import PATIENCE_S, GatedClassifier
from prometheus_client import CollectorRegistry

import guard
from guard.dataplane import DataPlane, ServedModel
from guard.dataplane.answer import Finding, worst
from guard.dataplane.judge import Judge
from guard.dataplane.reporter import Reporter
from guard.detection.base import Decision, Evidence
from guard.detection.plan import CheckPlan
from guard.detection.strip import Strip, passes_needed
from guard.detection.threshold import Policy, Verdict
from guard.errors import (
    CheckFailedError,
    DeadlineError,
    InputRejectedError,
    InvalidRequestError,
    QueueFullError,
    ShuttingDownError,
    UncheckableInputError,
    UnknownModelError,
    UnsupportedRequestError,
)
from guard.incidents import NO_LABEL, Incident, Witness
from guard.messages import InferRequest, InferResponse, ModelDescription, Tensor, TensorSpec
from guard.metrics import Metrics
from guard.runtime.check_task import Row
from guard.runtime.loader import LoadedModel, RuntimeOptions, load_model
from guard.runtime.slot import ModelSlot
from tests import tiny_models
from tests.artifacts import random_images, write_tiny_artifact
from tests.reference_check import blend_entropies, images_and_boundary, linear_logits, tiny_overlays
from tests.serving import with_device

CLEAN, SUSPICIOUS, MEANS, BOUNDARY = images_and_boundary()
CLEAN_SCORES = np.array([0.5, 1.0, 1.5, 2.0])  # what tests.artifacts writes into every profile
GUARD_OUTPUTS = ("guard_verdict", "guard_score", "guard_p_value", "guard_passes")


@dataclass
class House:
    """A data plane with one model, and what it counted."""

    plane: DataPlane
    model: LoadedModel
    registry: CollectorRegistry
    device: GatedClassifier | None
    slot: ModelSlot[LoadedModel]
    policy: Policy

    async def infer(self, images: np.ndarray, **changes: object) -> InferResponse:
        async with asyncio.timeout(PATIENCE_S):
            return await self.plane.infer(request(images, **changes))

    def count(self, name: str, **labels: str) -> float:
        value = self.registry.get_sample_value(name, {"model": "tiny", **labels})
        assert value is not None, f"{name} {labels} is not there"
        return value

    def verdicts(self) -> dict[str, float]:
        """Return the inputs counted, by verdict, without those at 0."""
        counts = {verdict.value: self.count("guard_inputs_total", verdict=verdict) for verdict in Verdict}
        return {verdict: count for verdict, count in counts.items() if count}

    def uncheckable(self) -> dict[tuple[str, str], float]:
        """Return the uncheckable inputs counted, by reason and outcome, without those at 0."""
        return self._nonzero("guard_uncheckable_inputs_total", "reason", "outcome")

    def shed(self) -> dict[tuple[str, ...], float]:
        return self._nonzero("guard_shed_requests_total", "reason")

    async def idle(self) -> None:
        """Wait until nothing is left to run and every count is in."""
        await asyncio.to_thread(self.model.scheduler.close)
        await asyncio.sleep(0)  # what the device thread handed over
        await asyncio.sleep(0)  # the callbacks of the futures it resolved

    def _nonzero(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        return {
            tuple(sample.labels[label] for label in labels): sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == name and sample.value
        }


@dataclass
class Builder:
    """Builds data planes; closes what it built."""

    root: Path
    built: list[House] = field(default_factory=list)

    def __call__(
        self,
        policy: str = "flag",
        on_uncheckable: str = "refuse",
        *,
        gated: bool = False,
        max_queue_rows: int = 100,
        max_request_rows: int = 16,
        request_timeout_s: float = PATIENCE_S,
        witnesses: Sequence[Witness] = (),
        **artifact: object,
    ) -> House:
        options = RuntimeOptions(device="cpu", threads=1, max_queue_rows=max_queue_rows)
        registry = CollectorRegistry()
        metrics = Metrics(registry, ["tiny"])
        directory = write_tiny_artifact(self.root, **{"boundary_bits": BOUNDARY, **artifact})
        model = load_model("tiny", directory, options)
        device = GatedClassifier(model.classifier) if gated else None
        if device is not None:
            model = with_device(model, device, max_queue_rows)
        slot = ModelSlot(model)
        plane = DataPlane(
            {"tiny": ServedModel(slot, Policy(policy), on_uncheckable)},
            metrics,
            max_request_rows=max_request_rows,
            request_timeout_s=request_timeout_s,
            witnesses=witnesses,
        )
        self.built.append(House(plane, model, registry, device, slot, Policy(policy)))
        return self.built[-1]


@pytest.fixture
async def build(tmp_path: Path) -> AsyncIterator[Builder]:
    builder = Builder(tmp_path)
    yield builder
    for house in builder.built:
        if house.device is not None:
            house.device.let_all_go()
        await house.slot.close(drain_timeout_s=PATIENCE_S)


Build = Callable[..., House]


def request(images: np.ndarray, **changes: object) -> InferRequest:
    whole = InferRequest("tiny", (Tensor("images", "FP32", images),), id="id-7")
    return replace(whole, **changes)


def expected_findings(images: np.ndarray) -> list[tuple[float, float, int]]:
    """Return score, p-value and passes of each image by the formulas, in plain numpy."""
    strip = Strip(CheckPlan((2, 2, 4)), BOUNDARY)
    entropies = blend_entropies(images, tiny_overlays())
    findings = []
    for row, passes in zip(entropies, passes_needed(entropies, strip).astype(int), strict=True):
        mean = float(row[:passes].sum()) / 8
        findings.append((-mean, (1 + int((mean >= CLEAN_SCORES).sum())) / 5, int(passes)))
    return findings


def tensors(answer: InferResponse) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.data for tensor in answer.outputs}


# The answer


async def test_the_models_outputs_come_back_unchanged(build: Build) -> None:
    house = build("flag")

    answer = await house.infer(CLEAN)

    assert (answer.model_name, answer.model_version, answer.id) == ("tiny", "1", "id-7")
    [output] = answer.outputs
    assert (output.name, output.datatype, output.data.dtype) == ("logits", "FP32", np.float32)
    np.testing.assert_allclose(output.data, linear_logits(CLEAN), atol=1e-4)
    np.testing.assert_array_equal(output.data, house.model.classifier.logits(CLEAN))


@pytest.mark.parametrize("policy", ["enforce", "flag"])
async def test_clean_rows_are_accepted_with_score_p_value_and_passes(build: Build, policy: str) -> None:
    answer = await build(policy).infer(CLEAN, outputs=GUARD_OUTPUTS)

    expected = expected_findings(CLEAN)
    rows = tensors(answer)
    assert rows["guard_verdict"].tolist() == [b"accept"] * 6
    np.testing.assert_allclose(rows["guard_score"], [score for score, _, _ in expected], atol=1e-4)
    np.testing.assert_allclose(rows["guard_p_value"], [p for _, p, _ in expected], rtol=1e-6)
    assert rows["guard_passes"].tolist() == [passes for _, _, passes in expected] == [8, 4, 4, 2, 4, 2]
    assert [(tensor.name, tensor.datatype, tensor.data.dtype.kind) for tensor in answer.outputs] == [
        ("guard_verdict", "BYTES", "S"),
        ("guard_score", "FP32", "f"),
        ("guard_p_value", "FP32", "f"),
        ("guard_passes", "INT32", "i"),
    ]
    assert (rows["guard_score"].itemsize, rows["guard_passes"].itemsize) == (4, 4)


async def test_response_parameters_speak_of_the_worst_row_and_of_all_passes(build: Build) -> None:
    images = np.concatenate([CLEAN[:2], SUSPICIOUS[:1], CLEAN[2:4]])

    answer = await build("flag").infer(images)

    score, p, _ = expected_findings(SUSPICIOUS[:1])[0]
    assert answer.parameters == {
        "guard_verdict": "flag",
        "guard_score": pytest.approx(score, abs=1e-4),
        "guard_p_value": pytest.approx(p),
        "guard_passes": sum(passes for _, _, passes in expected_findings(images)),
    }
    assert type(answer.parameters["guard_score"]) is float
    assert type(answer.parameters["guard_passes"]) is int


async def test_flagged_rows_are_answered_with_their_verdicts(build: Build) -> None:
    images = np.concatenate([SUSPICIOUS, CLEAN])

    answer = await build("flag").infer(images, outputs=("guard_verdict", "logits"))

    assert [tensor.name for tensor in answer.outputs] == ["guard_verdict", "logits"]
    assert tensors(answer)["guard_verdict"].tolist() == [b"flag"] * 2 + [b"accept"] * 6
    np.testing.assert_allclose(tensors(answer)["logits"], linear_logits(images), atol=1e-4)


def test_the_worst_finding_is_the_most_severe_and_then_the_most_suspicious() -> None:
    accepted = [Finding(Verdict.ACCEPT, score, 0.5, 4) for score in (-2.0, -1.0)]
    unchecked = Finding(Verdict.UNCHECKED, float("nan"), float("nan"), 0)
    flagged = [Finding(Verdict.FLAG, score, 0.1, 8) for score in (-0.2, -0.1)]
    rejected = Finding(Verdict.REJECT, -0.3, 0.1, 8)

    assert worst(accepted) is accepted[1]
    assert worst([*accepted, unchecked]) is unchecked
    assert worst([unchecked, *flagged, *accepted]) is flagged[1]
    assert worst([*flagged, rejected, unchecked]) is rejected


def test_what_was_accepted_early_does_not_hide_a_row_that_was_looked_at_longer() -> None:
    """Its score is over the blends seen, on a scale of its own, and its p-value 1."""
    early, whole = Finding(Verdict.ACCEPT, 0.4, 1.0, 2), Finding(Verdict.ACCEPT, 0.3, 0.2, 30)
    assert worst([early, whole]) is whole
    assert worst([whole, early]) is whole


async def test_a_float16_model_answers_in_float16(build: Build) -> None:
    model = tiny_models.linear_classifier(datatype="FP16")
    house = build("flag", model=model)
    images = random_images(house.model.profile, 3)

    answer = await house.infer(images, inputs=(Tensor("images", "FP16", images),))

    [output] = answer.outputs
    assert (output.datatype, output.data.dtype) == ("FP16", np.float16)


# Policies


async def test_enforce_refuses_a_request_with_a_suspicious_row_and_names_it(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    house = build("enforce")
    images = np.concatenate([CLEAN[:1], SUSPICIOUS[:1], CLEAN[1:3]])

    with pytest.raises(InputRejectedError) as rejected:
        await house.infer(images)

    assert rejected.value.rows == (1,)
    assert rejected.value.scores == pytest.approx((-MEANS[6],), abs=1e-4)
    assert str(rejected.value) == (
        f"rejected: row 1 of 4 looks triggered (mean entropy {MEANS[6]:.4f} bits, below the boundary of "
        f"model 'tiny', {BOUNDARY:.4f}); nothing was answered: send the other rows without it, or have the "
        f"operator set the policy 'flag' to get answers with verdicts"
    )
    assert house.verdicts() == {"accept": 3, "reject": 1}
    [record] = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert record.getMessage() == "suspicious input"
    assert (record.model, record.version, record.request_id, record.policy, record.rows) == (
        *("tiny", "1", "id-7", "enforce"),
        [1],
    )
    assert record.scores == pytest.approx([-MEANS[6]], abs=1e-4)
    assert record.p_values == pytest.approx([0.2])


async def test_enforce_names_every_suspicious_row_and_the_lowest_entropy(build: Build) -> None:
    house = build("enforce")

    with pytest.raises(InputRejectedError) as rejected:
        await house.infer(np.concatenate([SUSPICIOUS, CLEAN[:1]]))

    assert rejected.value.rows == (0, 1)
    assert str(rejected.value).startswith(
        f"rejected: rows 0, 1 of 3 look triggered (mean entropy {MEANS[6:].min():.4f} bits, below"
    )
    assert "send the other rows without them, or" in str(rejected.value)
    assert house.verdicts() == {"accept": 1, "reject": 2}


async def test_where_every_row_is_suspicious_nobody_is_told_to_send_others(build: Build) -> None:
    house = build("enforce")

    with pytest.raises(InputRejectedError) as rejected:
        await house.infer(SUSPICIOUS[:1])

    assert "nothing was answered: have the operator set the policy 'flag'" in str(rejected.value)


async def test_monitor_answers_before_the_check_and_counts_after_it(build: Build) -> None:
    house = build("monitor", gated=True)
    images = np.concatenate([SUSPICIOUS, CLEAN])
    assert house.device is not None
    house.device.let_one_go()

    answer = await house.infer(images, outputs=("logits", *GUARD_OUTPUTS))

    assert answer.parameters == {"guard_verdict": "pending"}
    rows = tensors(answer)
    np.testing.assert_allclose(rows["logits"], linear_logits(images), atol=1e-4)
    assert rows["guard_verdict"].tolist() == [b"pending"] * 8
    assert np.isnan(rows["guard_score"]).all()
    assert np.isnan(rows["guard_p_value"]).all()
    assert (rows["guard_passes"].tolist(), rows["guard_passes"].dtype) == ([0] * 8, np.int32)
    assert house.verdicts() == {}
    house.device.let_all_go()
    await house.idle()
    assert house.verdicts() == {"accept": 6, "flag": 2}


async def test_monitor_never_refuses_what_enforce_would(build: Build) -> None:
    house = build("monitor", "refuse")
    images = np.concatenate([SUSPICIOUS[:1], np.full_like(CLEAN[:1], np.nan), CLEAN[:1] + 100])

    answer = await house.infer(images)

    assert answer.parameters == {"guard_verdict": "pending"}
    await house.idle()
    assert house.verdicts() == {"flag": 1, "unchecked": 2}
    assert house.uncheckable() == {("non_finite", "answered"): 1, ("out_of_range", "answered"): 1}


async def test_monitor_gives_up_old_checks_rather_than_refuse_new_requests(build: Build) -> None:
    house = build("monitor", gated=True, max_queue_rows=4)
    assert house.device is not None
    house.device.let_one_go()
    await house.infer(CLEAN[:4])
    await house.device.next_call()
    assert await house.device.next_call() == [
        (pytest.approx(row), n) for row in CLEAN[:4, 0, 0, 0] for n in (0, 1)
    ]
    newer = asyncio.create_task(house.infer(CLEAN[:3]))
    await asyncio.sleep(0)
    assert house.model.scheduler.rows == 3
    house.device.let_all_go()

    await newer
    await house.idle()

    assert house.verdicts() == {"accept": 3, "unchecked": 4}
    assert house.uncheckable() == {("queue_full", "answered"): 4}
    assert house.shed() == {}


# What cannot be checked


@pytest.mark.parametrize(
    ("value", "reason", "why"),
    [
        (np.nan, "non_finite", "holds 1 NaN or infinite values"),
        (np.inf, "non_finite", "holds 1 NaN or infinite values"),
        (-np.inf, "non_finite", "holds 1 NaN or infinite values"),
        (1.5, "out_of_range", "holds values from 0 to 1.5, outside the calibrated range 0 to 1"),
        (-0.01, "out_of_range", "holds values from -0.01 to 0, outside the calibrated range 0 to 1"),
    ],
)
async def test_a_row_that_cannot_be_checked_is_refused_by_default(
    build: Build, value: float, reason: str, why: str
) -> None:
    house = build("flag")
    images = np.zeros((3, 3, 8, 8), np.float32)
    images[2, 1, 4, 4] = value

    with pytest.raises(UncheckableInputError) as refused:
        await house.infer(images)

    assert str(refused.value) == (
        f"row 2 of input 'images' {why}, so it cannot be checked for a trigger (1 such rows); send finite "
        f"images preprocessed as at calibration"
    )
    assert house.uncheckable() == {(reason, "refused"): 1}
    assert house.verdicts() == {"unchecked": 1}


async def test_a_thousandth_of_the_range_is_allowed_for_rounding(build: Build) -> None:
    house = build("flag", boundary_bits=0.0)
    images = np.zeros((1, 3, 8, 8), np.float32)
    images[0, 0, 0, :2] = (-0.0009, 1.0009)

    assert (await house.infer(images)).parameters["guard_verdict"] == "accept"


async def test_a_row_that_cannot_be_checked_is_answered_and_counted_where_the_operator_chose_so(
    build: Build,
) -> None:
    house = build("flag", "answer")
    images = np.concatenate([CLEAN[:2], np.full_like(CLEAN[:1], np.nan), CLEAN[:1] + 7])

    answer = await house.infer(images, outputs=("logits", *GUARD_OUTPUTS))

    rows = tensors(answer)
    assert rows["guard_verdict"].tolist() == [b"accept", b"accept", b"unchecked", b"unchecked"]
    assert np.isnan(rows["guard_score"]).tolist() == [False, False, True, True]
    assert np.isnan(rows["guard_p_value"]).tolist() == [False, False, True, True]
    assert rows["guard_passes"].tolist() == [8, 4, 0, 0]
    np.testing.assert_allclose(rows["logits"][[0, 1, 3]], linear_logits(images[[0, 1, 3]]), atol=1e-2)
    assert answer.parameters == {"guard_verdict": "unchecked", "guard_passes": 12}
    assert house.uncheckable() == {("non_finite", "answered"): 1, ("out_of_range", "answered"): 1}
    assert house.verdicts() == {"accept": 2, "unchecked": 2}


async def test_an_unchecked_row_beside_a_rejected_one_is_counted_as_refused(build: Build) -> None:
    house = build("enforce", "answer")

    with pytest.raises(InputRejectedError):
        await house.infer(np.concatenate([SUSPICIOUS[:1], np.full_like(CLEAN[:1], np.nan)]))

    assert house.uncheckable() == {("non_finite", "refused"): 1}
    assert house.verdicts() == {"reject": 1, "unchecked": 1}


async def test_a_check_that_gives_no_number_is_refused_by_default(build: Build) -> None:
    house = build("flag", model=tiny_models.not_a_number_classifier())

    with pytest.raises(CheckFailedError) as failed:
        await house.infer(CLEAN[:2])

    assert str(failed.value) == (
        "row 0 of the request gave no finite entropy (2 such rows), so it cannot be checked for a trigger; "
        "send another input, or have the operator look at the model"
    )
    assert house.uncheckable() == {("check_failed", "refused"): 2}
    assert house.verdicts() == {"unchecked": 2}


@pytest.mark.parametrize("policy", ["enforce", "flag", "monitor"])
async def test_a_check_that_gives_no_number_is_answered_where_the_operator_chose_so(
    build: Build, policy: str
) -> None:
    house = build(policy, "answer", model=tiny_models.not_a_number_classifier())

    answer = await house.infer(CLEAN[:2])

    monitored = {"guard_verdict": "pending"}
    assert answer.parameters == (
        monitored if policy == "monitor" else {"guard_verdict": "unchecked", "guard_passes": 0}
    )
    await house.idle()
    assert house.uncheckable() == {("check_failed", "answered"): 2}
    assert house.verdicts() == {"unchecked": 2}


@dataclass
class BrokenDevice:
    """Fails from the second call on, or from the first."""

    inner: object
    good_calls: int

    def check(self, *arguments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.good_calls -= 1
        if self.good_calls < 0:
            raise RuntimeError("device lost")
        return self.inner.check(*arguments)  # type: ignore[attr-defined, no-any-return]


async def test_a_device_that_fails_is_told_to_the_caller_and_counted(build: Build) -> None:
    house = build("flag", "answer", gated=True)
    assert house.device is not None
    house.device._inner = BrokenDevice(house.device._inner, 0)
    house.device.let_all_go()

    with pytest.raises(CheckFailedError, match=re.escape("model 'tiny' failed on this input (RuntimeError)")):
        await house.infer(CLEAN[:3])

    assert house.uncheckable() == {("check_failed", "refused"): 3}
    assert house.verdicts() == {"unchecked": 3}


async def test_a_device_that_fails_after_a_monitored_answer_is_counted(build: Build) -> None:
    house = build("monitor", gated=True)
    assert house.device is not None
    house.device._inner = BrokenDevice(house.device._inner, 1)
    house.device.let_all_go()

    answer = await house.infer(CLEAN[:3])
    await house.idle()

    np.testing.assert_allclose(answer.outputs[0].data, linear_logits(CLEAN[:3]), atol=1e-4)
    assert house.uncheckable() == {("check_failed", "answered"): 3}
    assert house.verdicts() == {"unchecked": 3}


# Time, room, and callers who leave


async def test_a_caller_whose_time_runs_out_in_the_queue_is_told_and_its_rows_leave(build: Build) -> None:
    house = build("flag", gated=True)

    with pytest.raises(DeadlineError) as late:
        await house.infer(CLEAN, timeout_s=0.05)

    assert str(late.value) == (
        "model 'tiny' did not answer within 0.050 s; allow more time, send fewer rows, or add capacity"
    )
    assert house.shed() == {("deadline",): 1}
    assert house.model.scheduler.rows == 0
    assert house.verdicts() == {}


async def test_a_deadline_that_has_passed_on_arrival_is_no_deadline_of_minutes(build: Build) -> None:
    house = build("flag", gated=True)

    with pytest.raises(DeadlineError, match=r"did not answer within 0\.000 s"):
        await house.infer(CLEAN[:1], timeout_s=0.0)

    assert house.shed() == {("deadline",): 1}


async def test_a_caller_without_a_deadline_gets_the_operators(build: Build) -> None:
    house = build("flag", gated=True, request_timeout_s=0.05)

    for patience_s in (None, 1000.0):
        with pytest.raises(DeadlineError, match=r"did not answer within 0\.050 s"):
            await house.infer(CLEAN[:1], timeout_s=patience_s)

    assert house.shed() == {("deadline",): 2}


@pytest.mark.parametrize(
    ("timeout_s", "reason"), [(None, "cancelled"), (60.0, "cancelled"), (0.05, "deadline")]
)
async def test_a_caller_who_hangs_up_frees_its_rows_and_is_counted_by_why(
    build: Build, timeout_s: float | None, reason: str
) -> None:
    house = build("flag", gated=True)
    assert house.device is not None
    call = asyncio.create_task(house.infer(CLEAN[:2], timeout_s=timeout_s))
    await asyncio.sleep(0)
    assert house.model.scheduler.rows == 2

    call.cancel()
    with pytest.raises((asyncio.CancelledError, DeadlineError)):
        await call

    assert house.shed() == {(reason,): 1}
    assert house.model.scheduler.rows == 0


async def test_a_full_queue_sheds_and_counts(build: Build) -> None:
    house = build("flag", gated=True, max_queue_rows=3)
    assert house.device is not None
    held = asyncio.create_task(house.infer(CLEAN[:2]))
    await house.device.next_call()

    with pytest.raises(QueueFullError, match="2 rows are waiting and 2 more came, expected at most 3"):
        await house.infer(CLEAN[:2])

    assert house.shed() == {("queue_full",): 1}
    house.device.let_all_go()
    assert (await held).parameters["guard_verdict"] == "accept"


async def test_a_scheduler_that_closes_sheds_and_counts(build: Build) -> None:
    house = build("flag")
    await asyncio.to_thread(house.model.scheduler.close)

    with pytest.raises(ShuttingDownError):
        await house.infer(CLEAN[:1])

    assert house.shed() == {("shutting_down",): 1}


async def test_time_in_the_queue_and_in_all_is_counted_once_a_request(build: Build) -> None:
    house = build("flag")

    for _ in range(3):
        await house.infer(CLEAN[:2])

    waited, whole = (house.count("guard_stage_seconds_sum", stage=stage) for stage in ("queue", "total"))
    assert [house.count("guard_stage_seconds_count", stage=stage) for stage in ("queue", "total")] == [3, 3]
    assert 0 <= waited < whole < PATIENCE_S


async def test_passes_and_entropies_are_counted_once_a_checked_row(build: Build) -> None:
    house = build("flag", "answer")
    images = np.concatenate([CLEAN, SUSPICIOUS, np.full_like(CLEAN[:1], np.nan)])

    await house.infer(images)

    expected = expected_findings(images[:8])
    assert house.count("guard_check_passes_count") == 8
    assert house.count("guard_check_passes_sum") == sum(passes for _, _, passes in expected)
    assert house.count("guard_mean_entropy_bits_count") == 8
    assert house.count("guard_mean_entropy_bits_sum") == pytest.approx(
        sum(-score * 8 / passes for score, _, passes in expected), abs=1e-3
    )


# What does not fit the model


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_name": "nope"}, UnknownModelError, "model 'nope' is not served here; loaded: ['tiny']"),
        (
            {"model_version": "7"},
            UnknownModelError,
            "version '7' of model 'tiny' is not served here; loaded: '1'",
        ),
        (
            {"parameters": {"guard_policy": "monitor"}},
            UnsupportedRequestError,
            "parameter 'guard_policy' is set by the guard, not by callers; leave it out",
        ),
        (
            {"outputs": ("features",)},
            InvalidRequestError,
            "output 'features' is not one of model 'tiny'; expected one of logits, guard_verdict, "
            "guard_score, guard_p_value, guard_passes",
        ),
        (
            {"inputs": ()},
            InvalidRequestError,
            "model 'tiny' takes exactly one input, 'images', got none; send 'images' alone",
        ),
        (
            {"inputs": (Tensor("pictures", "FP32", CLEAN),)},
            InvalidRequestError,
            "model 'tiny' takes exactly one input, 'images', got 'pictures'; send 'images' alone",
        ),
        (
            {"inputs": (Tensor("images", "FP32", CLEAN), Tensor("mask", "FP32", CLEAN))},
            InvalidRequestError,
            "model 'tiny' takes exactly one input, 'images', got 'images', 'mask'; send 'images' alone",
        ),
        (
            {"inputs": (Tensor("images", "FP64", CLEAN.astype(np.float64)),)},
            InvalidRequestError,
            "input 'images' has datatype FP64, expected FP32; convert the images",
        ),
        (
            {"inputs": (Tensor("images", "FP32", CLEAN.transpose(0, 2, 3, 1)),)},
            InvalidRequestError,
            "input 'images' has shape (6, 8, 8, 3), expected (batch, 3, 8, 8) in NCHW order",
        ),
        (
            {"inputs": (Tensor("images", "FP32", CLEAN[0]),)},
            InvalidRequestError,
            "input 'images' has shape (3, 8, 8), expected (batch, 3, 8, 8) in NCHW order",
        ),
        (
            {"inputs": (Tensor("images", "FP32", CLEAN[:0]),)},
            InvalidRequestError,
            "input 'images' has a batch of 0 rows, expected 1 to 16; send at least one image",
        ),
        (
            {"inputs": (Tensor("images", "FP32", np.zeros((17, 3, 8, 8), np.float32)),)},
            InvalidRequestError,
            "input 'images' has a batch of 17 rows, expected 1 to 16; split the request",
        ),
    ],
)
async def test_a_request_that_does_not_fit_the_model_is_told_what_came_and_what_was_expected(
    build: Build, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    house = build("flag")

    with pytest.raises(error) as refused:
        await house.infer(CLEAN, **changes)

    assert str(refused.value) == message
    assert (house.verdicts(), house.uncheckable(), house.shed()) == ({}, {}, {})
    assert (await house.infer(CLEAN, model_version="1")).parameters["guard_verdict"] == "accept"


async def test_a_uint8_model_takes_every_byte(build: Build) -> None:
    house = build("flag", model=tiny_models.linear_classifier(datatype="UINT8"))
    images = random_images(house.model.profile, 2)

    answer = await house.infer(images, inputs=(Tensor("images", "UINT8", images),))

    assert answer.parameters["guard_verdict"] in {"accept", "flag"}
    assert sum(house.verdicts().values()) == 2


# What it says of itself


async def test_it_describes_the_model_with_a_free_batch(build: Build) -> None:
    assert await build("flag", max_request_rows=16).plane.describe("tiny", "") == ModelDescription(
        name="tiny",
        versions=("1",),
        platform="onnxruntime_onnx",
        backend="onnxruntime",
        max_batch_size=16,
        inputs=(TensorSpec("images", "FP32", (-1, 3, 8, 8)),),
        outputs=(TensorSpec("logits", "FP32", (-1, 10)),),
    )


async def test_an_unknown_model_cannot_be_described(build: Build) -> None:
    plane = build("flag").plane

    for name, version in (("nope", ""), ("tiny", "2")):
        with pytest.raises(UnknownModelError):
            await plane.describe(name, version)


async def test_the_server_says_its_name_and_version(build: Build) -> None:
    server = build("flag").plane.server()

    assert (server.name, server.version) == ("inference-guard", guard.__version__)
    assert server.extensions == ("model_configuration", "classification", "statistics")


async def test_readiness_ends_when_shutdown_begins_and_accepted_requests_are_still_answered(
    build: Build,
) -> None:
    house = build("flag", gated=True)
    assert house.device is not None
    plane = house.plane
    assert (plane.live(), plane.ready(), await plane.model_ready("tiny", "1")) == (True, True, True)
    assert (await plane.model_ready("tiny", "2"), await plane.model_ready("nope", "")) == (False, False)
    call = asyncio.create_task(house.infer(CLEAN[:1]))
    await house.device.next_call()

    plane.begin_shutdown()

    assert (plane.live(), plane.ready(), await plane.model_ready("tiny", "")) == (True, False, False)
    house.device.let_all_go()
    assert (await call).parameters["guard_verdict"] == "accept"


async def test_a_model_that_was_unloaded_is_unknown(build: Build) -> None:
    house = build("flag")
    await house.slot.close(drain_timeout_s=PATIENCE_S)

    assert house.plane.ready() is False
    with pytest.raises(UnknownModelError, match="model 'tiny' is not served here"):
        await house.infer(CLEAN[:1])


# Order and record


async def test_every_uncheckable_row_of_a_refused_request_is_counted_by_its_own_reason(build: Build) -> None:
    house = build("enforce")

    with pytest.raises(UncheckableInputError, match=r"row 0 of input 'images' holds 192 NaN"):
        await house.infer(np.concatenate([np.full_like(CLEAN[:1], np.nan), CLEAN[:1] + 7, CLEAN[:1] + 9]))

    assert house.uncheckable() == {("non_finite", "refused"): 1, ("out_of_range", "refused"): 2}
    assert house.verdicts() == {"unchecked": 3}


async def test_what_monitor_finds_later_is_logged_with_its_policy(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    house = build("monitor")

    await house.infer(np.concatenate([CLEAN[:1], SUSPICIOUS[:1]]))
    await house.idle()

    [record] = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert (record.getMessage(), record.policy, record.rows) == ("suspicious input", "monitor", [1])


def judge_of(house: House, registry: CollectorRegistry) -> Judge:
    served = ServedModel(house.slot, house.policy, "refuse")
    asked = request(CLEAN[:2])
    reporter = Reporter(asked, house.model, house.policy, CLEAN[:2], ())
    logits = np.zeros((2, 4), np.float32)
    return Judge(asked, served, house.model, Metrics(registry, ["tiny"]), {}, logits, reporter)


async def test_a_check_that_failed_is_told_before_a_row_that_is_suspicious(build: Build) -> None:
    """Neither is answered; the failure is the operator's to mend, and a rejection would hide it."""
    rows = [
        Row(True, predicted=True, evidence=Evidence(0.0, 8), decision=Decision.SUSPICIOUS),
        Row(True, predicted=True, evidence=Evidence(float("nan"), 2), decision=Decision.FAILED),
    ]

    with pytest.raises(CheckFailedError, match="row 1 of the request gave no finite entropy"):
        judge_of(build("enforce"), CollectorRegistry()).judge(rows)


async def test_a_check_that_was_given_up_with_its_request_counts_nothing(build: Build) -> None:
    registry = CollectorRegistry()
    judge = judge_of(build("monitor"), registry)
    given_up: asyncio.Future[list[Row]] = asyncio.get_running_loop().create_future()
    given_up.cancel()

    judge.record_later(given_up)

    counted = [
        sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name in {"guard_inputs_total", "guard_uncheckable_inputs_total"}
    ]
    assert set(counted) == {0.0}


@dataclass
class Notebook:
    """Writes down every incident; may fail at it."""

    incidents: list[Incident] = field(default_factory=list)
    broken: bool = False

    def saw(self, incident: Incident) -> None:
        self.incidents.append(incident)
        if self.broken:
            raise RuntimeError("the pencil broke")

    def told(self) -> list[tuple[int, str, str]]:
        return [(one.row, one.verdict.value, one.reason) for one in self.incidents]


async def test_witnesses_are_told_of_what_is_suspicious_and_of_nothing_else(build: Build) -> None:
    first, second = Notebook(broken=True), Notebook()
    house = build("flag", witnesses=(first, second))
    images = np.concatenate([CLEAN[:1], SUSPICIOUS[:1]])

    answer = await house.infer(images, client="ipv4:10.0.0.7")

    [incident] = first.incidents
    assert second.incidents == [incident]
    (score, p_value, passes) = expected_findings(images)[1]
    assert (incident.row, incident.verdict, incident.passes) == (1, Verdict.FLAG, passes)
    assert incident.score == pytest.approx(score, abs=1e-5)
    assert incident.p_value == pytest.approx(p_value)
    assert (incident.model, incident.version, incident.digest) == ("tiny", "1", house.model.digest)
    assert (incident.request_id, incident.client, incident.reason) == ("id-7", "ipv4:10.0.0.7", "")
    assert incident.label == answer.outputs[0].data[1].argmax()
    np.testing.assert_array_equal(incident.image, images[1])


async def test_witnesses_are_told_of_what_is_refused(build: Build) -> None:
    notebook = Notebook()
    house = build("enforce", witnesses=(notebook,))

    with pytest.raises(InputRejectedError):
        await house.infer(SUSPICIOUS[:2])
    with pytest.raises(UncheckableInputError):
        await house.infer(np.full_like(CLEAN[:1], np.nan))

    assert notebook.told() == [(0, "reject", ""), (1, "reject", ""), (0, "unchecked", "non_finite")]
    assert notebook.incidents[-1].label == NO_LABEL


async def test_witnesses_hear_of_an_answered_request_after_its_check(build: Build) -> None:
    notebook = Notebook()
    house = build("monitor", witnesses=(notebook,))

    await house.infer(SUSPICIOUS[:1])
    await house.idle()

    assert notebook.told() == [(0, "flag", "")]
