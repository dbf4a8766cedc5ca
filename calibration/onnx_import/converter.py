"""The one shape that all converters have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from calibration.onnx_import.builder import GraphBuilder
from calibration.onnx_import.op import Op

__all__ = ["Converter"]

Converter = Callable[[GraphBuilder, Op], Any]
"""Adds what a node does to the graph; returns its output, or a tuple of them where the node has several."""
