"""Progress where nobody watches a terminal: a line now and then."""

from __future__ import annotations

import time

import pytest

from calibration import progress
from calibration.progress import Progress


def test_without_a_terminal_a_line_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([100.0, 110.0, 140.0, 140.0, 150.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with Progress(50, "scan", quiet=False) as bar:
        bar.expect(50)
        bar.step(10)  # 10 s: too early to say anything
        bar.step(15)  # 40 s gone for a quarter
        bar.step(5)
    assert capsys.readouterr().err == "scan: 25%, 40 s gone, about 120 s left\n"


def test_of_an_unknown_whole_only_the_time_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 31.0, 31.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with Progress(0, "make images", quiet=False) as bar:
        bar.step(7)
    assert capsys.readouterr().err == "make images: 31 s gone\n"


def test_a_quiet_job_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with Progress(2, "scan", quiet=True) as bar:
        bar.step(1)
    assert capsys.readouterr().err == ""
