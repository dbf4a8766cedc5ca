"""Runs the ``model.onnx`` beside this file on ONNX Runtime, for a Triton without the onnxruntime backend.

`guard export triton --backend python` copies this file, as it is, to ``<version>/model.py``. It needs numpy
and onnxruntime in the Python that Triton's python backend runs, and nothing of the guard: input in, outputs
out; the check is in the graph.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

__all__ = ["TritonPythonModel"]


class TritonPythonModel:
    """What Triton's python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph onto the instance's device.

        Args:
            args: What Triton says of model and instance.
        """
        self._triton: Any = importlib.import_module("triton_python_backend_utils")
        config = json.loads(args["model_config"])
        self._input = config["input"][0]["name"]
        self._outputs = [output["name"] for output in config["output"]]
        self._batched = config.get("max_batch_size", 0) > 0
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self._session = ort.InferenceSession(str(path), options, providers=_providers(args))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests, those that Triton batched in one call.

        Args:
            requests: Triton's requests, each with one input of whole images.
        """
        images = [
            self._triton.get_input_tensor_by_name(request, self._input).as_numpy() for request in requests
        ]
        if not self._batched:
            return [self._response(self._run(part)) for part in images]
        answers = self._run(np.concatenate(images))
        ends = np.cumsum([len(part) for part in images])[:-1]
        columns = [np.split(column, ends) for column in answers]
        return [self._response(list(rows)) for rows in zip(*columns, strict=True)]

    def finalize(self) -> None:
        """Let go of the session."""
        del self._session

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        answers: list[np.ndarray] = self._session.run(self._outputs, {self._input: images})
        return answers

    def _response(self, answers: list[np.ndarray]) -> Any:
        tensors = [
            self._triton.Tensor(name, _as_bytes(answer))
            for name, answer in zip(self._outputs, answers, strict=True)
        ]
        return self._triton.InferenceResponse(output_tensors=tensors)


def _as_bytes(answer: np.ndarray) -> np.ndarray:
    """Return strings as Triton wants them, and numbers as they are."""
    if answer.dtype != np.object_:
        return answer
    return np.char.encode(answer.astype(np.str_), "utf-8").astype(np.object_)


def _providers(args: dict[str, str]) -> list[Any]:
    cpu = "CPUExecutionProvider"
    if args.get("model_instance_kind") != "GPU":
        return [cpu]
    # TF32 would move scores by about 1e-3 from those that the boundary was calibrated with.
    cuda = {"device_id": args["model_instance_device_id"], "use_tf32": "0"}
    return [("CUDAExecutionProvider", cuda), cpu]
