"""Logs are one line a record, whatever is in the record."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from guard.errors import SettingsError
from guard.logs import LOG_FORMATS, LOG_LEVELS, configure_logging

HOSTILE = 'net"\n2031-01-01T00:00:00.000Z info    guard: all is well\r\x1b[2J\u2028\u202e\x85é'


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.captureWarnings(False)
    logging.getLogger("py.warnings").handlers.clear()
    root.handlers[:] = handlers
    root.setLevel(level)


@dataclass
class Stream:
    """Standard error, split at newlines only, as a log shipper does."""

    capture: pytest.CaptureFixture[str]

    @property
    def lines(self) -> list[str]:
        text = self.capture.readouterr().err
        assert text == "" or text.endswith("\n")
        return text.split("\n")[:-1]


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Stream:
    return Stream(capsys)


Log = Callable[..., list[str]]


@pytest.fixture
def log(stderr: Stream) -> Log:
    def lines(format: str, message: str, **options: Any) -> list[str]:
        configure_logging("info", format)
        logging.getLogger("guard.test").info(message, **options)
        return stderr.lines

    return lines


def entry_of(lines: list[str]) -> dict[str, Any]:
    (line,) = lines
    entry: dict[str, Any] = json.loads(line, parse_constant=pytest.fail)
    return entry


def failure() -> BaseException:
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        return error


def test_a_json_record_has_time_level_logger_message_and_extras(log: Log) -> None:
    entry = entry_of(log("json", "model loaded", extra={"model": "resnet", "rows": 3}))
    moment = entry.pop("ts")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", moment)
    assert entry == {
        "level": "info",
        "logger": "guard.test",
        "message": "model loaded",
        "model": "resnet",
        "rows": 3,
    }


def test_the_time_is_that_of_the_record_in_utc() -> None:
    record = logging.makeLogRecord(
        {"created": 1_700_000_000.0625, "levelname": "INFO", "name": "n", "msg": "m"}
    )
    assert json.loads(LOG_FORMATS["json"]().format(record))["ts"] == "2023-11-14T22:13:20.062Z"


def test_an_exception_is_one_field_of_the_same_line(log: Log) -> None:
    entry = entry_of(log("json", "call failed", exc_info=failure()))
    first, *_, last = entry["traceback"].split("\n")
    assert first == "Traceback (most recent call last):"
    assert "ValueError" in entry["traceback"]
    assert last  # the traceback does not end in an empty line


def test_a_hostile_name_stays_within_its_json_string(log: Log) -> None:
    (line,) = log("json", HOSTILE, extra={"model": HOSTILE})
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == HOSTILE
    assert json.loads(line)["model"] == HOSTILE


def test_a_hostile_name_cannot_forge_a_line_of_text(log: Log) -> None:
    (line,) = log("text", HOSTILE, extra={"model": HOSTILE})
    assert line.isprintable()
    assert 'guard.test: net"\\x0a2031-' in line


def test_a_traceback_in_text_is_indented_below_its_line(log: Log) -> None:
    head, *rest = log("text", "call failed", exc_info=failure())
    assert head.endswith("guard.test: call failed")
    assert rest[0] == "    Traceback (most recent call last):"
    assert [line for line in rest if not (line.startswith("    ") and line.isprintable())] == []


def test_an_extra_named_like_a_field_does_not_replace_it(log: Log) -> None:
    entry = entry_of(log("json", "hello", extra={"level": "quiet", "ts": "never", "logger": "me"}))
    assert entry["level"] == "info"
    assert (entry["extra_level"], entry["extra_ts"], entry["extra_logger"]) == ("quiet", "never", "me")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (np.float32(0.5), "0.5"),
        (float("nan"), "nan"),
        ([float("inf")], "[inf]"),
        ({("a", 1): 2}, "{('a', 1): 2}"),
        (ValueError("no"), "no"),
        ("\ud800", "\ud800"),
    ],
)
def test_what_json_cannot_hold_is_written_as_text(log: Log, value: object, written: str) -> None:
    assert entry_of(log("json", "hello", extra={"value": value}))["value"] == written


def test_stack_info_is_a_field(log: Log) -> None:
    assert "test_stack_info_is_a_field" in entry_of(log("json", "here", stack_info=True))["stack"]


@pytest.mark.parametrize("level", LOG_LEVELS)
def test_only_records_of_the_level_and_above_are_written(stderr: Stream, level: str) -> None:
    configure_logging(level.upper(), "json")
    for each in LOG_LEVELS:
        logging.getLogger("guard.test").log(getattr(logging, each.upper()), each)
    written = [json.loads(line)["level"] for line in stderr.lines]
    assert written == list(LOG_LEVELS[LOG_LEVELS.index(level) :])


def test_a_second_call_replaces_the_first(stderr: Stream) -> None:
    configure_logging("info", "json")
    configure_logging("info", "text")
    logging.getLogger("guard.test").info("once")
    (line,) = stderr.lines
    assert line.endswith("info     guard.test: once")


def test_python_warnings_are_records_too(stderr: Stream) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure_logging("info", "json")
        warnings.warn("old call", DeprecationWarning, stacklevel=1)
    entry = entry_of(stderr.lines)
    assert entry["logger"] == "py.warnings"
    assert "DeprecationWarning: old call" in entry["message"]


@pytest.mark.parametrize(("level", "format"), [("loud", "json"), ("info", "xml")])
def test_an_unknown_level_or_format_is_refused_and_changes_nothing(level: str, format: str) -> None:
    before = list(logging.getLogger().handlers)
    with pytest.raises(SettingsError, match=r"log_(level|format): expected one of .*, got '(loud|xml)'"):
        configure_logging(level, format)
    assert logging.getLogger().handlers == before
