"""Record the descriptors of KServe's gRPC service, out of its Python package.

Only the one generated module is loaded, from its file, so the package's many dependencies are not
needed. Run with the interpreter of an environment that has ``kserve`` (``--no-deps`` will do) and
``protobuf``, and not the guard::

    python tests/golden/make_kserve_descriptors.py > tests/golden/kserve_descriptors.json
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import distribution
from importlib.util import module_from_spec, spec_from_file_location

from wire_descriptors import describe

installed = distribution("kserve")
spec = spec_from_file_location(
    "grpc_predict_v2_pb2", str(installed.locate_file("kserve/protocol/grpc/grpc_predict_v2_pb2.py"))
)
if spec is None or spec.loader is None:
    raise ImportError("kserve is installed without kserve/protocol/grpc/grpc_predict_v2_pb2.py")
module = module_from_spec(spec)
spec.loader.exec_module(module)

record = {
    "provenance": {
        "package": "kserve",
        "version": installed.version,
        "files": [module.DESCRIPTOR.name],
    },
    **describe([module.DESCRIPTOR]),
}
sys.stdout.write(json.dumps(record, indent=1) + "\n")
