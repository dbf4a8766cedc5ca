"""What workers say of a model becomes one answer, and where they differ the answer says so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from guard.control.api import CanaryStatus, Failure, ModelStatus, SwapReport, VersionInfo
from guard.errors import BusyError, CandidateError, OperationError
from guard.rpc.pb import guard_worker_pb2 as pb
from guard.workers.change_servicer import encode_failure, failure_of
from guard.workers.statuses import one_canary, one_report, one_status


def info(version: str) -> VersionInfo:
    return VersionInfo(version, version * 64, "f" * 64, 0.5, 0.01, 100.0)


def status(version: str, **fields: object) -> ModelStatus:
    known = ModelStatus("tiny", "flag", info(version), ("1",), ("1", "2"), None, ())
    return replace(known, **fields)


def canary(*, running: bool = True, outcome: str = "", **figures: float) -> CanaryStatus:
    return CanaryStatus(info("2"), 0.5, 10.0, running, outcome, figures)


def test_workers_that_agree_are_one() -> None:
    assert one_status({"worker-1": status("2"), "worker-2": status("2")}) == status("2")


def test_workers_that_serve_different_versions_are_told_apart() -> None:
    said = one_status({"worker-1": status("2", note="a disk hangs"), "worker-2": status("1")})

    assert said.current == info("2")
    assert said.note == "a disk hangs; workers differ: worker-1 serves 2, worker-2 serves 1"


def test_what_failed_in_any_is_shown_once_as_it_failed_last() -> None:
    early, late, again = Failure("3", 1.0, "torn"), Failure("4", 2.0, "worse"), Failure("3", 3.0, "torn")

    said = one_status(
        {"worker-1": status("2", failures=(early, late)), "worker-2": status("2", failures=(again,))}
    )

    assert said.failures == (late, again)


def test_figures_of_a_candidate_add_up_but_for_latencies_limits_and_means() -> None:
    said = one_canary(
        [
            canary(
                rows=10.0,
                candidate_p99_seconds=0.1,
                max_rejection_rate=0.02,
                mean_entropy_difference_bits=0.4,
            ),
            canary(
                rows=30.0,
                candidate_p99_seconds=0.3,
                max_rejection_rate=0.02,
                mean_entropy_difference_bits=0.0,
            ),
        ]
    )

    assert said.figures == pytest.approx(
        {
            "rows": 40.0,
            "candidate_p99_seconds": 0.3,
            "max_rejection_rate": 0.02,
            "mean_entropy_difference_bits": 0.1,
        }
    )


def test_a_candidate_ended_for_what_it_did_in_one_worker() -> None:
    said = one_canary(
        [canary(running=False, outcome="stopped"), canary(running=False, outcome="rolled back for errors: 9")]
    )

    assert (said.running, said.outcome) == (False, "rolled back for errors: 9")


def test_a_change_took_as_long_as_the_slowest_and_says_what_any_says() -> None:
    unchanged = SwapReport("tiny", info("2"), info("2"), 0.1, changed=False)
    changed = SwapReport("tiny", info("1"), info("2"), 0.5, changed=True, note="not written down")

    assert one_report([unchanged, changed]) == changed
    assert one_report([unchanged, unchanged]) == unchanged


@pytest.mark.parametrize(
    "error",
    [CandidateError("'2' is torn", its_own=True, reason="torn"), BusyError("busy"), OperationError("no")],
)
def test_an_error_travels_between_worker_and_parent(error: OperationError) -> None:
    arrived = failure_of(encode_failure(error), "worker-2")

    assert (type(arrived), str(arrived)) == (type(error), f"worker-2: {error}")
    assert getattr(arrived, "its_own", None) == getattr(error, "its_own", None)
    if isinstance(error, CandidateError):
        assert isinstance(arrived, CandidateError)
        assert arrived.reason == f"worker-2: {error.reason}"


def test_a_reason_that_did_not_travel_is_what_the_words_say() -> None:
    arrived = failure_of(pb.ChangeFailure(kind="CandidateError", words="torn"), "worker-2")

    assert isinstance(arrived, CandidateError)
    assert (str(arrived), arrived.reason) == ("worker-2: torn", "worker-2: torn")


def test_a_defect_travels_as_the_id_it_was_logged_under(caplog: pytest.LogCaptureFixture) -> None:
    arrived = failure_of(encode_failure(ZeroDivisionError("secret")))

    assert type(arrived) is OperationError
    assert "secret" not in str(arrived)
    assert str(arrived).rpartition(" ")[2] in caplog.text
