"""What a model computes in."""

from __future__ import annotations

from typing import Literal

__all__ = ["Precision"]

Precision = Literal["exact", "tf32", "fp16"]
"""``exact`` is the model's own, float32 without TF32 on CUDA; ``tf32`` lets CUDA keep 11 bits of what it
multiplies; ``fp16`` makes the model itself compute in float16. Blends and entropies stay float32."""
