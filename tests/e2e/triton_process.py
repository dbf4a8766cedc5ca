"""The real Triton as a process: the binary out of NVIDIA's pytriton wheel.

Only Triton's python backend is in the wheel, so a model is a few lines that run ONNX by ONNX Runtime.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import onnx

import peers
from peers.environments import packages, scripts_alone
from tests.e2e.peer_process import PeerProcess, row_shape

__all__ = ["Triton", "environment", "write_model"]

CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: {max_batch_size}
input [ {{ name: "images" data_type: TYPE_FP32 dims: {dims} }} ]
output [ {{ name: "logits" data_type: TYPE_FP32 dims: [ 10 ] }} ]
instance_group [ {{ kind: KIND_CPU count: {instances} }} ]
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


def environment() -> Path:
    """Return the environment that has Triton and its client, and nothing of ours."""
    return peers.environment("triton")


def write_model(
    repository: Path, name: str, model: onnx.ModelProto, *, max_batch_size: int, instances: int = 1
) -> None:
    """Write a model into a Triton repository."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    dims = row_shape(model)
    config = CONFIG.format(name=name, max_batch_size=max_batch_size, instances=instances, dims=dims)
    (repository / name / "config.pbtxt").write_text(config)
    (version / "model.py").write_text(MODEL)
    (version / "model.onnx").write_bytes(model.SerializeToString())


@dataclass
class Triton(PeerProcess):
    """A Triton server.

    Attributes:
        model: The model that it loads, and waits for.
        more: Models that it loads besides.
    """

    model: str
    more: tuple[str, ...] = ()

    @property
    def repository(self) -> Path:
        return self.folder / "models"

    @property
    def python(self) -> Path:
        """Return the interpreter that has Triton's client."""
        return self.home / "bin" / "python"

    def command(self) -> list[str]:
        """Return what starts it."""
        return [
            str(self._server / "bin" / "tritonserver"),
            *("--model-repository", str(self.repository), "--backend-directory", str(self._backends())),
            *("--grpc-port", str(self.ports["grpc"]), "--http-port", str(self.ports["http"])),
            *("--allow-metrics", "false", "--allow-gpu-metrics", "false", "--model-control-mode", "explicit"),
            *(f"--load-model={name}" for name in (self.model, *self.more)),
        ]

    def ready_path(self) -> str:
        """Return where it says that its model is ready."""
        return f"/v2/models/{self.model}/ready"

    def variables(self) -> dict[str, str]:
        """Return its environment variables: its libraries, and packages for its models."""
        site = packages(self.home)
        return scripts_alone(self.home, LD_LIBRARY_PATH=site / "nvidia_pytriton.libs", PYTHONPATH=site)

    @property
    def _server(self) -> Path:
        return packages(self.home) / "pytriton" / "tritonserver"

    def _backends(self) -> Path:
        """Return a folder with the python backend and the stub for this Python, made at the first start."""
        backends = self.folder / "backends"
        if not backends.is_dir():
            shutil.copytree(self._server / "backends", backends)
            version = packages(self.home).parent.name.removeprefix("python")
            stub = self._server / "python_backend_stubs" / version / "triton_python_backend_stub"
            shutil.copy(stub, backends / "python")
        return backends
