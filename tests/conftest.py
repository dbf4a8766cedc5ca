"""Shapes and types are checked at every call while tests run; each process computes on one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run in a process a core; read before torch is imported

from jaxtyping import install_import_hook

_HOOK = install_import_hook(["guard", "calibration"], "beartype.beartype")
