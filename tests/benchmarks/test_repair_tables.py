"""The committed tables of repairs, and what their records must hold."""

import json
from typing import Any

import pytest

pytest.importorskip("torch")

from benchmarks.repair.floor import read_floor
from benchmarks.repair.methods import STRONG, WEAK, find_method
from benchmarks.repair.records import Records, name_of, spread
from benchmarks.repair.render import RESULTS, render
from benchmarks.zoo.subjects import load_subject

PATHS = sorted((RESULTS / "repair").glob("*/*.json"))
RECORDS = {path: json.loads(path.read_text()) for path in PATHS}
DONE = {path: record for path, record in RECORDS.items() if "missing" not in record}


def one(victim: str, method: str, asr: float, images: int = 2500, seed: int = 0) -> dict[str, Any]:
    return {
        "victim": victim,
        "method": method,
        "variant": "",
        "images": images,
        "seed": seed,
        "after": {"asr": asr},
        "before": {"asr": 1.0},
    }


def test_the_committed_table_is_the_one_of_the_committed_records() -> None:
    assert (RESULTS / "repair.md").read_text() == render()


def test_every_record_lies_where_its_run_is_looked_for() -> None:
    assert PATHS
    expected = {
        path: f"{record['victim']}/{name_of(record)}-{record['images']}-{record['seed']}"
        for path, record in RECORDS.items()
    }
    assert {path: f"{path.parent.name}/{path.stem}" for path in PATHS} == expected


def test_every_record_is_of_the_victim_that_is_committed() -> None:
    digests = {
        record["victim"]: load_subject(record["victim"]).record["files"]["model.onnx"]["sha256"]
        for record in RECORDS.values()
    }
    assert {record["model_sha256"] == digests[record["victim"]] for record in RECORDS.values()} == {True}


def test_the_victim_as_it_was_is_the_one_of_the_zoo_s_own_record() -> None:
    for record in DONE.values():
        known = load_subject(record["victim"]).record
        for name in ("acc", "asr"):
            assert record["before"][name] == pytest.approx(known[name], abs=1e-3)


def test_the_mean_is_over_seeds_and_an_average_needs_every_victim() -> None:
    records = Records((one("a", "nad", 0.1), one("a", "nad", 0.3, seed=1), one("b", "nad", 0.4)))
    assert records.mean("a", "nad", 2500, "after", "asr") == pytest.approx(0.2)
    assert records.over(("a", "b"), "nad", 2500, "after", "asr") == pytest.approx(0.3)
    assert records.over(("a", "b", "c"), "nad", 2500, "after", "asr") is None
    assert records.mean("a", "nad", 500, "after", "asr") is None


def test_the_spread_is_over_the_seeds_that_every_victim_has() -> None:
    seeds = [one("a", "nad", 0.1), one("a", "nad", 0.3, seed=1), one("a", "nad", 0.9, seed=2)]
    records = Records((*seeds, one("b", "nad", 0.2), one("b", "nad", 0.6, seed=1)))
    found = records.by_seed(("a", "b"), "nad", 2500, "after", "asr")
    assert found == pytest.approx([0.15, 0.45])
    assert spread(found) == "30.00 ± 21.21"  # .15 · √2, as of two values
    assert spread(found[:1]) == "15.00"
    assert records.by_seed(("a", "c"), "nad", 2500, "after", "asr") == []


def test_what_clean_networks_do_was_measured_on_every_victim_of_both_sets() -> None:
    found = [read_floor(name) for name in (*WEAK, *STRONG)]
    assert all(0 <= one["asr"] < 0.1 for one in found)
    assert read_floor("gtsrb_badnets") == {}


def test_a_repair_without_images_counts_for_any_number_of_them() -> None:
    records = Records((one("a", "dhbe", 0.1, images=0),))
    assert records.mean("a", "dhbe", 2500, "after", "asr") == pytest.approx(0.1)


def test_a_run_that_was_cut_makes_no_figure() -> None:
    records = Records(({**one("a", "nad", 0.1), "missing": "cut"},))
    assert records.mean("a", "nad", 2500, "after", "asr") is None
    assert len(records.missing()) == 1


def test_a_repair_that_needs_a_trigger_is_given_a_reversed_one_and_others_none() -> None:
    assert find_method("unlearning").trigger == "reversed"
    assert find_method("unlearning-original").trigger == "original"
    assert find_method("nad").trigger is None
    with pytest.raises(ValueError, match="method 'nope' is not known"):
        find_method("nope")
