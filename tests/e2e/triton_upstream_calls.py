"""What tritonclient, unmodified, gets from an address; run by an environment of its own.

Takes the address, the model and a file with the arrays ``clean`` and ``suspicious``, and writes what came
back to standard output, as JSON. Never imported: the client's messages have the same names as ours.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton


def main(address: str, model: str, arrays: str) -> None:
    """Call what a client of one model calls."""
    client = triton.InferenceServerClient(address)
    images = np.load(arrays)
    clean = images["clean"]
    seen = {
        "ready": [client.is_server_live(), client.is_server_ready(), client.is_model_ready(model)],
        "metadata": client.get_model_metadata(model, as_json=True),
        "config": client.get_model_config(model, as_json=True)["config"],
        "clean": asked(client, model, clean[:2]),
        "one by one": [asked(client, model, image[None]) for image in clean[:3]],
        "suspicious": asked(client, model, images["suspicious"][:1]),
        "too many": asked(client, model, np.repeat(clean[:1], 9, axis=0)),
        "two classes": asked(client, model, clean[:1], class_count=2),
        "wrong shape": asked(client, model, clean[:1, :, :4]),
        "wrong name": asked(client, model, clean[:1], name="picture"),
        "wrong output": asked(client, model, clean[:1], output="nope"),
        "wrong version": asked(client, model, clean[:1], version="9"),
    }
    sys.stdout.write(json.dumps(seen))


def asked(
    client: triton.InferenceServerClient,
    model: str,
    images: np.ndarray,
    *,
    name: str = "images",
    output: str = "logits",
    version: str = "",
    class_count: int = 0,
) -> dict[str, Any]:
    """Return the answer, or how it was refused."""
    tensor = triton.InferInput(name, list(images.shape), "FP32")
    tensor.set_data_from_numpy(np.ascontiguousarray(images))
    wanted = [triton.InferRequestedOutput(output, class_count=class_count)]
    try:
        result = client.infer(
            model, [tensor], model_version=version, outputs=wanted, request_id="id-7", client_timeout=30
        )
    except triton.InferenceServerException as error:
        return {"status": error.status(), "words": error.message()}
    response = result.get_response()
    values = result.as_numpy("logits")
    return {
        "logits": [] if class_count else values.tolist(),
        "classes": [shown(value) for value in values.ravel()] if class_count else [],
        "outputs": [one.name for one in response.outputs],
        "id": response.id,
        "version": response.model_version,
        "verdict": response.parameters["guard_verdict"].string_param,
    }


def shown(value: Any) -> Any:
    """Return a class in words; some servers know nothing of classes, and give the logits."""
    return value.decode() if isinstance(value, bytes) else float(value)


if __name__ == "__main__":
    main(*sys.argv[1:])
