"""What an error says to a caller, and what it keeps to the log."""

from __future__ import annotations

import re

import grpc
import pytest

from guard import errors
from guard.rpc.status import metadata_of, status_of


def test_an_error_on_purpose_keeps_its_words() -> None:
    error = errors.UnknownModelError("model 'nope' is not in the repository; loaded: ['gtsrb']")

    assert status_of(error) == (grpc.StatusCode.NOT_FOUND, str(error))


def test_a_subclass_without_a_line_of_its_own_takes_its_parents_status() -> None:
    class NewError(errors.QueueFullError): ...

    assert status_of(NewError("full")) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")


def test_an_error_without_words_is_at_least_named() -> None:
    assert status_of(errors.ShuttingDownError()) == (grpc.StatusCode.UNAVAILABLE, "ShuttingDownError")


def test_a_message_is_cut_before_it_outgrows_a_header() -> None:
    _, message = status_of(errors.UnknownModelError("é" * 5000))

    assert message == "é" * 1000 + "…"


def test_a_defect_is_logged_whole_and_answered_with_the_id_of_the_log_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    code, message = status_of(ZeroDivisionError("secret path /etc/x"))

    assert code is grpc.StatusCode.INTERNAL
    assert (found := re.fullmatch(r"unexpected error, see server log ([0-9a-f]{12})", message))
    assert f"unexpected error {found[1]}" in caplog.text
    assert "ZeroDivisionError: secret path /etc/x" in caplog.text


def test_only_a_rejected_input_has_trailing_metadata() -> None:
    rejected = errors.InputRejectedError("rows 0, 3", rows=(0, 3), scores=(-0.25, -1 / 3))

    assert metadata_of(errors.QueueFullError("full")) == ()
    assert metadata_of(rejected) == (
        ("guard-verdict", "reject"),
        ("guard-row-count", "2"),
        ("guard-rows", "0,3"),
        ("guard-scores", "-0.25,-0.333333"),
    )


def test_rejected_rows_are_all_counted_and_the_first_hundred_listed() -> None:
    rows = tuple(range(1000))
    metadata = dict(
        metadata_of(errors.InputRejectedError("many", rows=rows, scores=tuple(-1.0 for _ in rows)))
    )

    assert metadata["guard-row-count"] == "1000"
    assert metadata["guard-rows"].split(",") == [str(row) for row in range(100)]
    assert len(metadata["guard-scores"].split(",")) == 100
