"""Logs: one line a record, as JSON for machines or as text for people.

Whatever a caller sent (a model name, a tensor name) may end in a message, so neither format lets
it start a line of its own or reach a terminal as a control sequence.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from guard.errors import SettingsError

__all__ = ["LOG_FORMATS", "LOG_LEVELS", "JsonFormatter", "TextFormatter", "configure_logging"]

LOG_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_CORE: Final = frozenset({"ts", "level", "logger", "message", "traceback", "stack"})


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: ts, level, logger, message, what was given as ``extra``, traceback.

    Everything outside ASCII and every control character is escaped. An extra named like one of the
    fields is kept as ``extra_<name>``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        entry: dict[str, Any] = {
            "ts": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, value in _extras(record).items():
            entry[f"extra_{key}" if key in _CORE else key] = value
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        if record.stack_info:
            entry["stack"] = self.formatStack(record.stack_info)
        return _as_json(entry)


class TextFormatter(logging.Formatter):
    """A record as a line for people; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line or lines, without the last end."""
        extras = "".join(f" {key}={value!r}" for key, value in _extras(record).items())
        head = (
            f"{_timestamp(record)} {record.levelname.lower():8} {record.name}: {record.getMessage()}{extras}"
        )
        lines = [_printable(head)]
        if record.exc_info:
            lines += _indented(self.formatException(record.exc_info))
        if record.stack_info:
            lines += _indented(self.formatStack(record.stack_info))
        return "\n".join(lines)


LOG_FORMATS: Final[Mapping[str, type[logging.Formatter]]] = {"json": JsonFormatter, "text": TextFormatter}


class _Handler(logging.StreamHandler[TextIO]):
    """Marks the handler that :func:`configure_logging` installed."""


def configure_logging(level: str, format: str, **always: object) -> None:
    """Write every record of the process to standard error; a second call replaces the first.

    Python's own warnings are logged too, so that each line of a JSON log is JSON.

    Args:
        level: Lowest level that is written, from :data:`LOG_LEVELS`.
        format: ``json`` or ``text``.
        always: What every record says besides, such as which of several processes it comes from.

    Raises:
        SettingsError: If level or format is not one of those.
    """
    if level.lower() not in LOG_LEVELS:
        raise SettingsError(f"log_level: expected one of {', '.join(LOG_LEVELS)}, got {level!r}")
    if format not in LOG_FORMATS:
        raise SettingsError(f"log_format: expected one of {', '.join(LOG_FORMATS)}, got {format!r}")
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, _Handler)]:
        root.removeHandler(old)
    handler = _Handler(sys.stderr)
    handler.setFormatter(LOG_FORMATS[format]())
    handler.addFilter(_Adding(always))
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)


class _Adding(logging.Filter):
    """Adds the same fields to every record, and lets all pass."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        super().__init__()
        self._fields = fields

    def filter(self, record: logging.LogRecord) -> bool:
        vars(record).update(self._fields)
        return True


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _OWN}


def _as_json(entry: dict[str, Any]) -> str:
    try:
        return json.dumps(entry, default=str, allow_nan=False)
    except (TypeError, ValueError):
        # NaN, a loop, or keys that are no strings: not JSON, so shown as Python would.
        return json.dumps({k: v if isinstance(v, str) else repr(v) for k, v in entry.items()})


def _indented(text: str) -> list[str]:
    return [f"    {_printable(line)}" for line in text.split("\n")]


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped(ord(each)) for each in text)


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
