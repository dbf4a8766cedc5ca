"""The real KServe model server as a process, serving an ONNX model."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from tests.e2e.peer_process import PeerProcess, row_shape

__all__ = ["KServe"]

SERVER = """
import sys
from pathlib import Path

import onnxruntime as ort
from kserve import InferOutput, InferResponse, Model, ModelServer


class OnnxModel(Model):
    def __init__(self, name):
        super().__init__(name)
        path = Path(__file__).with_name("model.onnx")
        self.session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.ready = True

    async def get_input_types(self):
        return [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]

    async def get_output_types(self):
        return [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]

    async def predict(self, payload, headers=None, response_headers=None):
        [logits] = self.session.run(None, {"images": payload.inputs[0].as_numpy()})
        output = InferOutput(name="logits", shape=list(logits.shape), datatype="FP32")
        output.set_data_from_numpy(logits)
        return InferResponse(response_id=payload.id, model_name=self.name, infer_outputs=[output])


if __name__ == "__main__":
    http_port, grpc_port, name = sys.argv[1:]
    sys.argv[1:] = []
    server = ModelServer(http_port=int(http_port), grpc_port=int(grpc_port), workers=1)
    server.start([OnnxModel(name)])
"""


@dataclass
class KServe(PeerProcess):
    """A KServe model server with one model."""

    name: str = ""

    def write(self, name: str, model: onnx.ModelProto) -> None:
        """Write program and model."""
        self.name = name
        shape = str([-1, *row_shape(model)])
        (self.folder / "server.py").write_text(SERVER.replace("[-1, 3, 8, 8]", shape))
        (self.folder / "model.onnx").write_bytes(model.SerializeToString())

    def command(self) -> list[str]:
        """Return what starts it."""
        ports = (str(self.ports["http"]), str(self.ports["grpc"]))
        return [str(self.home / "bin" / "python"), str(self.folder / "server.py"), *ports, self.name]
