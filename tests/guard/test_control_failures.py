"""What is remembered of versions that did not come to serve."""

from __future__ import annotations

from guard.control.api import Failure
from guard.control.failures import Failures
from guard.control.listing import Listed


def test_each_version_is_told_once_in_the_order_in_which_they_failed_last() -> None:
    failures = Failures([Failure("3", 1.0, "torn"), Failure("2", 2.0, "lost")])
    again = failures.add("3", "still torn")

    assert failures.all == (Failure("2", 2.0, "lost"), again)
    assert (again.version, again.error) == ("3", "still torn")
    assert again.at > 2.0

    failures.forget("2")
    failures.forget("never failed")
    assert failures.all == (again,)


def test_of_versions_that_are_not_there_nothing_is_told_unless_nobody_knows() -> None:
    failures = Failures([Failure("2", 1.0, "torn"), Failure("99", 2.0, "mistyped")])

    assert failures.of(Listed(("1", "2"))) == (Failure("2", 1.0, "torn"),)
    assert failures.of(Listed(("1",), "the disk hangs")) == failures.all


def test_a_repository_that_gets_bad_versions_forever_leaves_the_latest() -> None:
    failures = Failures()
    for number in range(100):
        failures.add(str(number), "torn")
    assert [failure.version for failure in failures.all] == [str(number) for number in range(84, 100)]
