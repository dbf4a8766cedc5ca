"""What ``guard heal`` is asked to do, by flags or by a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import pydantic

from calibration.errors import OptionError
from calibration.heal.gates import GATES, Gates
from calibration.options import Blend
from calibration.preprocessing import Transform
from calibration.repair.options import DeviceName
from calibration.repair.settings import options_in_table, require_known
from calibration.repair.table import REPAIRS
from calibration.scan.table import SCANNERS
from guard.artifact.signature import Layout

__all__ = ["AUTO", "HealOptions", "heal_options", "read_config"]

AUTO: Final = "auto"

_TABLES = ("heal", "gates", "scan", "repair")
_TRANSFORM = tuple(one.name for one in fields(Transform))


@dataclass(frozen=True)
class HealOptions:
    """One healing.

    Attributes:
        model: An artifact, ``<repository>/<model>`` for its highest version or ``…/<version>``; or an ONNX
            file.
        data: Clean images; parted into those to repair with, to judge by and to calibrate with.
        out: Folder for the steps, the reports and what a broken-off job goes on from.
        publish: Model directory, ``<repository>/<model>``, that gets the next version; None for the
            artifact's.
        labels: ``.npy`` of the images' class indices, or None for those that ``data`` may hold.
        test_data: Images to judge by, in place of a part of ``data``.
        test_labels: As ``labels``.
        suspects: ``.npz`` of quarantined inputs, or a folder of such.
        triggers: Folders of known triggers.
        method: ``auto``, or names of repairs in the order to try them.
        try_all: Try all of them and take the best that passes, not the first.
        even_if_clean: Go on where the scan found nothing.
        scanners: To look with one after the other until one finds something; that one looks again at what was
            repaired.
        images: Most clean images a scan searches on.
        distribution: Learn the distribution of small patches for each flagged label.
        rescan: Scan what was repaired.
        gates: Limits.
        required: Gates that must have been measured.
        scan: Options of scanners by their names.
        repair: Options of repairs by their names.
        calibrate_share: Of the clean images, those for overlays and the boundary; more if these are too few
            for the guarantee or, as long as a third of all is left to learn from, for the fused detector.
        judge_share: Of the clean images, those to judge by.
        blend: Rule of the check; None for the artifact's, or ``add``.
        overlays: N; None for the artifact's, or 32.
        frr: False-rejection rate; None for the artifact's, or 0.01.
        confidence: Of its guarantee; None for the artifact's, or 0.95.
        transform: Preprocessing asked for; what is not said is the artifact's.
        layout: The model's layout, where its shape does not tell.
        seed: Of all but the overlays, which are secret.
        threads: Of torch and ONNX Runtime; None for one a core.
        device: Where it is trained.
        anew: Do all again.
        quiet: Say nothing of how far it is.

    Raises:
        OptionError: If a value is out of its range, or a name unknown.
    """

    model: str
    data: Path
    out: Path
    publish: Path | None = None
    labels: Path | None = None
    test_data: Path | None = None
    test_labels: Path | None = None
    suspects: Path | None = None
    triggers: tuple[Path, ...] = ()
    method: tuple[str, ...] = (AUTO,)
    try_all: bool = False
    even_if_clean: bool = False
    scanners: tuple[str, ...] = ("neural_cleanse", "wave_inversion", "pair_scan", "warp_inversion")
    images: int = 500
    distribution: bool = False
    rescan: bool = True
    gates: Gates = field(default_factory=Gates)
    required: tuple[str, ...] = ()
    scan: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    repair: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    calibrate_share: float = 0.25
    judge_share: float = 0.2
    blend: Blend | None = None
    overlays: int | None = None
    frr: float | None = None
    confidence: float | None = None
    transform: Transform = field(default_factory=Transform)
    layout: Layout | None = None
    seed: int = 0
    threads: int | None = None
    device: DeviceName = "auto"
    anew: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        self._check_methods()
        for name in (*self.scanners, *self.scan):
            _require(name in SCANNERS, f"scanner {name!r}", f"one of {', '.join(SCANNERS)}")
        needing = [name for name in self.scanners if SCANNERS[name].needs != "images"]
        _require(not needing, f"scanner {', '.join(needing)}", "one that looks at clean images alone")
        _require(bool(self.scanners), "--scanners", "at least one")
        for name in self.required:
            _require(name in GATES, f"--require {name}", f"a gate: {', '.join(GATES)}")
        _require(self.images >= 1, f"--images {self.images}", "at least 1")
        _require(self.seed >= 0, f"--seed {self.seed}", "a whole number from 0")
        _require(self.threads is None or self.threads >= 1, f"--threads {self.threads}", "at least 1")
        for name in ("calibrate_share", "judge_share"):
            share, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            _require(0 < share < 1, f"{flag} {share}", "a share between 0 and 1, such as 0.2")
        both = self.calibrate_share + self.judge_share
        _require(both < 1, f"--calibrate-share and --judge-share, {both:g} together", "less than 1")
        _require(
            self.test_labels is None or self.test_data is not None,
            f"--test-labels {self.test_labels} without --test-data",
            "the images too",
        )
        _require(not self.out.exists() or self.out.is_dir(), f"--out {self.out}, a file", "a folder")

    def _check_methods(self) -> None:
        for name in self.method:
            if name != AUTO:
                require_known(name)
        _require(bool(self.method), "--method", f"{AUTO}, or names of repairs")
        _require(
            AUTO not in self.method or len(self.method) == 1,
            f"--method {','.join(self.method)}",
            f"{AUTO} alone, or names of repairs",
        )
        needing = [name for name in self.method if name in REPAIRS and "poisoned set" in REPAIRS[name].needs]
        _require(not needing, f"--method {', '.join(needing)}", "repairs that work on clean images")


def heal_options(given: Mapping[str, Any], config: Path | None = None) -> HealOptions:
    """Return the options that flags give, over those of a TOML file.

    Args:
        given: By the names of :class:`HealOptions` and of a ``Transform``'s fields, paths as text or paths;
            ``gates`` holds those that were given.
        config: File with the tables ``[heal]``, ``[gates]``, ``[scan.<scanner>]``, ``[repair.<repair>]``.

    Raises:
        OptionError: If something is missing, unknown, of another type or out of its range.
    """
    values = {} if config is None else read_config(config)
    gates = {**values.pop("gates", {}), **given.get("gates", {})}
    values |= {name: value for name, value in given.items() if name != "gates"}
    wish = {name: values.pop(name) for name in _TRANSFORM if name in values}
    for name in ("model", "data", "out"):
        if values.get(name) is None:
            raise OptionError(f"{name} is missing: give guard heal MODEL --data CLEAN --out WORKDIR")
    return _validated(HealOptions, {**values, "gates": gates, "transform": wish})


def read_config(path: Path) -> dict[str, Any]:
    """Return what a TOML file says, by the names of options; repairs' options as they are annotated.

    Raises:
        OptionError: If the file cannot be read, or holds something that is no option.
    """
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"--config {path} cannot be read: {error}") from error
    loose = [name for name, table in tables.items() if name not in _TABLES or not isinstance(table, dict)]
    if loose:
        raise OptionError(
            f"--config {path}: {loose[0]!r} is no table of this file; expected "
            f"{', '.join(f'[{name}]' for name in _TABLES)}"
        )
    own = {one.name for one in fields(HealOptions)} - {"gates", "scan", "repair", "transform"}
    heal = dict(tables.get("heal", {}))
    unknown = sorted(set(heal) - own - set(_TRANSFORM))
    if unknown:
        raise OptionError(f"--config {path}: [heal] has no option {unknown[0]!r}; expected some of "
                          f"{', '.join(sorted(own | set(_TRANSFORM)))}")  # fmt: skip
    unknown = sorted(set(tables.get("gates", {})) - set(GATES))
    if unknown:
        raise OptionError(f"--config {path}: there is no gate {unknown[0]!r}; expected {', '.join(GATES)}")
    wrong = [name for name, limit in tables.get("gates", {}).items() if type(limit) not in (int, float)]
    if wrong:
        raise OptionError(
            f"--config {path}: gate {wrong[0]} = {tables['gates'][wrong[0]]!r}: expected a number"
        )
    repair = tables.get("repair", {})
    for name in repair:
        if name not in REPAIRS or not isinstance(repair[name], dict):
            raise OptionError(
                f"--config {path}: [repair.{name}] is no repair's; expected one of {', '.join(REPAIRS)}"
            )
    for name, table in tables.get("scan", {}).items():
        if name not in SCANNERS or not isinstance(table, dict):
            raise OptionError(
                f"--config {path}: [scan.{name}] is no scanner's; expected one of {', '.join(SCANNERS)}"
            )
        known = set(SCANNERS[name].load().__dataclass_fields__)
        for option in sorted(set(table) - known):
            raise OptionError(
                f"--config {path}: [scan.{name}] has no option {option!r}; expected some of "
                f"{', '.join(sorted(known))}"
            )
    return heal | {
        "gates": tables.get("gates", {}),
        "scan": tables.get("scan", {}),
        "repair": {
            name: options_in_table(table, name, f"--config {path}: [repair.{name}]")
            for name, table in repair.items()
        },
    }


def _validated(kind: type[HealOptions], values: Mapping[str, Any]) -> HealOptions:
    """Make the options; text becomes paths, lists become tuples."""
    given = dict(values)
    if isinstance(given.get("method"), str):
        given["method"] = tuple(part.strip() for part in given["method"].split(",") if part.strip())
    try:
        return pydantic.TypeAdapter(kind).validate_python(given)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])).replace("transform.", "")
        raise OptionError(
            f"{where}: {first['msg']}, got {first['input']!r}; see guard heal --help"
        ) from error


def _require(holds: bool, what: str, expected: str) -> None:
    if not holds:
        raise OptionError(f"{what}: expected {expected}")
