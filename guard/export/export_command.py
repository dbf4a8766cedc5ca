"""``guard export triton``."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["Export"]


class Export:
    """``guard export triton ARTIFACT --out REPOSITORY``."""

    name = "export"
    help = "export a model with its check for servers that run it without the guard"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare what it is exported for, and the flags of that."""
        targets = parser.add_subparsers(dest="target", required=True, metavar="triton")
        triton = targets.add_parser(
            "triton",
            help="write a Triton model repository: prediction and verdict from one ONNX graph",
            description="Write the next version of a model into a Triton model repository. Model, "
            "overlays, check and boundary become one ONNX graph, which Triton runs by itself. The graph is "
            "first compared with the guard's own scores, and nothing is written if they differ.",
        )
        triton.add_argument("artifact", type=Path, help="an artifact, <repository>/<model>/<version>")
        triton.add_argument("--out", type=Path, required=True, help="Triton's model repository")
        triton.add_argument(
            "--name", default="", help="name in Triton (default: the model's in its repository)"
        )
        triton.add_argument(
            "--policy",
            choices=["enforce", "flag"],
            default="enforce",
            help="enforce: what is refused gets NaN for an answer; flag: every answer is given "
            "(default enforce)",
        )
        triton.add_argument(
            "--backend",
            choices=["onnxruntime", "python"],
            default="onnxruntime",
            help="what runs the graph in Triton; python where it has no onnxruntime (default onnxruntime)",
        )
        triton.add_argument(
            "--max-batch-size", type=int, default=8, help="most rows of a batch in Triton (default 8)"
        )
        triton.add_argument(
            "--max-batch-pairs",
            type=int,
            default=64,
            help="rows that one pass of the model has in a full batch; more takes more memory (default 64)",
        )

    def run(self, arguments: argparse.Namespace) -> int:
        """Export, and say what was written."""
        from guard.detection.threshold import Policy
        from guard.export.triton import TritonOptions, export_triton

        exported = export_triton(
            TritonOptions(
                artifact=arguments.artifact,
                out=arguments.out,
                name=arguments.name,
                policy=Policy(arguments.policy),
                backend=arguments.backend,
                max_batch_size=arguments.max_batch_size,
                max_batch_pairs=arguments.max_batch_pairs,
            )
        )
        parity, unit = exported.parity, " bits" if exported.detector == "strip" else ""
        print(f"{exported.directory}: written")
        print(f"  compared  {parity.images} images with the sidecar and the bare model")
        print(f"            scores within {parity.score_difference:.1e}{unit}, ", end="")
        print(f"answers within {parity.output_difference:.1e}")
        print(f"  closed    {parity.closed} of {parity.closed} inputs that cannot be checked")
        print(f"  costs     {exported.n_overlays + 1} passes of the model an image")
        print(f"  start     see {exported.directory.parent / 'README.txt'}")
        return 0
