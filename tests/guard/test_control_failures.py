"""What is remembered of versions that did not come to serve."""

from __future__ import annotations

from guard.control.api import Failure
from guard.control.failures import Failures


def test_each_version_is_told_once_in_the_order_in_which_they_failed_last() -> None:
    failures = Failures([Failure("3", 1.0, "torn"), Failure("2", 2.0, "lost")])
    again = failures.add("3", "still torn")

    assert failures.all == (Failure("2", 2.0, "lost"), again)
    assert (again.version, again.error) == ("3", "still torn")
    assert again.at > 2.0

    failures.forget("2")
    failures.forget("never failed")
    assert failures.all == (again,)


def test_a_repository_that_gets_bad_versions_forever_leaves_the_latest() -> None:
    failures = Failures()
    for number in range(100):
        failures.add(str(number), "torn")
    assert [failure.version for failure in failures.all] == [str(number) for number in range(84, 100)]
