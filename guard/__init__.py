"""guard: the runtime inference guard that runs beside an image classifier in production.

The rooms and who may import whom are drawn in ``ARCHITECTURE.md``. This package never
imports ``torch`` or ``calibration``.
"""

import os
from importlib.metadata import PackageNotFoundError, version

# ONNX Runtime reports usage, model names and hashes included, unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    __version__ = version("inference-guard")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0.0.0+unknown"

__all__ = ["__version__"]
