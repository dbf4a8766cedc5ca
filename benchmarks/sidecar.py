"""Start `guard serve` as a process of its own and learn its ports from the log."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sidecar:
    """A running `guard serve`."""

    process: subprocess.Popen[str]
    address: str
    metrics_url: str


@contextmanager
def sidecar(repository: Path, log: Path, *flags: str) -> Iterator[Sidecar]:
    """Serve a repository on free loopback ports; SIGTERM at the end, and expect a clean exit."""
    command = [sys.executable, "-m", "guard.cli", "serve", "--repository", str(repository)]
    command += ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", *flags]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, stdout=subprocess.PIPE, text=True)
    try:
        ready = _wait_until_ready(process, log)
        yield Sidecar(
            process, f"127.0.0.1:{ready['port']}", f"http://127.0.0.1:{ready['metrics_port']}/metrics"
        )
        process.send_signal(signal.SIGTERM)
        if process.wait(timeout=60) != 0:
            raise RuntimeError(f"the sidecar ended with exit code {process.returncode}; see {log}")
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[str], log: Path) -> dict[str, int]:
    with log.open() as lines:
        while process.poll() is None:
            line = lines.readline()
            if line.endswith("\n") and (entry := json.loads(line)).get("message") == "ready":
                return entry
            if not line:
                _pause(process)
    raise RuntimeError(f"the sidecar did not start: {log.read_text()}")


def _pause(process: subprocess.Popen[str]) -> None:
    """Wait a moment, or until the process ends."""
    try:
        process.wait(timeout=0.05)
    except subprocess.TimeoutExpired:
        return
