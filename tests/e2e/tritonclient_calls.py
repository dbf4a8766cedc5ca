"""What the peer test has tritonclient do, run by the interpreter of an environment of its own.

Takes the server's address and writes what came back to standard output, as JSON. Never imported: the
client's protobuf messages have the same names as ours.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton


def main(address: str) -> None:
    """Call everything a plain client calls, once."""
    client = triton.InferenceServerClient(address)
    pixels = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    seen = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready("echo"),
        "unknown_ready": client.is_model_ready("nope"),
        "server": client.get_server_metadata(as_json=True),
        "metadata": client.get_model_metadata("echo", as_json=True),
        "config": client.get_model_config("echo", as_json=True)["config"],
        "fp32": infer(client, "FP32", np.linspace(-1, 1, 96, dtype=np.float32).reshape(2, 3, 4, 4)),
        "uint8": infer(client, "UINT8", pixels),
        "fp16": infer(client, "FP16", np.linspace(-1, 1, 96).astype(np.float16).reshape(2, 3, 4, 4)),
        "statistics": statistics(client),
    }
    sys.stdout.write(json.dumps(seen))


def infer(client: triton.InferenceServerClient, datatype: str, sent: np.ndarray) -> dict[str, Any]:
    """Send an array through the echo and say whether the same came back."""
    tensor = triton.InferInput("image", list(sent.shape), datatype)
    tensor.set_data_from_numpy(sent)
    outputs = [triton.InferRequestedOutput("image"), triton.InferRequestedOutput("guard_verdict")]
    result = client.infer("echo", [tensor], outputs=outputs, request_id="id-7", client_timeout=30, priority=1)
    got, response = result.as_numpy("image"), result.get_response()
    return {
        "same": bool(np.array_equal(got, sent)),
        "dtype": str(got.dtype),
        "shape": list(got.shape),
        "id": response.id,
        "version": response.model_version,
        "verdict": response.parameters["guard_verdict"].string_param,
        "rows": [element.decode() for element in result.as_numpy("guard_verdict")],
    }


def statistics(client: triton.InferenceServerClient) -> dict[str, Any]:
    """Ask for statistics and return those of the one model."""
    [one] = client.get_inference_statistics("echo", as_json=True)["model_stats"]
    said: dict[str, Any] = one
    return said


if __name__ == "__main__":
    main(sys.argv[1])
