"""Shapes and types are checked at every call while tests run."""

from jaxtyping import install_import_hook

_HOOK = install_import_hook(["guard", "calibration"], "beartype.beartype")
