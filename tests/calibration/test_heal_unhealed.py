"""What a healing that changed nothing may not pass by: scans that could tell nothing, suspects of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration.heal.healed import Healed  # noqa: E402
from calibration.heal.job import heal  # noqa: E402
from calibration.scan import pair_scan  # noqa: E402
from tests.calibration.backdoored_nets import TARGET  # noqa: E402
from tests.calibration.heal_files import SCAN, options_for, suspects, write  # noqa: E402

NOTHING = {"guided_unlearning": {"epochs": 1, "search_steps": 1, "precision": "float32", "rate": 1e-9}}
"""A repair that leaves the model as it is."""
BLIND = {"neural_cleanse": {"steps": 1, "batch": 16}}
"""A search too short to find anything."""


def left_as_it_was(folder: Path, **changes: Any) -> Healed:
    """Heal a backdoored model by a repair that does nothing."""
    write(folder)
    given = {"method": ("guided_unlearning",), "repair": NOTHING, "scanners": ("neural_cleanse",)}
    return heal(options_for(folder, **{**given, **changes}))


def verdicts(done: Healed) -> dict[str, str]:
    (attempt,) = done.attempts
    assert attempt.judgement is not None
    return {one.name: one.verdict for one in attempt.judgement.results}


def test_a_scan_that_could_have_found_nothing_is_no_evidence_of_a_repair(tmp_path: Path) -> None:
    done = left_as_it_was(tmp_path, even_if_clean=True, scan=BLIND)
    assert (done.looked.verdict, done.ending) == ("inconclusive", "gates failed")
    assert {verdicts(done)[name] for name in ("max_anomaly_index", "min_rescan_p_value")} == {"not measured"}


def test_a_scanner_that_gives_no_chance_forbids_what_it_calls_backdoored(tmp_path: Path) -> None:
    allowed = {"max_inverted_asr": 1, "max_amplified_asr": 1}
    done = left_as_it_was(tmp_path, scanners=("pair_scan",), scan={}, gates=allowed, judge_share=0.4)
    assert (done.looked.verdict, done.ending) == ("backdoored", "gates failed")
    assert verdicts(done)["min_rescan_p_value"] == "failed"


def test_suspects_that_the_original_answers_otherwise_are_no_evidence_of_a_repair(tmp_path: Path) -> None:
    told = suspects(tmp_path / "suspects.npz", labels=np.full(30, 1))
    done = left_as_it_was(tmp_path, even_if_clean=True, scan=BLIND, suspects=told, rescan=False)
    assert done.ending == "gates failed"
    assert any("may have been sent to another version" in note for note in done.notes)
    assert "nothing could be measured that would show the backdoor" in str(done.attempts[0].judgement)


def test_what_does_show_the_backdoor_forbids_it(tmp_path: Path) -> None:
    done = left_as_it_was(tmp_path, scan=SCAN, suspects=suspects(tmp_path / "suspects.npz"))
    assert done.ending == "gates failed"
    failed = {name for name, verdict in verdicts(done).items() if verdict == "failed"}
    assert failed >= {"max_inverted_asr", "max_suspects_kept", "max_anomaly_index", "min_rescan_p_value"}


def test_a_label_that_one_scanner_flags_is_not_lost_by_what_the_next_one_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_scan, "_is_pattern", lambda *given: False)  # as for a lone pair
    done = left_as_it_was(tmp_path, scanners=("pair_scan", "neural_cleanse"), scan=BLIND, rescan=False)
    assert (done.looked.verdict, done.looked.targets) == ("inconclusive", (TARGET,))
    assert verdicts(done)["max_inverted_asr"] == "failed"


def test_the_images_that_overlays_are_drawn_from_are_private_in_a_folder_of_the_callers(
    tmp_path: Path,
) -> None:
    (tmp_path / "work").mkdir(mode=0o755)
    left_as_it_was(tmp_path, even_if_clean=True, scan=BLIND, rescan=False)
    assert (tmp_path / "work" / "steps").stat().st_mode & 0o077 == 0
