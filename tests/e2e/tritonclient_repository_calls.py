"""What the peer test has tritonclient do on the admin port, run by an environment of its own.

Takes the address and the token and writes what came back to standard output, as JSON. Never imported: the
client's protobuf messages have the same names as ours.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import tritonclient.grpc as triton


def main(address: str, token: str) -> None:
    """Call what Triton's tools call to load models."""
    client = triton.InferenceServerClient(address)
    headers = {"authorization": f"Bearer {token}"}
    seen = {
        "without a token": refusal(client.get_model_repository_index),
        "before": client.get_model_repository_index(headers=headers, as_json=True)["models"],
        "load": refusal(lambda: client.load_model("tiny", headers=headers)),
        "after": client.get_model_repository_index(headers=headers, as_json=True)["models"],
        "with a configuration": refusal(lambda: client.load_model("tiny", headers=headers, config="{}")),
        "with a file": refusal(
            lambda: client.load_model("tiny", headers=headers, config="{}", files={"file:9/model.onnx": b"x"})
        ),
        "unload": refusal(lambda: client.unload_model("tiny", headers=headers)),
    }
    sys.stdout.write(json.dumps(seen))


def refusal(call: Callable[[], Any]) -> list[str]:
    """Call, and return status and words of the refusal."""
    try:
        call()
    except triton.InferenceServerException as error:
        return [error.status(), error.message()]
    return ["OK", ""]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
