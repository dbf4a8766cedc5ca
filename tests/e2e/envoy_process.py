"""The real Envoy as a process, with the configuration of ``deploy/envoy`` but for its ports and files."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from peers.environments import packages
from tests.e2e.peer_process import PeerProcess
from tests.free_ports import free_port

__all__ = ["CONFIGURATION", "Envoy"]

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "envoy" / "envoy.yaml"
PORTS = {"grpc": 8001, "http": 9901, "model_server": 8101, "guard": 8011, "second_guard": 8012}
"""Ports as they stand in the file, by what is there."""


@dataclass
class Envoy(PeerProcess):
    """An Envoy in front of a model server and two guards.

    Attributes:
        secrets: Folder that stands for ``/run/secrets``; with one it speaks TLS.
        concurrency: Its worker threads.
    """

    secrets: Path | None = None
    concurrency: int = 1
    ports: dict[str, int] = field(default_factory=lambda: {kind: free_port() for kind in PORTS}, kw_only=True)

    def command(self) -> list[str]:
        """Return what starts it."""
        return [*self._program(), "--concurrency", str(self.concurrency)]

    def checking(self) -> list[str]:
        """Return what has it look at its configuration, and no more."""
        return [*self._program(), "--mode", "validate"]

    def ready_path(self) -> str:
        """Return where its admin face says that it is ready."""
        return "/ready"

    def _program(self) -> list[str]:
        path = self.folder / "envoy.yaml"
        path.write_text(self.configuration())
        program = packages(self.home) / "envoy" / "_bin" / "envoy"
        return [str(program), "--config-path", str(path), "--disable-hot-restart", "--log-level", "warning"]

    def configuration(self) -> str:
        """Return the file with this process's ports, and with TLS where it has secrets."""
        text = CONFIGURATION.read_text()
        for kind, port in PORTS.items():
            text, found = re.subn(rf"port_value: {port}\b", f"port_value: <{kind}>", text)
            assert found == 1, f"port {port} stands {found} times in {CONFIGURATION}"
        for kind, port in self.ports.items():
            text = text.replace(f"<{kind}>", str(port))
        if self.secrets is not None:
            text = re.sub("^#tls", "    ", text, flags=re.MULTILINE)  # as the file says, and
            text = re.sub(".*#plain\n", "", text)
            text = text.replace("/run/secrets", str(self.secrets))
        return text
