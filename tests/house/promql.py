"""promtool, and what an expression in PromQL names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.metrics_catalogue import CATALOGUE

SUFFIXES = ("_bucket", "_sum", "_count")
BEYOND = {"job", "instance", "namespace"}
"""Labels that Prometheus adds."""


def promtool(*arguments: str, folder: Path) -> None:
    """Run it in a folder; it must find nothing wrong."""
    if shutil.which("promtool") is None:
        assert os.environ.get("CI", "") != "true", "promtool is missing; install Debian's `prometheus`"
        pytest.skip("promtool is not on PATH; Debian's `prometheus` has it")
    ran = subprocess.run(
        ["promtool", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout


def selectors(text: str) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Yield every guard metric named, with the values that each of its matchers asks for."""
    for name, matchers in re.findall(r"\b(guard_[a-z0-9_]+)\b(?:\{([^}]*)\})?", text):
        pairs = re.findall(r'(\w+)[=!]~?"([^"]*)"', matchers)
        yield name, {label: value.split("|") for label, value in pairs}


def base_of(name: str) -> str:
    """Return the metric that a series belongs to."""
    return next((name.removesuffix(end) for end in SUFFIXES if name.endswith(end)), name)


def require_known(text: str, where: str) -> None:
    """Refuse metrics, labels and label values that the catalogue does not have."""
    for name, matchers in selectors(text):
        assert base_of(name) in CATALOGUE, f"{where}: {name}"
        labels = CATALOGUE[base_of(name)].labels
        for label, values in matchers.items():
            assert label in {*labels, *BEYOND}, f"{where}: {name}{{{label}}}"
            allowed = tuple(labels.get(label, ()))
            assert not allowed or set(values) <= set(allowed), f"{where}: {name}{{{label}={values}}}"
