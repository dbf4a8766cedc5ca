"""Shapes and types are checked at every call while tests run; each process computes on one thread."""

import gc
import os
from collections.abc import Generator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run in a process a core; read before torch is imported

from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

settings.register_profile(  # how long an example takes decides no test
    "untimed",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile("untimed")

_HOOK = install_import_hook(["guard", "calibration"], "beartype.beartype")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests without looking for garbage: they and all modules stay, and are never looked at again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()
