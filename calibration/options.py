"""What ``guard calibrate`` is asked to do."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from calibration.canary_kinds import KINDS
from calibration.errors import OptionError
from calibration.preprocessing import Transform
from guard.artifact.signature import Layout
from guard.detection.capabilities.opinion import OPINIONS
from guard.detection.superimpose import BLEND_RULES, BlendRule
from guard.runtime.onnx_classifier import Device, Precision

__all__ = ["Blend", "CalibrateOptions", "Detector", "Threshold"]

Blend = Literal["add", "add_clip", "half_clip", "convex", "auto"]
Threshold = Literal["conformal", "normal"]
Detector = Literal["auto", "fused", "strip"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_VERSION = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class CalibrateOptions:
    """One calibration.

    Attributes:
        model: ONNX file.
        data: Clean images: a folder, an ``.npz`` or an ``.npy``.
        out: Model directory, ``<repository>/<model>``; the artifact becomes its next version.
        labels: ``.npy`` of class indices, or None for those that ``data`` may hold.
        class_names: Name of each class in the model's order, or a text file with one a line; None for those
            of class folders, where there is one for each class and they are not numbers.
        name: Name the profile gives the model; None for the last part of ``out``.
        overlays: N.
        rounds: Passes of each round of the check, N together; None for what is usual for N.
        blend: Name of the blend rule, or ``auto`` for the one that canaries are found best with.
        detector: ``fused``, ``strip``, or ``auto`` for the former where there are images enough.
        layers: ``auto`` to have the fused detector look inside the model where that can be, or ``off``.
        capabilities: Second opinions to fit and try; those that are off, and why, is told.
        threshold: ``conformal`` (guaranteed) or ``normal`` (the paper's percentile).
        frr: False-rejection rate α.
        block_frr: A lower rate, beyond which the policy ``enforce`` refuses; what is only beyond ``frr`` is
            then flagged. None to refuse all of it.
        confidence: 1 − δ of the guarantee.
        canaries: Kinds of canary triggers to plant in throw-away copies of the model, to choose by; with
            ``blend`` or ``scan`` given, none stands for those that can be planted quickly.
        scan: Folder of a scan of the model, whose triggers are taken in place of planted ones.
        transform: Preprocessing asked for.
        layout: The model's layout, where its shape does not tell.
        seed: Seed of the overlay draw; None for a fresh one.
        device: Where the model runs.
        threads: CPU threads; None for one a core.
        precision: What the model computes in, which is what is to serve.
        quiet: Show no progress.

    Raises:
        OptionError: If a value is out of its range.
    """

    model: Path
    data: Path
    out: Path
    labels: Path | None = None
    class_names: Path | tuple[str, ...] | None = None
    name: str | None = None
    overlays: int = 32
    rounds: tuple[int, ...] | None = None
    blend: Blend = "add"
    detector: Detector = "auto"
    layers: Literal["auto", "off"] = "auto"
    capabilities: tuple[str, ...] = OPINIONS
    threshold: Threshold = "conformal"
    frr: float = 0.01
    block_frr: float | None = None
    confidence: float = 0.95
    canaries: tuple[str, ...] = ()
    scan: Path | None = None
    transform: Transform = field(default_factory=Transform)
    layout: Layout | None = None
    seed: int | None = None
    device: Device = "auto"
    threads: int | None = None
    precision: Precision = "exact"
    quiet: bool = False

    def __post_init__(self) -> None:
        _check_out(self.out, self.model_name)
        _require(
            self.blend in {*BLEND_RULES, "auto"},
            f"--blend {self.blend}",
            f"one of {', '.join(BLEND_RULES)}, or auto",
        )
        unknown = [kind for kind in self.canaries if kind not in KINDS]
        _require(not unknown, f"--canaries {' '.join(unknown)}", f"some of {', '.join(KINDS)}")
        strange = [name for name in self.capabilities if name not in OPINIONS]
        _require(
            not strange and len(set(self.capabilities)) == len(self.capabilities),
            f"--capabilities {' '.join(self.capabilities)}",
            f"auto, off, or some of {', '.join(OPINIONS)}, each once",
        )
        _require(
            self.threshold == "conformal" or not self.wants_canaries,
            f"--threshold {self.threshold}",
            "conformal where canaries choose, as their boundaries are",
        )
        _require(
            self.threshold in {"conformal", "normal"}, f"--threshold {self.threshold}", "conformal or normal"
        )
        _require(self.overlays >= 1, f"--overlays {self.overlays}", "at least 1")
        _require(
            self.rounds is None or (min(self.rounds, default=0) >= 1 and sum(self.rounds) == self.overlays),
            f"rounds {self.rounds}",
            f"passes of at least 1, {self.overlays} together, as there are overlays",
        )
        _require(0 < self.frr < 1, f"--frr {self.frr}", "a rate between 0 and 1, such as 0.01")
        _require(
            self.detector in {"auto", "fused", "strip"}, f"--detector {self.detector}", "auto, fused or strip"
        )
        _require(self.layers in {"auto", "off"}, f"--layers {self.layers}", "auto or off")
        _require(
            self.block_frr is None or 0 < self.block_frr < self.frr,
            f"--block-frr {self.block_frr}",
            f"a rate between 0 and --frr, {self.frr}",
        )
        _require(0 < self.confidence < 1, f"--confidence {self.confidence}", "between 0 and 1, such as 0.95")
        _require(
            self.precision in get_args(Precision),
            f"--precision {self.precision}",
            f"one of {', '.join(get_args(Precision))}",
        )
        _require(self.threads is None or self.threads >= 1, f"--threads {self.threads}", "at least 1")
        _require(self.seed is None or self.seed >= 0, f"--seed {self.seed}", "a whole number from 0")
        _check_transform(self.transform)

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return self.name if self.name is not None else self.out.resolve().name

    @property
    def delta(self) -> float:
        """Risk δ that the guarantee does not hold."""
        return 1.0 - self.confidence

    @property
    def lowest_frr(self) -> float:
        """The lowest rate that is asked for."""
        return self.frr if self.block_frr is None else self.block_frr

    @property
    def blend_rule(self) -> BlendRule:
        """The rule named by ``blend``; that of the paper where it is yet to be chosen."""
        return BLEND_RULES["add" if self.blend == "auto" else self.blend]

    @property
    def wants_canaries(self) -> bool:
        """Whether canaries are to be planted, or the triggers of a scan tried."""
        return self.blend == "auto" or bool(self.canaries) or self.scan is not None


def _require(holds: bool, what: str, expected: str) -> None:
    if not holds:
        raise OptionError(f"{what}: expected {expected}")


def _check_out(out: Path, name: str) -> None:
    if _VERSION.fullmatch(out.name):
        raise OptionError(
            f"--out {out} ends in a version; expected REPOSITORY/MODEL, the version is counted up by itself"
        )
    if out.exists() and not out.is_dir():
        raise OptionError(f"--out {out} is a file; expected a directory, REPOSITORY/MODEL")
    _check_no_repository(out)
    _check_writable(out)
    _require(
        _NAME.fullmatch(name) is not None,
        f"model name {name!r}",
        "letters, digits, '_', '-' and '.' (see --name)",
    )


def _check_no_repository(out: Path) -> None:
    models = [version.parent.name for version in out.glob("*/*/") if _VERSION.fullmatch(version.name)]
    if models:
        raise OptionError(
            f"--out {out} is a model repository (it holds {sorted(models)[0]!r}); expected REPOSITORY/MODEL, "
            f"such as {out / 'my_model'}"
        )


def _check_writable(out: Path) -> None:
    """Refuse before the work what could not be written after it."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise OptionError(f"--out {out} cannot be written: no permission in {there}; choose another")


def _check_transform(wish: Transform) -> None:
    scale_fits = wish.scale is None or (math.isfinite(wish.scale) and wish.scale != 0)
    _require(scale_fits, f"--scale {wish.scale}", "a number other than 0")
    _require(all(map(math.isfinite, wish.mean or ())), f"--mean {wish.mean}", "finite numbers")
    std_fits = all(math.isfinite(value) and value > 0 for value in wish.std or ())
    _require(std_fits, f"--std {wish.std}", "positive numbers")
    resize_fits = len(wish.resize or (1,)) <= 2 and min(wish.resize or (1,)) >= 1
    _require(resize_fits, f"--resize {wish.resize}", "height and width, or the shorter side, of at least 1")
    _require(min(wish.crop or (1, 1)) >= 1, f"--crop {wish.crop}", "height and width of at least 1")
    low, high = wish.value_range or (0.0, 1.0)
    range_fits = math.isfinite(low) and math.isfinite(high) and low < high
    _require(range_fits, f"--range {low:g} {high:g}", "a low value and a higher one")
