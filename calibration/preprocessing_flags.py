"""The preprocessing flags that every command of the workshop takes alike."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_preprocessing", "preprocessing_of"]


def add_preprocessing(parser: argparse.ArgumentParser) -> None:
    """Declare them, in a group of their own."""
    group = parser.add_argument_group("preprocessing, (v * scale - mean) / std")
    group.add_argument(
        "--scale", type=float, help="factor on stored values (default: 1/255 for 8-bit images, else 1)"
    )
    group.add_argument("--mean", type=float, nargs="+", metavar="M", help="one value, or one a channel")
    group.add_argument("--std", type=float, nargs="+", metavar="S", help="one value, or one a channel")
    group.add_argument(
        "--resize",
        type=int,
        nargs="+",
        metavar="N",
        help="resize images (bilinear, antialiased) to H W, or so that the shorter side is S",
    )
    group.add_argument(
        "--crop", type=int, nargs=2, metavar=("H", "W"), help="keep the middle of them, after resizing"
    )
    group.add_argument(
        "--colour",
        choices=("RGB", "BGR"),
        help="order that the model takes, and that of --mean and --std; images are RGB (default RGB)",
    )
    group.add_argument("--layout", choices=("NCHW", "NHWC"), help="of the model, where its shape is unclear")
    group.add_argument(
        "--range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        dest="value_range",
        help="range of floating-point images before preprocessing (default: 0 1 if they fit, else their own)",
    )


def preprocessing_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was asked for, as arguments of ``Transform``; ``--layout`` is the model's own."""
    lists = ("mean", "std", "resize", "crop", "value_range")
    given = {name: getattr(arguments, name) for name in lists}
    return {"scale": arguments.scale, "colour": arguments.colour} | {
        name: tuple(value) if value else None for name, value in given.items()
    }
