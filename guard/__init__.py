"""guard: the runtime inference guard that runs beside an image classifier in production.

The rooms and who may import whom are drawn in ``ARCHITECTURE.md``. This package never
imports ``torch`` or ``calibration``.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("inference-guard")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0.0.0+unknown"

__all__ = ["__version__"]
