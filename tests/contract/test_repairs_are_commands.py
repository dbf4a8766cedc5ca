"""Every repair in the table, from the command line: given what it says that it needs, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration.repair.table import REPAIRS  # noqa: E402
from calibration.scan.distribution_file import save_distribution  # noqa: E402
from calibration.trainable import load_trainable  # noqa: E402
from guard.artifact.manifest import sha256_of  # noqa: E402
from guard.cli import main  # noqa: E402
from tests.calibration.repair_files import CLASSES, images_of, write, write_scan  # noqa: E402
from tests.contract.repair_subjects import ROWS, Shape, patches_of  # noqa: E402


def flags(name: str, folder: Path) -> list[str]:
    """What the repair needs, on a small network."""
    write(folder)
    np.savez(folder / "bare.npz", images=images_of()[0])
    needs, given = REPAIRS[name].needs, list[str]()
    if "images" in needs:
        given += ["--data", str(folder / ("data.npz" if "labels" in needs else "bare.npz"))]
    if "poisoned set" in needs:
        given += ["--training-set", str(folder / "data.npz")]
    if "trigger" in needs or "distribution" in needs:
        scan = write_scan(folder / "scan", sha256_of((folder / "model.onnx").read_bytes()))
        save_distribution(patches_of(Shape(classes=CLASSES)), scan / "triggers" / "distribution-1")
        given += ["--scan", str(scan)]
    for option, value in ROWS[name].quick.items():
        given += ["--set", f"{option}={json.dumps(value)}"]
    return given


@pytest.mark.slow
@pytest.mark.parametrize("name", REPAIRS)
def test_a_repair_runs_by_its_name_and_writes_a_model_of_the_same_face(name: str, tmp_path: Path) -> None:
    given = flags(name, tmp_path)
    source, out = tmp_path / "model.onnx", tmp_path / "repaired"
    command = ["repair", str(source), "--method", name, "--out", str(out), "--device", "cpu", "--quiet"]
    assert main([*command, *given]) == 0
    assert load_trainable(out / "model.onnx").signature == load_trainable(source).signature
    record = json.loads((out / "repair.json").read_text())
    assert record["method"] == name
    assert record["stages"]
    assert {**record["options"], **ROWS[name].quick} == record["options"]
    assert not (out / "partial").exists()
