"""The second half of the demo: heal the model, swap it in while clients keep asking, and go back."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.client import Answer, send_all
from benchmarks.demo.load import Load, p99_ms

__all__ = ["CLIENTS", "Loop", "close_the_loop", "guard"]

CLIENTS = 8
PAUSE_S = 1.0
"""Of each client between requests while the model is repaired beside the guard, on the same cores."""

BUSY_S = 0.25
"""The same from shortly before the swap until after it."""

SPAN_S = 5.0
"""Of the load before the swap, and after it."""


@dataclass(frozen=True)
class Loop:
    """What became of the model, and of those who kept asking.

    Attributes:
        clean: Answers to clean images after the swap.
        triggered: Answers to triggered images after the swap.
        requests: Sent by clients who kept asking from before the repair until after the rollback.
        failures: Statuses of those that got no answer.
        answered_by: How many of them each version answered; the others were refused as suspicious.
        digests: Of the artifact that served: first, healed, and after the rollback.
        heal_seconds: Of `guard heal`.
        swap_seconds: Of `guard swap`: loading, verifying, warming up, probing, switching.
        p99_before_ms: 99th percentile of the latency in the seconds before the swap.
        p99_during_ms: While `guard swap` ran.
    """

    clean: list[Answer]
    triggered: list[Answer]
    requests: int
    failures: list[str]
    answered_by: dict[str, int]
    digests: list[str]
    heal_seconds: float
    swap_seconds: float
    p99_before_ms: float
    p99_during_ms: float

    def summary(self, labels: np.ndarray, triggered_labels: np.ndarray, target: int) -> dict[str, object]:
        """Return figures for the report.

        Args:
            labels: True labels of the clean images.
            triggered_labels: Of the triggered ones.
            target: The attacker's label.
        """
        return {
            "acc_healed": _right(self.clean, labels),
            "robust_acc_healed": _right(self.triggered, triggered_labels),
            "asr_healed": float(np.mean([answer.label == target for answer in self.triggered])),
            "frr_healed": float(np.mean([answer.rejected for answer in self.clean])),
            "load_requests": self.requests,
            "load_failures": len(self.failures),
            "load_answered_by_version": self.answered_by,
            "digests": self.digests,
            "heal_seconds": self.heal_seconds,
            "swap_seconds": self.swap_seconds,
            "p99_before_swap_ms": self.p99_before_ms,
            "p99_during_swap_ms": self.p99_during_ms,
        }


def close_the_loop(
    address: str,
    admin: str,
    model: str,
    repository: Path,
    data: Path,
    out: Path,
    traffic: tuple[np.ndarray, np.ndarray],
) -> Loop:
    """Heal, swap, look what the healed model says, and roll back, all of it under load.

    Args:
        address: Of the running sidecar.
        admin: Of its admin face.
        model: Name it serves.
        repository: Folder of the model.
        data: Clean images to repair and calibrate with.
        out: Folder of the quarantine, and for the repair.
        traffic: Clean images and triggered ones, float32 (n, c, h, w).
    """
    clean, triggered = traffic
    digests = [_digest(model, admin)]
    with Load(address, model, clean, clients=CLIENTS, pause_s=PAUSE_S) as load:
        suspects = out / "suspects.npz"
        guard("quarantine", "export", str(out / "quarantine"), "--model", model, "--out", str(suspects))
        evidence = ("--suspects", str(suspects), "--quiet")
        heal_seconds = guard(
            "heal", str(repository), "--data", str(data), "--out", str(out / "heal"), *evidence
        )
        load.pause_s, before = BUSY_S, time.monotonic()
        time.sleep(SPAN_S)
        start = time.monotonic()
        guard("swap", model, "--admin", admin)
        end = time.monotonic()
        digests.append(_digest(model, admin))
        answers = [send_all(address, model, images, CLIENTS)[0] for images in (clean, triggered)]
        guard("rollback", model, "--admin", admin)
        digests.append(_digest(model, admin))
        time.sleep(1)
    return Loop(
        clean=answers[0],
        triggered=answers[1],
        requests=len(load.outcomes),
        failures=load.failures(),
        answered_by=dict(sorted(Counter(one.version for one in load.outcomes if one.version).items())),
        digests=digests,
        heal_seconds=heal_seconds,
        swap_seconds=end - start,
        p99_before_ms=p99_ms(load.outcomes, before, start),
        p99_during_ms=p99_ms(load.outcomes, start, end),
    )


def guard(*arguments: str) -> float:
    """Run a command of the guard as an operator would; return its seconds."""
    print(f"$ guard {shlex.join(arguments)}", flush=True)
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "guard.cli", *arguments], check=True)
    return time.monotonic() - started


def _digest(model: str, admin: str) -> str:
    told = subprocess.run(
        [sys.executable, "-m", "guard.cli", "status", model, "--admin", admin, "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    return str(json.loads(told.stdout)[0]["current"]["digest"])


def _right(answers: list[Answer], labels: np.ndarray) -> float:
    return float(np.mean([answer.label == label for answer, label in zip(answers, labels, strict=True)]))
