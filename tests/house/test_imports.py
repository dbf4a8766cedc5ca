"""What serves beside the model stays small: no torch, no calibration, no plotting."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.artifacts import write_tiny_artifact

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = frozenset({"torch", "calibration", "matplotlib", "scipy", "PIL", "tqdm", "ray", "onnxscript"})


def forbidden_after(statements: str) -> set[str]:
    """Return the forbidden packages that a fresh interpreter holds after running ``statements``."""
    script = (
        f"{statements}\nimport json, sys\nprint(json.dumps([name.split('.')[0] for name in sys.modules]))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return FORBIDDEN & set(json.loads(finished.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", ["guard.server", "guard.cli"])
def test_what_serves_imports_nothing_from_the_workshop(module: str) -> None:
    assert forbidden_after(f"import {module}") == set()


def test_loading_and_warming_up_a_model_imports_nothing_from_the_workshop(tmp_path: Path) -> None:
    """Imports may also hide in functions, so one model is really loaded."""
    directory = write_tiny_artifact(tmp_path)
    assert (
        forbidden_after(
            f"""
from pathlib import Path
from guard.runtime.loader import RuntimeOptions, load_model
model = load_model("tiny", Path({str(directory)!r}), RuntimeOptions(device="cpu", threads=1))
assert model.version == "1"
model.close()
"""
        )
        == set()
    )


@pytest.mark.parametrize("module", ["calibration", "tqdm"])
def test_the_check_would_find_a_forbidden_import(module: str) -> None:
    """Else the tests above prove nothing."""
    assert forbidden_after(f"import guard\nimport {module}") == {module}


def test_the_check_would_find_an_import_that_fails_to_finish() -> None:
    with pytest.raises(AssertionError, match="ModuleNotFoundError"):
        forbidden_after("import guard.no_such_room")
