"""The real MLServer as a process, serving an ONNX model by a runtime of a few lines.

Set MLSERVER_ENVIRONMENT to a virtual environment that has it already, else one is made.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from tests.e2e.triton_process import free_port

PACKAGES = ("mlserver", "onnxruntime")
READY_S = 60.0

RUNTIME = """
from pathlib import Path

import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class OnnxRuntime(MLModel):
    async def load(self):
        path = Path(__file__).with_name("model.onnx")
        self.session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload):
        images = NumpyCodec.decode_input(payload.inputs[0])
        [logits] = self.session.run(None, {"images": images})
        outputs = [NumpyCodec.encode_output("logits", logits)]
        return InferenceResponse(
            id=payload.id, model_name=self.name, model_version=self.version, outputs=outputs
        )
"""


def environment(folder: Path, packages: tuple[str, ...] = PACKAGES) -> Path:
    """Return a virtual environment that has MLServer, or other packages, and nothing of ours."""
    there = os.environ.get(f"{packages[0].upper()}_ENVIRONMENT", "")
    if there:
        return Path(there)
    home = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, timeout=120)
    python = str(home / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, timeout=1200)
    return home


@dataclass
class MLServer:
    """An MLServer with one model.

    Attributes:
        home: The environment that it is installed in.
        folder: Where its settings, its model and its log are.
    """

    home: Path
    folder: Path
    ports: dict[str, int] = field(default_factory=lambda: {kind: free_port() for kind in ("grpc", "http")})
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports['grpc']}"

    def write(self, name: str, model: onnx.ModelProto) -> None:
        """Write settings and model."""
        ports = {
            "grpc_port": self.ports["grpc"],
            "http_port": self.ports["http"],
            "metrics_port": free_port(),
        }
        tensors = {
            "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 8, 8]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
        }
        settings = {"host": "127.0.0.1", "parallel_workers": 0, "metrics_dir": str(self.folder), **ports}
        (self.folder / "settings.json").write_text(json.dumps(settings))
        (self.folder / "model-settings.json").write_text(
            json.dumps({"name": name, "implementation": "onnx_runtime.OnnxRuntime", **tensors})
        )
        (self.folder / "onnx_runtime.py").write_text(RUNTIME)
        (self.folder / "model.onnx").write_bytes(model.SerializeToString())

    def command(self) -> list[str]:
        """Return what starts it."""
        return [str(self.home / "bin" / "mlserver"), "start", str(self.folder)]

    def start(self) -> None:
        """Start it, and wait until its model is ready."""
        clean = {
            name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}
        }
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                env=clean | {"PATH": f"{self.home / 'bin'}:{clean['PATH']}"},
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + READY_S
        while not self._is_ready():
            log_so_far = (self.folder / "log").read_text(errors="replace")
            assert self.process.poll() is None, f"the server ended: {log_so_far[-3000:]}"
            assert time.monotonic() < deadline, f"the server is not ready: {log_so_far[-3000:]}"
            time.sleep(0.1)

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(READY_S)
            self.process = None

    def _is_ready(self) -> bool:
        url = f"http://127.0.0.1:{self.ports['http']}/v2/health/ready"
        try:
            with urllib.request.urlopen(url, timeout=1.0) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
