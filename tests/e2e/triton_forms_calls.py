"""What tritonclient, unmodified, gets for encoded images and FP16; run by an environment of its own.

Takes the address and a file with the arrays ``files``, their ``lengths`` and ``half``, and writes what came
back to standard output, as JSON. Never imported: the client's messages have the same names as ours.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton


def main(address: str, arrays: str) -> None:
    """Call what a client of both models calls."""
    client = triton.InferenceServerClient(address)
    loaded = np.load(arrays)
    padded = zip(loaded["files"], loaded["lengths"], strict=True)
    files = np.array([file.tobytes()[:length] for file, length in padded], dtype=np.object_)
    seen: dict[str, Any] = {}
    for model in ("pictures", "halves"):
        datatype, sent = ("BYTES", files[:, None]) if model == "pictures" else ("FP16", loaded["half"])
        seen[model] = {
            "metadata": client.get_model_metadata(model, as_json=True)["inputs"],
            "all": asked(client, model, datatype, sent),
            "classes": asked(client, model, datatype, sent, class_count=3),
        }
    sys.stdout.write(json.dumps(seen))


def asked(
    client: triton.InferenceServerClient, model: str, datatype: str, sent: np.ndarray, class_count: int = 0
) -> Any:
    """Return the answer, or how it was refused."""
    tensor = triton.InferInput("file" if datatype == "BYTES" else "images", list(sent.shape), datatype)
    tensor.set_data_from_numpy(sent)
    wanted = [triton.InferRequestedOutput("logits", class_count=class_count)]
    try:
        result = client.infer(model, [tensor], outputs=wanted, client_timeout=30)
    except triton.InferenceServerException as error:
        return [error.status(), error.message()]
    values = result.as_numpy("logits")
    return [value.decode() for value in values.ravel()] if class_count else values.astype(float).tolist()


if __name__ == "__main__":
    main(*sys.argv[1:])
