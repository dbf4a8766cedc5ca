"""The Grafana dashboard is laid out, asks only for metrics there are, and each of its queries finds them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest

from guard.metrics_catalogue import CATALOGUE, Spec
from tests.house.promql import BEYOND, base_of, promtool, require_known, selectors

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/guard.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
SHOWN = [panel for panel in PANELS if panel["type"] != "row"]
ALERTS = (ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8")
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}

ROWS = [
    "What is served",
    "Traffic and verdicts",
    "Refused and flagged, against the certified rate",
    "Latency and cost",
    "Queue, shed requests",
    "Unchecked inputs",
    "Drift",
    "Second opinions",
    "Model servers",
    "Versions, swaps and canaries",
    "Audit log and quarantine",
]
NOT_SHOWN = {"guard_score_shift_bits", "guard_candidate_load_seconds"}
"""Settled once, when a version is loaded: `guard status` and the log have them."""


def queries() -> Iterator[tuple[str, str, str]]:
    """Yield the title of each panel with its expressions, as Grafana would send them, and their legends."""
    for panel in SHOWN:
        for target in panel["targets"]:
            yield panel["title"], as_sent(target["expr"]), target["legendFormat"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], as_sent(annotation["expr"]), annotation["titleFormat"]


def as_sent(expression: str) -> str:
    """Return an expression with one model chosen; no variable of Grafana is left in it."""
    sent = expression.replace("$__rate_interval", "5m").replace("$model", "m")
    assert "$" not in sent
    return sent


def grouped(expression: str) -> set[str]:
    """Return the labels that an expression keeps."""
    return {label for some in re.findall(r"\bby \(([^)]*)\)", expression) for label in some.split(", ")}


def series_of(spec: Spec) -> Iterator[str]:
    """Yield the series of a metric of one model on one replica, as Prometheus names them."""
    labels = {label: tuple(values) or ("m",) for label, values in spec.labels.items()}
    for values in product(*labels.values()):
        pairs = {"job": "guard", "instance": "a:9100", **dict(zip(labels, values, strict=True))}
        if spec.kind == "histogram":
            for bound in (*(f"{bound:g}" for bound in spec.buckets), "+Inf"):
                yield as_series(f"{spec.name}_bucket", {**pairs, "le": bound})
            yield as_series(f"{spec.name}_sum", pairs)
            yield as_series(f"{spec.name}_count", pairs)
        else:
            yield as_series(spec.name, pairs)


def as_series(name: str, labels: dict[str, str]) -> str:
    return name + "{" + ", ".join(f'{label}="{value}"' for label, value in labels.items()) + "}"


def finds_something(expression: str) -> dict[str, Any]:
    """Return promtool's case that an expression gives a sample, and one that is a number."""
    counted = f"count(({expression}) > -Inf) > bool 0"
    return {"expr": counted, "eval_time": "2h", "exp_samples": [{"labels": "{}", "value": 1}]}


def test_panels_have_titles_words_and_ids_of_their_own() -> None:
    numbers = [panel["id"] for panel in PANELS]
    assert len(set(numbers)) == len(numbers)
    assert [panel["title"] for panel in PANELS if panel["type"] == "row"] == ROWS
    assert [panel["title"] for panel in SHOWN if not panel["description"].endswith(".")] == []


