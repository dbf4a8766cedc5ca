"""What the peer test has tritonclient ask of an exported model, run by an environment of its own.

Takes the server's address, the model's name and an ``.npz`` with one array of images for each request. All
requests are under way at once. What came back goes to standard output, as JSON.
"""

from __future__ import annotations

import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

OUTPUTS = ("guard_score", "guard_p_value")


def main(address: str, model: str, path: str) -> None:
    """Ask."""
    client = triton.InferenceServerClient(address)
    metadata = client.get_model_metadata(model, as_json=True)
    answer = metadata["outputs"][0]["name"]
    with np.load(path) as file:
        requests = [file[name] for name in sorted(file.files)]
    answers = [future(client, model, metadata["inputs"][0]["name"], images) for images in requests]
    seen = {
        "metadata": metadata,
        "ready": client.is_model_ready(model),
        "batching": "dynamic_batching" in client.get_model_config(model, as_json=True)["config"],
        "answers": [read(pending.get_result(timeout=60), answer) for pending in answers],
        "alone": only(client, model, metadata["inputs"][0]["name"], requests[-1], answer),
    }
    sys.stdout.write(json.dumps(seen))


def tensor_of(name: str, images: np.ndarray) -> triton.InferInput:
    """Return the request's input."""
    tensor = triton.InferInput(name, list(images.shape), np_to_triton_dtype(images.dtype))
    tensor.set_data_from_numpy(images)
    return tensor


class Pending:
    """An answer under way."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Any] = queue.Queue()

    def __call__(self, result: Any, error: Any) -> None:
        self._queue.put((result, error))

    def get_result(self, timeout: float) -> Any:
        """Wait for it."""
        result, error = self._queue.get(timeout=timeout)
        if error is not None:
            raise error
        return result


def future(client: triton.InferenceServerClient, model: str, name: str, images: np.ndarray) -> Pending:
    """Send one request and do not wait."""
    pending = Pending()
    client.async_infer(model, [tensor_of(name, images)], pending)
    return pending


def only(
    client: triton.InferenceServerClient, model: str, name: str, images: np.ndarray, output: str
) -> list[Any]:
    """Ask for the model's own output and for nothing else."""
    wanted = [triton.InferRequestedOutput(output)]
    result = client.infer(model, [tensor_of(name, images)], outputs=wanted)
    assert [tensor.name for tensor in result.get_response().outputs] == [output]
    return result.as_numpy(output).astype(float).tolist()


def read(result: Any, answer: str) -> dict[str, Any]:
    """Return the arrays of a result."""
    return {
        "outputs": result.as_numpy(answer).astype(float).tolist(),
        "verdicts": [word.decode() for word in result.as_numpy("guard_verdict")[:, 0]],
        **{name: result.as_numpy(name)[:, 0].tolist() for name in OUTPUTS},
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
