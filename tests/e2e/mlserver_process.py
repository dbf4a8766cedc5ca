"""The real MLServer as a process, serving an ONNX model by a runtime of a few lines."""

from __future__ import annotations

import json
from dataclasses import dataclass

import onnx

from tests.e2e.peer_process import PeerProcess, row_shape
from tests.free_ports import free_port

__all__ = ["MLServer"]

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


@dataclass
class MLServer(PeerProcess):
    """An MLServer with one model."""

    name: str = ""

    def write(self, name: str, model: onnx.ModelProto) -> None:
        """Write settings and model."""
        self.name = name
        ports = {
            "grpc_port": self.ports["grpc"],
            "http_port": self.ports["http"],
            "metrics_port": free_port(),
        }
        tensors = {
            "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, *row_shape(model)]}],
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

    def ready_path(self) -> str:
        """Return where it says that its model is ready: as a server it is so before it has any."""
        return f"/v2/models/{self.name}/ready"
