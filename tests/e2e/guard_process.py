"""``guard`` as a process of its own, its log read as it comes."""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import sysconfig
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.serving import PATIENCE_S, http_get

GUARD = Path(sysconfig.get_path("scripts")) / "guard"
LOCAL = ("--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--threads", "1")


@dataclass
class Process:
    """A running ``guard``; its standard error is read as it comes."""

    popen: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._news: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @classmethod
    def start(cls, *argv: object, **variables: str) -> Process:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GUARD_")}
        popen = subprocess.Popen(
            [GUARD, *map(str, argv)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=clean | variables,
        )
        return cls(popen)

    def wait_for(self, message: str) -> dict[str, Any]:
        """Return the log record with this message, when it comes."""
        try:
            while (line := self._news.get(timeout=PATIENCE_S)) is not None:
                if line.startswith("{") and (record := json.loads(line))["message"] == message:
                    return dict(record)
        except queue.Empty:
            pytest.fail(f"guard does not say {message!r}: {self.lines}")
        self.end()
        pytest.fail(f"guard ended before it said {message!r}: {self.lines}")

    def end(self, number: int | None = None) -> int:
        """Send a signal, if one is given, and return the exit code."""
        if number is not None:
            self.popen.send_signal(number)
        try:
            code = self.popen.wait(PATIENCE_S)
        finally:
            self.popen.kill()
            self._reader.join()
            self._news.put(None)
        return code

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def _read(self) -> None:
        assert self.popen.stderr is not None
        with self.popen.stderr as stderr:
            for line in stderr:
                self.lines.append(line.rstrip("\n"))
                self._news.put(self.lines[-1])
        self._news.put(None)


@dataclass
class Served:
    """A process that is ready, and where."""

    process: Process
    port: int
    metrics_port: int

    @classmethod
    def start(cls, repository: Path, *argv: str, **variables: str) -> Served:
        process = Process.start("serve", "--repository", repository, *LOCAL, *argv, **variables)
        ready = process.wait_for("ready")
        assert ready["models"] == ["tiny"]
        return cls(process, ready["port"], ready["metrics_port"])

    def get(self, path: str) -> tuple[int, str]:
        return http_get(self.metrics_port, path)

    def becomes(self, path: str, status: int) -> None:
        """Wait until a probe is answered so."""
        deadline = time.monotonic() + PATIENCE_S
        while (last := self.get(path))[0] != status:
            assert time.monotonic() < deadline, f"{path} is {last}, expected {status}: {self.process.lines}"
            time.sleep(0.01)

    def metric(self, name: str) -> float:
        """Return the sum of a metric's samples."""
        return summed(self.get("/metrics")[1], name)


def summed(exposition: str, name: str) -> float:
    """Return the sum of a metric's samples in what /metrics shows."""
    return sum(map(float, re.findall(rf"^{name}(?:{{.*}})? (\S+)$", exposition, re.MULTILINE)))
