"""Another project's server as a process: started, waited for, killed, and started again on the same ports."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from peers.environments import scripts_alone
from tests.free_ports import free_port

__all__ = ["PeerProcess", "row_shape"]

READY_S = 180.0


def row_shape(model: onnx.ModelProto) -> list[int]:
    """Return the shape of one row of a model's input."""
    return [one.dim_value for one in model.graph.input[0].type.tensor_type.shape.dim][1:]


@dataclass
class PeerProcess:
    """A server of another project.

    Attributes:
        home: The environment that it is installed in.
        folder: Where its settings, its models and its log are.
    """

    home: Path
    folder: Path
    ports: dict[str, int] = field(
        default_factory=lambda: {kind: free_port() for kind in ("grpc", "http")}, kw_only=True
    )
    process: subprocess.Popen[bytes] | None = field(default=None, kw_only=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports['grpc']}"

    def command(self) -> list[str]:
        """Return what starts it."""
        raise NotImplementedError

    def ready_path(self) -> str:
        """Return the path at its HTTP port that answers 200 once it is ready."""
        return "/v2/health/ready"

    def variables(self) -> dict[str, str]:
        """Return its environment variables."""
        return scripts_alone(self.home)

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), env=self.variables(), cwd=self.folder, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + READY_S
        while not self._is_ready():
            assert self.process.poll() is None, f"the server ended: {self.log()[-3000:]}"
            assert time.monotonic() < deadline, f"the server is not ready: {self.log()[-3000:]}"
            time.sleep(0.1)

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            ended = self.process.poll()
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(READY_S)
            self.process = None
            assert ended is None, f"the server had ended by itself ({ended}): {self.log()[-3000:]}"

    def log(self) -> str:
        """Return what it wrote so far."""
        return (self.folder / "log").read_text(errors="replace")

    def _is_ready(self) -> bool:
        """Return whether it says so, and is there for gRPC too, which some begin later."""
        url = f"http://127.0.0.1:{self.ports['http']}{self.ready_path()}"
        grpc = ("127.0.0.1", self.ports["grpc"])
        try:
            with (
                urllib.request.urlopen(url, timeout=READY_S) as answer,
                socket.create_connection(grpc, READY_S),
            ):
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
