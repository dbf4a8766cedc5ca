"""What a device call costs by itself: each way of running the check graph, in one run.

`python -m benchmarks.bench_calls` wraps a WRN-16-1 of the zoo in its check and times, in random order, calls
of 8, 40 and 136 pairs (a fifth as many images, N = 32):

- plain: shapes as they come, arrays handed to ONNX Runtime; what serves unless `cuda_graphs` is set;
- bound: the same by I/O binding, results bound on the CPU;
- fixed: filled up to the next power of two, tensors at fixed addresses; CUDA captures and replays it;
- fp16, and on CUDA tf32: plain, in another precision.

`--device cuda` measures the same on a GPU. On the CPU, time is the processor's, so that what else the machine
does counts for little; on CUDA it is the clock's. The differences of logits and entropies from `plain` are
the largest over all pairs of all sizes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx

from benchmarks.machine import commit, describe_machine
from guard.artifact.precision import Precision
from guard.artifact.profile import InputSpec, OutputSpec
from guard.detection.superimpose import BLEND_RULES
from guard.runtime import check_graph
from guard.runtime.device_calls import FixedCalls, PlainCalls
from guard.runtime.half import in_half_precision
from guard.runtime.padding import sizes_up_to
from guard.runtime.session import Device, is_on_cuda, open_session

MODEL = Path(__file__).with_name("zoo") / "models" / "badnets" / "model.onnx"
RESULTS = Path(__file__).with_name("results")
PAIRS = (8, 40, 136)
N_OVERLAYS = 32
SEED = 20

Call = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def main() -> None:
    options = read_options()
    ways, on_cuda = open_ways(options.device, options.threads)
    result = {
        "setting": f"WRN-16-1, 32x32, N = {N_OVERLAYS}, {'CUDA' if on_cuda else 'CPU'}",
        "command": f"python -m benchmarks.bench_calls --device {options.device} --threads {options.threads} "
        f"--repeats {options.repeats}",
        "repeats": options.repeats,
        "clock": "wall" if on_cuda else "processor",
        "ways": measure(ways, options.repeats, time.perf_counter if on_cuda else time.process_time),
        "commit": commit(),
        **describe_machine(("numpy", "onnxruntime")),
    }
    name = "calls_cuda" if on_cuda else "calls"
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(render(result))
    print(render(result))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure device calls")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    return parser.parse_args()


def open_ways(device: Device, threads: int) -> tuple[dict[str, Call], bool]:
    model = onnx.load(MODEL)
    source = specs(model)[0]
    open_one = partial(opened, model, device, threads)
    plain = open_one("exact", False)
    fixed = FixedCalls(open_one("exact", True), source, specs(model)[1].classes, sizes_up_to(max(PAIRS)))
    ways: dict[str, Call] = {
        "plain": PlainCalls(plain).run,
        "bound": partial(run_bound, plain),
        "fixed": fixed.run,
        "fp16": PlainCalls(open_one("fp16", False)).run,
    }
    if device == "cuda":
        ways["tf32"] = PlainCalls(open_one("tf32", False)).run
    return ways, is_on_cuda(plain)


def specs(model: onnx.ModelProto) -> tuple[InputSpec, OutputSpec]:
    source, sink = model.graph.input[0], model.graph.output[0]
    shape = tuple(dim.dim_value for dim in source.type.tensor_type.shape.dim)[1:]
    classes = sink.type.tensor_type.shape.dim[1].dim_value
    return (
        InputSpec(name=source.name, datatype="FP32", shape=shape, layout="NCHW", low=(0.0,), high=(1.0,)),
        OutputSpec(name=sink.name, datatype="FP32", classes=classes, kind="logits"),
    )


def opened(model: onnx.ModelProto, device: Device, threads: int, precision: Precision, graphs: bool) -> Any:
    source, sink = specs(model)
    overlays = np.random.default_rng(SEED).random((N_OVERLAYS, *source.shape), np.float32)
    wrapped = check_graph.build_check_graph(
        in_half_precision(model) if precision == "fp16" else model,
        source=source,
        sink=sink,
        overlays=overlays,
        blend=BLEND_RULES["add"],
    )
    return open_session(wrapped, device=device, threads=threads, precision=precision, cuda_graphs=graphs)


def run_bound(
    session: Any, images: np.ndarray, image_index: np.ndarray, overlay_index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    binding = session.io_binding()
    binding.bind_cpu_input(check_graph.IMAGES, images)
    binding.bind_cpu_input(check_graph.IMAGE_INDEX, image_index)
    binding.bind_cpu_input(check_graph.OVERLAY_INDEX, overlay_index)
    binding.bind_output(check_graph.LOGITS, "cpu")
    binding.bind_output(check_graph.ENTROPY, "cpu")
    session.run_with_iobinding(binding)
    logits, entropies = binding.copy_outputs_to_cpu()
    return logits, entropies


def questions() -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(SEED + 1)
    asked = {}
    for pairs in PAIRS:
        images = generator.random((max(1, pairs // 5), 3, 32, 32), np.float32)
        overlays = generator.integers(-1, N_OVERLAYS, pairs)
        asked[pairs] = (images, generator.integers(0, len(images), pairs), overlays)
    return asked


def measure(ways: dict[str, Call], repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    asked, order = questions(), np.random.default_rng(SEED + 2)
    seconds: dict[str, dict[int, list[float]]] = {way: {pairs: [] for pairs in asked} for way in ways}
    moved = {way: [0.0, 0.0] for way in ways}
    for arrays in asked.values():
        expected = ways["plain"](*arrays)
        for way, call in ways.items():
            for which, (now, then) in enumerate(zip(call(*arrays), expected, strict=True)):
                moved[way][which] = max(moved[way][which], float(np.abs(now - then).max()))
    for _ in range(repeats):
        for pairs, arrays in asked.items():
            for way in order.permutation(list(ways)).tolist():
                start = clock()
                ways[way](*arrays)
                seconds[way][pairs].append(clock() - start)
    return {
        way: {
            "pairs_per_second": {str(pairs): pairs / median(took) for pairs, took in timed.items()},
            "logits_moved": moved[way][0],
            "entropy_moved_bits": moved[way][1],
        }
        for way, timed in seconds.items()
    }


def render(result: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {way} | {' | '.join(f'{rate:.0f}' for rate in figures['pairs_per_second'].values())} "
        f"| {figures['logits_moved']:.1e} | {figures['entropy_moved_bits']:.1e} |"
        for way, figures in result["ways"].items()
    )
    return f"""# What a device call costs

{result["setting"]}; pairs (images and blends) a second of the {result["clock"]}'s time,
median of {result["repeats"]} calls in random order on {result["machine"]["cpu"]}.
`{result["command"]}`

| way | {" | ".join(f"{pairs} pairs" for pairs in PAIRS)} | logits moved | entropy moved, bits |
|---|{"---|" * len(PAIRS)}---|---|
{rows}

`fixed` fills a call up to the next power of two (8, 64, 256), which can pay only where CUDA replays it.
What a CPU cannot compute in float16, ONNX Runtime casts.
"""


if __name__ == "__main__":
    main()
