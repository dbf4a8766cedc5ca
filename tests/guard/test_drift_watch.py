"""What a running guard sees of its inputs: every checked one, a share of them in full, and no other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from guard.artifact import Profile
from guard.dataplane.drift_counts import DriftCounts
from guard.dataplane.drift_watch import DriftWatch, budget_of
from guard.dataplane.share import Share
from guard.detection.base import Decision
from guard.detection.drift import Budget
from guard.rpc.pb import open_inference_pb2 as pb
from guard.runtime.check_task import Row
from guard.runtime.loader import RuntimeOptions, load_model
from guard.runtime.slot import ModelSlot
from tests.artifacts import make_profile, write_tiny_artifact
from tests.guard.upstream_house import BOUNDARY, CLEAN, SUSPICIOUS, in_front_of, tiny_repository
from tests.model_server import ModelServer
from tests.serving import PATIENCE_S, Client, infer_request, serving
from tests.tiny_models import linear_classifier

N = 8
FULLY = "guard_full_check_p_value_count"
BOTH = np.concatenate([CLEAN[:2], SUSPICIOUS[:1]])


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - a scrape is not told of counts either
            await asyncio.sleep(0.005)


def states(client: Client) -> set[str]:
    return {state for (state,) in client.counted("guard_drift_state", "state")}


def evidence(client: Client) -> float:
    [value] = client.counted("guard_drift_frr_log10_evidence").values()
    return value


async def repeat(times: int, ask: Callable[[], Awaitable[object]]) -> None:
    for _ in range(times):
        await ask()


async def asked(
    repository: Path, images: np.ndarray, policy: str, share: float
) -> tuple[pb.ModelInferResponse, dict[tuple[str, ...], float], float]:
    """Return the answer, the verdicts counted, and the images and blends that were run beside the checks."""
    async with serving(repository, policy=policy, full_check_share=share) as client:
        answer = await client.infer(infer_request(images))
        await until(lambda: sum(client.counted("guard_inputs_total", "verdict").values()) == len(images))
        if share:
            await until(lambda: client.counted(FULLY) == {(): len(images)})
        checks = client.counted("guard_check_passes_sum")[()] + len(images)
        verdicts = client.counted("guard_inputs_total", "verdict")
        return answer, verdicts, client.counted("guard_device_batch_pairs_sum")[()] - checks


@pytest.mark.parametrize("policy", ["flag", "enforce", "monitor"])
async def test_a_full_check_changes_no_answer_and_is_counted_in_no_verdict(
    tmp_path: Path, policy: str
) -> None:
    images = CLEAN[:2] if policy == "enforce" else BOTH
    repository = tiny_repository(tmp_path)
    without = await asked(repository, images, policy, 0.0)
    in_full = await asked(repository, images, policy, 1.0)

    assert in_full[:2] == without[:2]
    assert (without[2], in_full[2]) == (0, len(images) * (N + 1))


async def test_only_a_share_of_the_inputs_is_checked_in_full(tmp_path: Path) -> None:
    own = {"tiny": {"full_check_share": 0.25}}
    async with serving(tiny_repository(tmp_path), policy="flag", models=own) as client:
        await repeat(10, lambda: client.infer(infer_request(CLEAN[:4])))
        await until(lambda: client.counted(FULLY) == {(): 10})


async def test_exact_p_values_are_those_of_all_blends(tmp_path: Path) -> None:
    async with serving(tiny_repository(tmp_path), policy="flag", full_check_share=1.0) as client:
        answer = await client.infer(infer_request(SUSPICIOUS[:1]))  # all blends, so its p-value is exact
        [p] = [one.double_param for name, one in answer.parameters.items() if name == "guard_p_value"]
        await until(lambda: client.counted("guard_full_check_p_value_sum") == {(): pytest.approx(p)})


async def test_suspicious_inputs_of_one_class_are_an_attack_that_is_logged_and_counted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "guard.dataplane.drift_watch")
    async with serving(tiny_repository(tmp_path), policy="flag", full_check_share=0.0) as client:
        await repeat(10, lambda: client.infer(infer_request(CLEAN)))
        assert states(client) == {"calm"}
        assert evidence(client) < 0.0
        await repeat(30, lambda: client.infer(infer_request(SUSPICIOUS[:1])))
        assert states(client) == {"attack"}
        assert evidence(client) >= 3.0
        assert client.counted("guard_drift_alarms_total", "state")[("attack",)] == 1
        await repeat(100, lambda: client.infer(infer_request(CLEAN)))
        assert states(client) == {"calm"}
    told = [record for record in caplog.records if record.name == "guard.dataplane.drift_watch"]
    assert [record.state for record in told] == ["drift", "attack", "calm"]
    assert told[1].reason.startswith("more inputs are suspicious than the 1.00% certified, ")


async def test_refused_inputs_count_and_so_do_those_that_a_model_server_answers(tmp_path: Path) -> None:
    async with serving(tiny_repository(tmp_path), policy="enforce") as client:
        await repeat(30, lambda: client.refusal(infer_request(SUSPICIOUS[:1])))
        assert evidence(client) >= 3.0
    async with (
        ModelServer(linear_classifier()) as upstream,
        in_front_of(upstream, tiny_repository(tmp_path), policy="flag", full_check_share=1.0) as client,
    ):
        await repeat(30, lambda: client.infer(infer_request(SUSPICIOUS[:1])))
        assert evidence(client) >= 3.0
        await until(lambda: client.counted(FULLY) == {(): 30})


async def test_another_version_begins_anew(tmp_path: Path) -> None:
    repository = tiny_repository(tmp_path)
    write_tiny_artifact(repository, boundary_bits=BOUNDARY, probed=True)
    async with serving(repository, policy="flag") as client:
        await repeat(30, lambda: client.infer(infer_request(SUSPICIOUS[:1])))
        assert states(client) == {"attack"}
        await client.server.control.swap("tiny", "1")
        assert states(client) == {"calm"}
        assert client.counted("guard_drift_frr_log10_evidence") == {}  # 0: as many for it as against it
        await repeat(30, lambda: client.infer(infer_request(SUSPICIOUS[:1])))
        assert client.counted("guard_drift_alarms_total", "state")[("attack",)] == 2


async def test_a_candidate_s_inputs_and_those_not_checked_to_the_end_do_not_count(tmp_path: Path) -> None:
    directory = write_tiny_artifact(tmp_path, boundary_bits=BOUNDARY)
    current, other = (load_model("tiny", directory, RuntimeOptions(device="cpu")) for _ in range(2))
    registry = CollectorRegistry()
    full = Share(1.0, np.random.default_rng(0))
    watch = DriftWatch(
        ModelSlot(current), full, DriftCounts(registry), false_alarm_rate=0.001, cusum_limit=12.0
    )
    found = Row(True, predicted=True, decision=Decision.SUSPICIOUS)
    try:
        watch.checked(other, [found], None, CLEAN[:1])
        unread = [Row(False), Row(True), Row(True, decision=Decision.FAILED)]
        watch.checked(current, unread, None, CLEAN[:3])
        assert watch.watched().exceeded.evidence == 1.0
        assert current.scheduler.rows == other.scheduler.rows == 0
        doubtful = Row(True, predicted=True, decision=Decision.DOUBTFUL)
        watch.checked(current, [doubtful], np.zeros((1, 10), np.float32), CLEAN[:1])
        assert watch.watched().exceeded.evidence > 2.0
    finally:
        for model in (current, other):
            await asyncio.to_thread(model.close)


async def test_full_checks_are_not_begun_while_the_line_is_a_quarter_full(tmp_path: Path) -> None:
    small = {"max_queue_rows": 8, "max_request_rows": 8}
    async with serving(tiny_repository(tmp_path), policy="flag", full_check_share=1.0, **small) as client:
        await client.infer(infer_request(CLEAN[:3]))  # three rows are more than a quarter of eight
        await client.infer(infer_request(CLEAN[:2]))
        await until(lambda: client.counted(FULLY) == {(): 2})


def uncertified(profile: Profile) -> Profile:
    boundary = profile.boundary.model_copy(update={"certified_frr": None, "frr": 0.02})
    return profile.model_copy(update={"boundary": boundary})


def test_the_budget_is_the_certified_rate_else_the_one_asked_for() -> None:
    profile = make_profile(linear_classifier())
    assert budget_of(profile) == Budget(0.01, certified=True)
    assert budget_of(uncertified(profile)) == Budget(0.02, certified=False)
