"""What tritonclient, unmodified, gets over a stream from an address; run by an environment of its own.

Takes the address, the model and a file with the arrays ``clean`` and ``suspicious``, and writes what came
back to standard output, as JSON. Never imported: the client's messages have the same names as ours.
"""

from __future__ import annotations

import json
import queue
import sys
import time
from typing import Any

import numpy as np
import tritonclient.grpc as triton

PATIENCE_S = 30


def main(address: str, model: str, arrays: str) -> None:
    """Send streams of images, good and bad ones among them."""
    images = np.load(arrays)
    clean, suspicious = images["clean"], images["suspicious"]
    many = [clean[number % len(clean)][None] for number in range(64)]
    mixed = [clean[:1], suspicious[:1], clean[:1, :, :4], np.repeat(clean[:1], 9, axis=0), clean[:2]]
    client = triton.InferenceServerClient(address)
    asked = {
        "many": streamed(address, model, many),
        "mixed": streamed(address, model, mixed),
        "final wanted": streamed(address, model, [clean[:1]], enable_empty_final_response=True),
        "status wanted": streamed(address, model, [clean[:1], suspicious[:1]], status_wanted=True),
    }
    answered = sum("logits" in one for answers in asked.values() for one in answers)
    seen = asked | {
        "unknown model": streamed(address, "nope", [clean[:1]]),
        "statistics": settled(client, model, answered),
        "unknown statistics": statistics(client, "nope"),
        "index": [one["name"] for one in client.get_model_repository_index(as_json=True)["models"]],
        "extensions": client.get_server_metadata(as_json=True)["extensions"],
    }
    sys.stdout.write(json.dumps(seen))


def streamed(
    address: str, model: str, batches: list[np.ndarray], *, status_wanted: bool = False, **options: Any
) -> list[dict[str, Any]]:
    """Return what came back, in the order in which it came."""
    came: queue.Queue[Any] = queue.Queue()
    client = triton.InferenceServerClient(address)  # a stream that ended with a status ends its client's, too
    headers = {"triton_grpc_error": "true"} if status_wanted else None
    client.start_stream(lambda result, error: came.put((result, error)), headers=headers)
    for number, images in enumerate(batches):
        tensor = triton.InferInput("images", list(images.shape), "FP32")
        tensor.set_data_from_numpy(np.ascontiguousarray(images))
        client.async_stream_infer(model, [tensor], request_id=f"id-{number}", **options)
    seen = [told(*came.get(timeout=PATIENCE_S)) for _ in batches]
    client.stop_stream()
    client.close()
    return seen


def told(result: Any, error: Any) -> dict[str, Any]:
    """Return an answer, or how it was refused."""
    if error is not None:
        return {"status": error.status(), "words": error.message()}
    response = result.get_response()
    return {
        "id": response.id,
        "logits": result.as_numpy("logits").tolist(),
        "final": response.parameters["triton_final_response"].bool_param,
        "verdict": response.parameters["guard_verdict"].string_param,
    }


def settled(client: triton.InferenceServerClient, model: str, answered: int) -> dict[str, Any]:
    """Return what is counted once all is: Triton counts an inference after its answer has left."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        said = statistics(client, model)
        whole = (said["success"], said["execution_count"]) == (answered, said["compute_infer"])
        if whole or time.monotonic() > deadline:
            return said
        time.sleep(0.02)


def statistics(client: triton.InferenceServerClient, model: str) -> dict[str, Any]:
    """Return what is counted of a model."""
    try:
        [said] = client.get_inference_statistics(model, as_json=True)["model_stats"]
    except triton.InferenceServerException as error:
        return {"status": error.status()}
    counts = {name: int(one.get("count", 0)) for name, one in said["inference_stats"].items()}
    fields = ("last_inference", "inference_count", "execution_count")
    return {"name": said["name"], "version": said["version"], **counts} | {
        field: int(said.get(field, 0)) for field in fields
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
