"""Record the descriptors of Triton's gRPC service, out of the Python client that NVIDIA publishes.

Run with the interpreter of an environment that has ``tritonclient[grpc]`` and not the guard::

    python tests/golden/make_triton_descriptors.py > tests/golden/triton_descriptors.json
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

from tritonclient.grpc import model_config_pb2, service_pb2
from wire_descriptors import describe

record = {
    "provenance": {
        "package": "tritonclient",
        "version": version("tritonclient"),
        "files": [service_pb2.DESCRIPTOR.name, model_config_pb2.DESCRIPTOR.name],
    },
    **describe([service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR]),
}
sys.stdout.write(json.dumps(record, indent=1) + "\n")
