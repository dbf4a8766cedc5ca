"""What a scan costs as the number of labels grows, on a network given ever wider heads.

::

    python -m benchmarks.scan.curve --data FOLDER [--labels 10 43 100 1000]

The backdoored subject ``badnets`` keeps its body and its ten classes; the further labels' weights are
mixtures of those of the classes without a backdoor, with noise. So the work is that of a network with so many
labels, and the backdoor is label 0's at every width. Written to ``benchmarks/results/scan/curve.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.machine import commit, describe_machine
from benchmarks.scan.subjects import bench_of
from calibration.scan.base import Bench
from calibration.scan.executor import LocalExecutor
from calibration.scan.neural_cleanse import NeuralCleanse

RESULT = Path(__file__).parent.parent / "results" / "scan" / "curve.json"
COMMIT = commit()
PACKAGES = ("torch", "numpy", "scipy")
SUBJECT = "badnets"
NOISE = 0.5


def main() -> None:
    """Scan at each width and write down what it cost."""
    options = read_options()
    torch.set_num_threads(options.threads)
    rows = []
    for labels in options.labels:
        bench = widened(bench_of(SUBJECT, options.data)[1], labels)
        start, began = time.process_time(), time.perf_counter()
        report = NeuralCleanse().scan(bench, seed=0, executor=LocalExecutor(bench))
        rows.append(
            {
                "labels": labels,
                "cpu_seconds": time.process_time() - start,
                "seconds": time.perf_counter() - began,
                "images": report.facts["images"],
                "verdict": report.verdict,
                "flagged": [finding.name for finding in report.flagged],
                "p_value": report.p_value,
                "likeliest": report.findings[0].name,
                "ratio": report.findings[0].facts["ratio"],
            }
        )
        print(rows[-1], flush=True)
    record = {
        "setting": f"{SUBJECT}, wrn-16-1, heads widened by mixtures; Neural Cleanse at its defaults",
        "rows": rows,
        "threads": options.threads,
        "seed": 0,
        "command": "python -m benchmarks.scan.curve --data FOLDER",
        "commit": COMMIT,
        **describe_machine(PACKAGES),
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


def read_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description="Cost of a scan against the number of labels.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--labels", nargs="+", type=int, default=[10, 43, 100, 1000])
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def widened(bench: Bench, labels: int) -> Bench:
    """Return the bench with a network of so many labels."""
    head = _head(bench.model)
    generator = torch.Generator().manual_seed(0)
    clean, more = head.weight[1:], labels - head.out_features
    shares = torch.softmax(3 * torch.randn((more, len(clean)), generator=generator), 1)
    noise = NOISE * clean.std() * torch.randn((more, head.in_features), generator=generator)
    wide = nn.Linear(head.in_features, labels)
    wide.weight = nn.Parameter(torch.cat([head.weight, shares @ clean + noise]))
    wide.bias = nn.Parameter(torch.cat([head.bias, shares @ head.bias[1:]]))
    _put(bench.model, wide.requires_grad_(False))
    return replace(bench, classes=labels, digest=f"{bench.digest} {labels}")


def _head(model: nn.Module) -> nn.Linear:
    return next(module for module in reversed(list(model.modules())) if isinstance(module, nn.Linear))


def _put(model: nn.Module, wide: nn.Linear) -> None:
    name = next(name for name, module in model.named_modules() if module is _head(model))
    model.set_submodule(name, wide)


if __name__ == "__main__":
    main()