def test_panels_do_not_overlap_and_lie_within_the_24_columns() -> None:
    cells = {panel["id"]: panel["gridPos"] for panel in PANELS}
    for at in cells.values():
        assert at["x"] >= 0
        assert at["x"] + at["w"] <= 24
        assert min(at["w"], at["h"]) > 0
    for (one, a), (other, b) in combinations(cells.items(), 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        below = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or below, f"{one} and {other}"


def test_the_data_source_and_the_model_are_chosen_and_nothing_else_is_built_in() -> None:
    assert VARIABLES["datasource"]["type"] == "datasource"
    assert VARIABLES["datasource"]["query"] == "prometheus"
    assert VARIABLES["model"]["query"]["query"] == "label_values(guard_model_info, model)"
    asked = [*SHOWN, VARIABLES["model"], *DASHBOARD["annotations"]["list"]]
    assert {one["datasource"]["uid"] for one in asked} == {"${datasource}"}
    assert "__inputs" not in DASHBOARD  # else it would not import as it is


def test_only_metrics_labels_and_values_of_the_catalogue_are_asked_for() -> None:
    for title, expression, legend in queries():
        require_known(re.sub(r'model=~"m"', "", expression), title)
        known = {label for name, _ in selectors(expression) for label in CATALOGUE[base_of(name)].labels}
        kept = grouped(expression)
        assert kept <= known | BEYOND | {"le"}, title
        assert set(re.findall(r"{{(\w+)}}", legend)) <= kept, title


def test_panels_about_models_show_those_that_are_chosen() -> None:
    per_model = [
        (panel["title"], matchers)
        for panel in SHOWN
        for target in panel["targets"]
        for name, matchers in selectors(target["expr"])
        if "model" in CATALOGUE[base_of(name)].labels
    ]
    assert {title for title, matchers in per_model if matchers.get("model") != ["$model"]} == {
        "Passed through unguarded"  # its models are none of those that the variable lists
    }


def test_every_metric_is_shown_but_what_is_settled_once() -> None:
    shown = {base_of(name) for _, expression, _ in queries() for name, _ in selectors(expression)}
    assert set(CATALOGUE) - shown == NOT_SHOWN


def test_limits_that_are_drawn_are_those_of_the_alerts() -> None:
    alerts = re.sub(r"\s+", "", ALERTS)
    drawn = [expression for _, expression, legend in queries() if re.fullmatch(r".*} limit", legend)]
    drawn = [expression for expression in drawn if not expression.startswith("sum by (model) (guard_queue")]
    assert len(drawn) == 3
    for expression in drawn:
        assert re.sub(r"\s+", "", re.sub(r',?model=~"m"', "", expression).replace("{}", "")) in alerts


def test_promtool_accepts_every_expression_and_each_finds_the_metrics_of_a_guard(tmp_path: Path) -> None:
    asked = [expression for _, expression, _ in queries()]
    rules = [{"record": f"asked:{number}", "expr": expression} for number, expression in enumerate(asked)]
    counts = [finds_something(expression) for expression in asked]
    series = [
        {"series": one, "values": "1+0x130" if spec.kind == "gauge" else "0+1x130"}
        for spec in CATALOGUE.values()
        for one in series_of(spec)
    ]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": counts}
    tests = {"evaluation_interval": "1m", "tests": [test]}
    # JSON is YAML too.
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    (tmp_path / "tests.yml").write_text(json.dumps(tests))
    promtool("check", "rules", "rules.yml", folder=tmp_path)
    promtool("test", "rules", "tests.yml", folder=tmp_path)


def test_a_query_that_finds_nothing_would_be_noticed(tmp_path: Path) -> None:
    case = {"input_series": [], "promql_expr_test": [finds_something("guard_ready")]}
    (tmp_path / "tests.yml").write_text(json.dumps({"evaluation_interval": "1m", "tests": [case]}))
    with pytest.raises(AssertionError, match="guard_ready"):
        promtool("test", "rules", "tests.yml", folder=tmp_path)


def test_grafana_finds_the_dashboard_and_the_data_source_where_compose_puts_them() -> None:
    compose = (ROOT / "deploy/compose.yml").read_text(encoding="utf-8")
    provided = (ROOT / "deploy/grafana/dashboards.yml").read_text(encoding="utf-8")
    source = (ROOT / "deploy/grafana/datasource.yml").read_text(encoding="utf-8")
    [folder] = re.findall(r"^ +path: (\S+)$", provided, re.MULTILINE)
    assert f"- ./grafana/guard.json:{folder}/guard.json:ro\n" in compose
    assert "./grafana/datasource.yml:/etc/grafana/provisioning/datasources/" in compose
    assert "./grafana/dashboards.yml:/etc/grafana/provisioning/dashboards/" in compose
    assert re.search(r"^  prometheus:$", compose, re.MULTILINE)
    assert "url: http://prometheus:9090\n" in source
    assert f"localhost:3000/d/{DASHBOARD['uid']}" in compose
