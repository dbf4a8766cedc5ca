"""The real Triton, installed into an environment of its own together with its client.

NVIDIA's wheel ``nvidia-pytriton`` holds the server and its python backend, and no other.
"""

from __future__ import annotations

import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("nvidia-pytriton==0.7.0", "numpy<2", "tritonclient[grpc]", "onnxruntime")
START_S = 60.0


@dataclass(frozen=True)
class Triton:
    """An environment with the server."""

    home: Path

    @classmethod
    def install(cls, home: Path) -> Triton:
        """Make the environment; takes about a minute."""
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, timeout=120)
        triton = cls(home)
        install = [str(triton.python), "-m", "pip", "install", "--quiet", *PACKAGES]
        subprocess.run(install, check=True, timeout=600)
        backend = triton.backends / "python"
        shutil.copytree(triton.server / "backends" / "python", backend)
        minor = f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copy(triton.server / "python_backend_stubs" / minor / "triton_python_backend_stub", backend)
        return triton

    @property
    def python(self) -> Path:
        return self.home / "bin" / "python"

    @property
    def packages(self) -> Path:
        return next((self.home / "lib").glob("python3.*/site-packages"))

    @property
    def server(self) -> Path:
        return self.packages / "pytriton" / "tritonserver"

    @property
    def backends(self) -> Path:
        return self.home / "backends"

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "LD_LIBRARY_PATH": str(self.packages / "nvidia_pytriton.libs"),
            "PYTHONPATH": str(self.packages),
            "PATH": f"{self.python.parent}:{os.environ['PATH']}",
        }

    @contextmanager
    def serving(self, repository: Path) -> Iterator[str]:
        """Serve all models of a repository; gives the gRPC address."""
        port = free_port()
        argv: list[Any] = [self.server / "bin" / "tritonserver", "--model-repository", repository]
        argv += ["--backend-directory", self.backends, "--grpc-address", "127.0.0.1", "--grpc-port", port]
        argv += ["--allow-http", "false", "--allow-metrics", "false"]
        popen = subprocess.Popen(
            [str(part) for part in argv],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        lines: queue.Queue[str] = queue.Queue()
        reader = threading.Thread(target=read_lines, args=(popen, lines))
        reader.start()
        try:
            wait_until_started(lines)
            yield f"127.0.0.1:{port}"
        finally:
            popen.terminate()
            popen.wait(START_S)
            reader.join()


def read_lines(popen: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    """Read the log as it comes, so that the pipe never fills; an empty line at the end."""
    assert popen.stderr is not None
    with popen.stderr as stderr:
        for line in stderr:
            lines.put(line)
    lines.put("")


def wait_until_started(lines: queue.Queue[str]) -> None:
    """Wait for the log to say that the gRPC service is there."""
    seen = []
    while line := lines.get(timeout=START_S):
        seen.append(line)
        if "Started GRPCInferenceService" in line:
            return
    pytest.fail(f"tritonserver did not start: {''.join(seen)}")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port
