"""What KServe's own client, unmodified, gets from an address; run by an environment of its own.

Takes the address, the model and a file with the arrays ``clean`` and ``suspicious``, and writes what came
back to standard output, as JSON. Never imported: the client's messages have the same names as ours.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest


async def main(address: str, model: str, arrays: str) -> None:
    """Call everything that the client can."""
    images = np.load(arrays)
    client = InferenceGRPCClient(address, timeout=30)
    seen = {
        "ready": [
            await client.is_server_live(),
            await client.is_server_ready(),
            await client.is_model_ready(model),
        ],
        "raw": await asked(client, model, images["clean"][:2], binary=True),
        "typed": await asked(client, model, images["clean"][:2], binary=False),
        "suspicious": await asked(client, model, images["suspicious"][:1], binary=True),
    }
    await client.close()
    sys.stdout.write(json.dumps(seen))


async def asked(
    client: InferenceGRPCClient, model: str, images: np.ndarray, *, binary: bool
) -> dict[str, Any]:
    """Return the answer, or how it was refused."""
    tensor = InferInput("images", list(images.shape), "FP32")
    tensor.set_data_from_numpy(np.ascontiguousarray(images), binary_data=binary)
    try:
        answer = await client.infer(InferRequest(model, [tensor], request_id="id-7"))
    except grpc.RpcError as error:
        return {"status": error.code().name, "words": error.details()}
    parameters = {name: wire.string_param for name, wire in answer.parameters.items()}
    return {
        "id": answer.id,
        "logits": answer.get_output_by_name("logits").as_numpy().tolist(),
        "verdict": parameters["guard_verdict"],
    }


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
