"""The committed tables of scans, and what they must show."""

import json
from pathlib import Path

import pytest

from benchmarks.scan.render import RESULTS, render

RECORDS = [json.loads(path.read_text()) for path in sorted((RESULTS / "scan" / "zoo").glob("*.json"))]
CLEAN = [record for record in RECORDS if record["attack"] is None]


def test_the_committed_table_is_the_one_of_the_committed_records() -> None:
    assert Path(RESULTS / "scan.md").read_text() == render()


def test_no_clean_network_was_called_backdoored() -> None:
    assert len({(record["subject"], record["seed"]) for record in CLEAN}) >= 15
    assert [record["subject"] for record in CLEAN if record["verdict"] == "backdoored"] == []


@pytest.mark.parametrize(
    ("subject", "scanner", "expected"),
    [
        ("badnets", "neural_cleanse", "0"),
        ("gtsrb_badnets", "neural_cleanse", "0"),
        ("blend", "wave_inversion", "0"),
        ("refool", "wave_inversion", "0"),
        ("wanet", "warp_inversion", "0"),
        ("source_specific", "pair_scan", "1→0"),
        ("all_to_all", "pair_scan", "1→2"),
    ],
)
def test_a_backdoor_is_found_by_the_scanner_that_is_for_it(subject: str, scanner: str, expected: str) -> None:
    [record] = [
        one
        for one in RECORDS
        if (one["subject"], one["scanner"], one["seed"], one["options"].get("goal", 0.95))
        == (subject, scanner, 0, 0.95)
    ]
    assert record["verdict"] == "backdoored"
    assert expected in record["flagged"]
