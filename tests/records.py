"""Incidents for those who keep records, and something that counts what they keep."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from guard.detection.threshold import Policy, Tier, Verdict
from guard.incidents import Incident

SHAPE = (3, 8, 8)


def picture(seed: int) -> np.ndarray:
    """Return an image of its own for each seed."""
    return np.random.default_rng(seed).random(SHAPE, np.float32)


def incident(image: np.ndarray | int = 0, **fields: Any) -> Incident:
    """Return an incident as the data plane tells it, but for the fields given."""
    usual: dict[str, Any] = {
        "at": time.time(),
        "model": "tiny",
        "version": "1",
        "digest": "ab" * 32,
        "request_id": "id-7",
        "client": "ipv4:10.0.0.7",
        "row": 0,
        "verdict": Verdict.REJECT,
        "policy": Policy.ENFORCE,
        "score": -0.125,
        "p_value": 0.01,
        "tier": Tier.BLOCK,
        "passes": 8,
        "reason": "",
        "label": 5,
        "layout": "NCHW",
        "low": (0.0,),
        "high": (1.0,),
        "image": picture(image) if isinstance(image, int) else image,
    }
    return Incident(**{**usual, **fields})


@dataclass
class Tally:
    """Counts, as ``Metrics`` does."""

    counted: Counter[str] = field(default_factory=Counter)
    failing: list[bool] = field(default_factory=list)
    held: tuple[int, int] = (0, 0)

    def audit_records(self, written: int, lost: int) -> None:
        self.counted["written"] += written
        self.counted["lost"] += lost

    def audit_failing(self, failing: bool) -> None:
        self.failing.append(failing)

    def quarantine_holds(self, items: int, held_bytes: int) -> None:
        self.held = (items, held_bytes)

    def quarantine_dropped(self, reason: str, count: int) -> None:
        self.counted[reason] += count
