"""The real Triton as a process: the binary out of NVIDIA's pytriton wheel, serving an ONNX model.

Only Triton's python backend is in the wheel, so the model is a few lines that run it by ONNX Runtime. Set
TRITON_ENVIRONMENT to a virtual environment that has it already, else one is made (some 400 MB).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import onnx

PACKAGES = ("nvidia-pytriton==0.7.0", "numpy<2", "onnxruntime", "tritonclient[grpc]")
READY_S = 60.0

CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: {max_batch_size}
input [ {{ name: "images" data_type: TYPE_FP32 dims: [ 3, 8, 8 ] }} ]
output [ {{ name: "logits" data_type: TYPE_FP32 dims: [ 10 ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""

MODEL = """
from pathlib import Path

import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        images = pb_utils.get_input_tensor_by_name(request, "images").as_numpy()
        [logits] = self.session.run(None, {"images": images})
        return pb_utils.InferenceResponse([pb_utils.Tensor("logits", logits)])
"""


def environment(folder: Path) -> Path:
    """Return a virtual environment that has Triton and its client, and nothing of ours."""
    there = os.environ.get("TRITON_ENVIRONMENT", "")
    if there:
        return Path(there)
    home = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, timeout=120)
    python = str(home / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True, timeout=1200)
    return home


def write_model(repository: Path, name: str, model: onnx.ModelProto, *, max_batch_size: int) -> None:
    """Write a model into a Triton repository."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(CONFIG.format(name=name, max_batch_size=max_batch_size))
    (version / "model.py").write_text(MODEL)
    (version / "model.onnx").write_bytes(model.SerializeToString())


@dataclass
class Triton:
    """A Triton server; its ports stay the same when it is started again.

    Attributes:
        home: The environment that it is installed in.
        folder: Where its backend, its models and its log are.
        model: The one model that it loads.
    """

    home: Path
    folder: Path
    model: str
    ports: dict[str, int] = field(default_factory=lambda: {kind: free_port() for kind in ("grpc", "http")})
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports['grpc']}"

    @property
    def repository(self) -> Path:
        return self.folder / "models"

    def start(self) -> None:
        """Start it, and wait until its model is ready."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command(), env=self._variables(), stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + READY_S
        while not self._is_ready():
            log_so_far = (self.folder / "log").read_text(errors="replace")
            assert self.process.poll() is None, f"Triton ended: {log_so_far[-3000:]}"
            assert time.monotonic() < deadline, f"Triton is not ready: {log_so_far[-3000:]}"
            time.sleep(0.1)

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(READY_S)
            self.process = None

    def _command(self) -> list[str]:
        server = self._packages / "pytriton" / "tritonserver"
        return [
            str(server / "bin" / "tritonserver"),
            *("--model-repository", str(self.repository), "--backend-directory", str(self._backends())),
            *("--grpc-port", str(self.ports["grpc"]), "--http-port", str(self.ports["http"])),
            *("--allow-metrics", "false", "--allow-gpu-metrics", "false"),
            *("--model-control-mode", "explicit", "--load-model", self.model),
        ]

    @property
    def _packages(self) -> Path:
        [packages] = (self.home / "lib").glob("python*/site-packages")
        return packages.resolve()

    def _backends(self) -> Path:
        """Return a folder with the python backend and the stub for this Python, made at the first start."""
        backends = self.folder / "backends"
        if not backends.is_dir():
            server = self._packages / "pytriton" / "tritonserver"
            shutil.copytree(server / "backends", backends)
            version = self._packages.parent.name.removeprefix("python")
            stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
            shutil.copy(stub, backends / "python")
        return backends

    def _variables(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        return clean | {
            "LD_LIBRARY_PATH": str(self._packages / "nvidia_pytriton.libs"),
            "PYTHONPATH": str(self._packages),
            "PATH": f"{self.home / 'bin'}:{clean['PATH']}",
        }

    def _is_ready(self) -> bool:
        url = f"http://127.0.0.1:{self.ports['http']}/v2/models/{self.model}/ready"
        try:
            with urllib.request.urlopen(url, timeout=1.0) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
