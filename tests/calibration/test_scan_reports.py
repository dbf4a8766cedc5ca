"""A scan's reports for programs: JSON, SARIF, and the folders that both name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.scan.base import Finding, ScanReport
from calibration.scan.reports import to_html, to_json, to_model_card, to_sarif, to_text, trigger_folders
from tests.calibration.scan_results import full, hostile, inversion, many, result, trigger

REPORTS = [to_html, to_json, to_model_card, to_sarif, to_text]


def no_constants(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def parsed(text: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(text, parse_constant=no_constants)
    return read


@pytest.mark.parametrize("report", REPORTS)
def test_the_same_result_gives_the_same_text(report: Any) -> None:
    assert report(full()) == report(full())


@pytest.mark.parametrize("report", REPORTS)
def test_a_scan_without_findings_can_be_reported(report: Any) -> None:
    empty = ScanReport("nothing", "inconclusive", (), ())
    assert "inconclusive" in report(result(empty, names=None)).lower()
    assert "inconclusive" in report(result(names=None)).lower()


class TestFolders:
    def test_each_trigger_has_a_folder_named_by_scanner_finding_and_form(self) -> None:
        assert list(trigger_folders(full())) == ["neural_cleanse-3-patch", "pairs-1-to-3-waves"]

    def test_no_two_triggers_share_one_even_if_they_are_the_same_object(self) -> None:
        one = trigger("3", 3)
        twice = result(
            replace(inversion(10, 3), triggers=(one, one)), replace(inversion(10), triggers=(one,))
        )
        assert list(trigger_folders(twice)) == [
            "neural_cleanse-3-patch",
            "neural_cleanse-3-patch-2",
            "neural_cleanse-3-patch-3",
        ]
        named = [
            held["folder"] for report in parsed(to_json(twice))["reports"] for held in report["triggers"]
        ]
        assert named == list(trigger_folders(twice))

    def test_a_name_leads_nowhere_else(self) -> None:
        odd = replace(inversion(10), scanner="..", triggers=(trigger("../3", 3, form="/etc"),))
        assert list(trigger_folders(result(odd))) == ["3-etc"]


class TestJson:
    def test_all_comes_back_but_the_pictures(self) -> None:
        made = full()
        read = parsed(to_json(made))
        assert read["format"] == 1
        assert list(read) == [
            "format",
            "verdict",
            "model",
            "data",
            "classes",
            "class_names",
            "seed",
            "executor",
            "machine",
            "versions",
            "started",
            "seconds",
            "notes",
            "reports",
        ]
        assert read["verdict"] == "backdoored"
        assert read["model"] == {"source": made.model, "sha256": made.model_sha256, "kind": "onnx"}
        assert read["data"]["accuracy"] == 0.934
        assert read["class_names"][3] == "cat"
        assert read["machine"]["cpu_count"] == 16
        assert [report["scanner"] for report in read["reports"]] == ["neural_cleanse", "pairs", "spectral"]

    def test_findings_keep_their_order_and_every_field(self) -> None:
        made = full()
        for report, read in zip(made.reports, parsed(to_json(made))["reports"], strict=True):
            assert len(read["findings"]) == len(report.findings)
            for finding, held in zip(report.findings, read["findings"], strict=True):
                name = held.pop("name")
                assert (Finding(**held), name) == (finding, finding.name)

    def test_triggers_are_references(self) -> None:
        read = parsed(to_json(full()))["reports"][0]["triggers"]
        assert read == [
            {"finding": "3", "form": "patch", "asr": 0.987, "size": 9.0, "folder": "neural_cleanse-3-patch"}
        ]

    def test_suspects_are_a_list_and_none_where_no_set_was_looked_at(self) -> None:
        reports = parsed(to_json(full()))["reports"]
        assert reports[0]["suspects"] is None
        assert reports[2]["suspects"] == list(range(7, 7 + 3 * 450, 3))

    def test_what_is_not_finite_is_null_and_keeps_its_name(self) -> None:
        finding = Finding(1, float("nan"), facts={"size": float("inf"), "asr": 0.5})
        report = ScanReport("one", "clean", (), (finding,), facts={"worst": float("-inf")})
        (read,) = parsed(to_json(result(report)))["reports"]
        assert read["facts"] == {"worst": None}
        assert read["findings"][0]["score"] is None
        assert read["findings"][0]["facts"] == {"size": None, "asr": 0.5}

    def test_options_of_any_kind_become_plain(self) -> None:
        options: dict[str, object] = {
            "path": Path("a/b"),
            "rate": np.float32(0.5),
            "forms": ("patch", None),
            "set": frozenset({2, 1}),
            "array": np.array([1.5, np.nan]),
            "inner": {"on": True},
        }
        (read,) = parsed(to_json(result(replace(inversion(3), options=options))))["reports"]
        assert read["options"] == {
            "path": "a/b",
            "rate": 0.5,
            "forms": ["patch", None],
            "set": [1, 2],
            "array": [1.5, None],
            "inner": {"on": True},
        }


class TestSarif:
    """The rules are those of the standard's text and schema, sections in brackets."""

    @pytest.mark.parametrize(
        "made", [full(), many(43, 7), result(inversion(10)), hostile("<b>{0}[x](y)\x1b")]
    )
    def test_it_keeps_to_the_standard(self, made: Any) -> None:
        log = parsed(to_sarif(made))
        assert set(log) == {"$schema", "version", "runs"}
        assert log["version"] == "2.1.0"  # [3.13.2]
        (run,) = log["runs"]
        driver = run["tool"]["driver"]  # [3.18.2]
        assert (driver["name"], driver["version"]) == ("guard", "0.1.0")
        rules = driver["rules"]
        assert len({rule["id"] for rule in rules}) == len(rules)  # unique items [3.19.23]
        for rule in rules:
            assert rule["shortDescription"]["text"].strip()
            assert rule["defaultConfiguration"]["level"] in {"none", "note", "warning", "error"}
        for artifact in run["artifacts"]:
            assert re.fullmatch(r"[A-Za-z0-9._~:/?#@!$&'()*+,;=%-]+", artifact["location"]["uri"])  # RFC 3986
            assert artifact["hashes"] == {"sha-256": made.model_sha256}  # names as in [3.24.11]
            assert artifact["roles"] == ["analysisTarget"]  # [3.24.6]
        for invocation in run["invocations"]:
            assert invocation["executionSuccessful"] is True  # required [3.20.14]
            assert re.fullmatch(
                r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", invocation["startTimeUtc"]
            )  # [3.9]
        for found in run["results"]:
            assert rules[found["ruleIndex"]]["id"] == found["ruleId"]  # [3.27.6]
            assert found["level"] in {"warning", "error"}  # [3.27.10]
            assert found["message"]["text"].strip()  # [3.27.11]
            assert not re.search(r"(?<!\{)\{\d", found["message"]["text"])  # no placeholder [3.11.5]
            assert not re.search(r"(?<!\\)\[[^]]*(?<!\\)\]\(", found["message"]["text"])  # no link [3.11.6]
            (location,) = found["locations"]
            place = location["physicalLocation"]["artifactLocation"]
            assert run["artifacts"][place["index"]]["location"]["uri"] == place["uri"]  # [3.4.5]
            assert all(isinstance(value, str) for value in found["partialFingerprints"].values())  # [3.27.17]

    def test_flagged_findings_are_errors_and_doubt_is_a_warning(self) -> None:
        results = parsed(to_sarif(full()))["runs"][0]["results"]
        assert [(found["ruleId"], found["level"]) for found in results] == [
            ("neural_cleanse", "error"),
            ("pairs", "error"),
            ("pairs", "warning"),
            ("spectral", "error"),
        ]
        assert results[0]["message"]["text"] == (
            "Class 3 cat looks like the target of a backdoor (score 7.27, p = 1.5e-07, size 9, ASR 99.0%)."
        )
        assert results[0]["properties"]["size"] == 9.0
        assert results[1]["message"]["text"].startswith("The pair 1 automobile → 3 cat looks like source and")

    def test_a_clean_scan_has_no_results_and_all_its_rules(self) -> None:
        (run,) = parsed(to_sarif(result(inversion(10))))["runs"]
        assert run["results"] == []
        assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["neural_cleanse"]

    def test_a_backdoor_without_a_label_is_an_error_too(self) -> None:
        report = ScanReport("rows", "backdoored", ("9 rows lie apart",), ())
        (found,) = parsed(to_sarif(result(report)))["runs"][0]["results"]
        assert (found["level"], found["message"]["text"]) == ("error", "9 rows lie apart")

    def test_fingerprints_tell_findings_apart_and_stay(self) -> None:
        def prints(seed: int) -> list[str]:
            log = parsed(to_sarif(result(inversion(43, 7, 9, seed=seed), classes=43, names=None)))
            return [found["partialFingerprints"]["guardFinding/v1"] for found in log["runs"][0]["results"]]

        assert prints(0) == prints(1)
        assert len(set(prints(0))) == 2

    @pytest.mark.parametrize(
        ("model", "uri"),
        [
            ("a b/ü.onnx", "a%20b/%C3%BC.onnx"),
            ("zoo.nets:make", "zoo.nets%3Amake"),
            ("C:\\models\\net.onnx", "C%3A/models/net.onnx"),
            ("s3://bucket/net.onnx", "s3://bucket/net.onnx"),
        ],
    )
    def test_where_the_model_lies_is_a_reference(self, model: str, uri: str) -> None:
        (run,) = parsed(to_sarif(replace(full(), model=model)))["runs"]
        assert run["artifacts"][0]["location"]["uri"] == uri

    @pytest.mark.parametrize(
        "started", ["2026-01-02T03:04:05+00:00", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05"]
    )
    def test_times_are_utc(self, started: str) -> None:
        (run,) = parsed(to_sarif(replace(full(), started=started)))["runs"]
        assert run["invocations"][0]["startTimeUtc"] == "2026-01-02T03:04:05Z"
