"""What the guard and Envoy cost in front of Triton, as perf_analyzer sees it.

`python -m benchmarks.bench_serving` starts Triton with a small model, and measures by perf_analyzer, one run
for each path and number of requests under way, the paths in turn, as often as `--rounds` says:

- direct: Triton itself;
- Envoy, unguarded: a model that Envoy sends straight on to Triton;
- pass-through: `guard serve` with policy monitor and sampling 0, so that nothing is checked;
- guarded: `guard serve` with policy enforce; the check runs on the guard's copy of the model;
- Envoy, guarded: Envoy in front of two guards with one process each.

Everything runs on this machine, perf_analyzer too, and the cores are shared: what counts are ratios within
one round. What each process computes for one request is measured beside, and says what the limit is.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc

import peers
from benchmarks.processor_time import processor_seconds
from benchmarks.serving_report import RESULT, Run, render, summarise
from benchmarks.sidecar import sidecar
from guard.rpc.pb import open_inference_pb2 as pb
from guard.rpc.pb import open_inference_pb2_grpc as pb_grpc
from tests.artifacts import write_tiny_artifact
from tests.e2e.envoy_process import Envoy
from tests.e2e.perf_analyzer_process import PerfAnalyzer
from tests.e2e.triton_process import Triton, write_model
from tests.reference_check import images_and_boundary
from tests.tiny_models import linear_classifier

OUT = Path("build/bench_serving")
GUARDED, UNGUARDED = "tiny", "plain"
CLEAN, _, _, BOUNDARY = images_and_boundary()


@dataclass(frozen=True)
class Lane:
    """Where requests are sent on one path, and whose processor time counts.

    Attributes:
        address: gRPC address.
        model: Model to ask for.
        processes: Process ids by what they are.
    """

    address: str
    model: str
    processes: dict[str, int]


@dataclass(frozen=True)
class Bench:
    """What runs all the time: Triton, Envoy, and a repository that guards serve."""

    triton: Triton
    envoy: Envoy
    repository: Path

    def direct(self) -> AbstractContextManager[Lane]:
        return _as_it_is(Lane(self.triton.address, UNGUARDED, self._pids()))

    def envoy_unguarded(self) -> AbstractContextManager[Lane]:
        return _as_it_is(Lane(self.envoy.address, UNGUARDED, self._pids("Envoy")))

    @contextmanager
    def guard(self, *flags: str, **settings: str | float) -> Iterator[Lane]:
        """Serve in front of Triton, the model with settings of its own."""
        with sidecar(self.repository, OUT / "guard.log", *self._config(**settings), *flags) as guard:
            yield Lane(guard.address, GUARDED, self._pids() | {"guard": guard.process.pid})

    @contextmanager
    def envoy_guarded(self) -> Iterator[Lane]:
        """Serve by two guards behind Envoy."""
        with ExitStack() as stack:
            pids = self._pids("Envoy")
            for name in ("guard", "second_guard"):
                log, port = OUT / f"{name}.log", str(self.envoy.ports[name])
                one = stack.enter_context(sidecar(self.repository, log, *self._config(), "--port", port))
                pids[name.replace("_", " ")] = one.process.pid
            wait_for_healthy(self.envoy)
            yield Lane(self.envoy.address, GUARDED, pids)

    def inferences(self) -> int:
        """Return how often Triton ran the models, by its own count."""
        with grpc.insecure_channel(self.triton.address) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            return sum(
                one.inference_count for one in stub.ModelStatistics(pb.ModelStatisticsRequest()).model_stats
            )

    def _pids(self, *also: str) -> dict[str, int]:
        running = {"Triton": self.triton, **({"Envoy": self.envoy} if also else {})}
        return {name: server.process.pid for name, server in running.items() if server.process}

    def _config(self, **settings: str | float) -> tuple[str, ...]:
        own = {"upstream": self.triton.address, **settings}
        lines = [f"[models.{GUARDED}]", *(f"{name} = {json.dumps(value)}" for name, value in own.items())]
        path = OUT / "guard.toml"
        path.write_text("\n".join(lines) + "\n")
        return "--config", str(path), "--threads", "1"


def main() -> None:
    options = read_options()
    with started(options.instances) as bench:
        paths = paths_of(bench)
        runs = {name: {c: list[Run]() for c in options.concurrency} for name in options.paths or paths}
        for number in range(options.rounds):
            for name, measured in runs.items():
                with paths[name]() as lane:
                    for concurrency, found in measured.items():
                        found.append(measure(bench, lane, concurrency, options.interval_ms))
                        print(
                            f"{number + 1}/{options.rounds}  {name:24}{concurrency:3}  {found[-1]}",
                            flush=True,
                        )
    result = summarise(runs, options)
    out = options.out or RESULT
    out.write_text(json.dumps(result, indent=2) + "\n")
    out.with_suffix(".md").write_text(render(result))
    print(render(result))


def paths_of(bench: Bench) -> dict[str, Callable[[], AbstractContextManager[Lane]]]:
    unchecked = partial(bench.guard, policy="monitor", sampling=0.0)
    return {
        "direct": bench.direct,
        "Envoy, unguarded": bench.envoy_unguarded,
        "pass-through, 1 worker": unchecked,
        "pass-through, 2 workers": partial(unchecked, "--workers", "2"),
        "guarded, 1 worker": partial(bench.guard, policy="enforce"),
        "guarded, 2 workers": partial(bench.guard, "--workers", "2", policy="enforce"),
        "Envoy, guarded": bench.envoy_guarded,
    }


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure the guard and Envoy in front of Triton")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--interval-ms", type=int, default=3000, help="one of perf_analyzer's windows")
    parser.add_argument("--instances", type=int, default=1, help="instances of the model in Triton")
    parser.add_argument("--paths", nargs="*", help="only these; all by default")
    parser.add_argument("--out", type=Path, help=f"where the JSON goes; {RESULT} by default")
    return parser.parse_args()


@contextmanager
def started(instances: int) -> Iterator[Bench]:
    shutil.rmtree(OUT, ignore_errors=True)
    for part in ("triton", "envoy", "perf_analyzer"):
        (OUT / part).mkdir(parents=True)
    out = OUT.resolve()
    triton = Triton(peers.environment("triton"), out / "triton", GUARDED, (UNGUARDED,))
    for model in (GUARDED, UNGUARDED):
        write_model(triton.repository, model, linear_classifier(), max_batch_size=64, instances=instances)
    write_tiny_artifact(out / "models", boundary_bits=BOUNDARY, probed=True)
    envoy = Envoy(peers.environment("envoy"), out / "envoy", concurrency=2)
    envoy.ports["model_server"] = triton.ports["grpc"]
    try:
        triton.start()
        envoy.start()
        yield Bench(triton, envoy, out / "models")
    finally:
        envoy.kill()
        triton.kill()


def wait_for_healthy(envoy: Envoy) -> None:
    """Wait until Envoy finds both guards healthy."""
    url = f"http://127.0.0.1:{envoy.ports['http']}/clusters"
    for _ in range(200):
        with urllib.request.urlopen(url) as answer:
            lines = answer.read().decode().splitlines()
        guards = [line for line in lines if line.startswith("guards::") and "::health_flags::" in line]
        if [line.rpartition("::")[2] for line in guards] == ["healthy", "healthy"]:
            return
        time.sleep(0.05)
    raise RuntimeError(f"Envoy finds its guards not healthy: {guards}")


def measure(bench: Bench, lane: Lane, concurrency: int, interval_ms: int) -> Run:
    """Have perf_analyzer measure for a while, and see what everybody computed meanwhile."""
    analyser = PerfAnalyzer((OUT / "perf_analyzer").resolve())
    images = str(analyser.write_images("images", CLEAN))
    windows = ("--measurement-interval", str(interval_ms), "--stability-percentage", "999")  # three windows
    wanted = ("--concurrency-range", str(concurrency), "--percentile", "99", "--input-data", images)
    requests, before = bench.inferences(), _used(lane)
    [found] = analyser.run(lane.address, lane.model, *wanted, *windows)
    requests = bench.inferences() - requests
    spent = {name: 1000 * (seconds - before[name]) / requests for name, seconds in _used(lane).items()}
    return Run(found.per_second, found.p50_ms, found.p99_ms, spent)


def _used(lane: Lane) -> dict[str, float]:
    """Return the processor seconds of each process so far, and of all perf_analyzers that ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = {name: processor_seconds(pid) for name, pid in lane.processes.items()}
    return own | {"perf_analyzer": ended.ru_utime + ended.ru_stime}


@contextmanager
def _as_it_is(lane: Lane) -> Iterator[Lane]:
    yield lane


if __name__ == "__main__":
    main()
