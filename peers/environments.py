"""The environments: one requirements file beside this module is one environment, ``build/peers/<name>``.

An environment that was made from the file as it is now is used again. ``<NAME>_ENVIRONMENT`` names one that
somebody made elsewhere, and nothing is installed then.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["HOMES", "NAMES", "environment", "packages", "scripts_alone"]

_HERE: Final = Path(__file__).parent
HOMES: Final = _HERE.parent / "build" / "peers"
NAMES: Final = tuple(sorted(path.stem for path in _HERE.glob("*.txt")))
_INSTALL_S: Final = 1200


def environment(name: str, homes: Path = HOMES) -> Path:
    """Return the virtual environment of a peer, which has nothing of ours; made where it is missing.

    Args:
        name: One of :data:`NAMES`.
        homes: Folder of the environments.

    Raises:
        ValueError: If there is no requirements file of this name.
        subprocess.CalledProcessError: If it cannot be installed.
    """
    if name not in NAMES:
        raise ValueError(f"peer {name!r} is not known; expected one of {', '.join(NAMES)}")
    if there := os.environ.get(f"{name.upper()}_ENVIRONMENT"):
        return Path(there)
    home = homes / name
    with _only_one(home):
        if not _is_current(name, home):
            _install(name, home)
    return home


def packages(home: Path) -> Path:
    """Return the ``site-packages`` of an environment."""
    [found] = (home / "lib").glob("python3*/site-packages")
    return found


def scripts_alone(home: Path, **variables: object) -> dict[str, str]:
    """Return the variables of a process that is to see an environment and nothing of ours."""
    ours = {"PYTHONPATH", "VIRTUAL_ENV", "OMP_NUM_THREADS"}
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    path = f"{home / 'bin'}:{clean.get('PATH', os.defpath)}"
    return clean | {"PATH": path} | {name: str(value) for name, value in variables.items()}


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Let one process at a time look at an environment, and the others wait."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_current(name: str, home: Path) -> bool:
    stamp = home / "installed.txt"
    return stamp.is_file() and stamp.read_text() == (_HERE / f"{name}.txt").read_text()


def _install(name: str, home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    wanted = _HERE / f"{name}.txt"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, timeout=_INSTALL_S)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-qq", "--no-deps", "--no-compile"]
    pip += ["--disable-pip-version-check", "--requirement", str(wanted)]
    subprocess.run(pip, check=True, timeout=_INSTALL_S)
    shutil.copy(wanted, home / "installed.txt")
