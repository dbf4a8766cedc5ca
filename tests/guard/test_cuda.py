"""What only CUDA shows. The contract that it shares with the CPU is in ``test_device_calls.py``.

Run on a machine with a GPU and ``onnxruntime-gpu``: ``pytest -m gpu``. Tolerances: CUDA sums in another order
than the CPU; TF32 and float16 keep 11 bits of logits of the order of 4.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from guard.artifact import Profile
from guard.artifact.precision import Precision
from guard.detection.superimpose import BLEND_RULES
from guard.errors import UnfitModelError
from guard.runtime.loader import RuntimeOptions, load_model
from guard.runtime.onnx_classifier import OnnxClassifier
from guard.runtime.score_shift import full_scores
from tests.artifacts import make_profile, random_images, write_tiny_artifact
from tests.guard.check_reference import (
    check,
    open_classifier,
    random_pairs,
    reference_entropy,
    reference_outputs,
)
from tests.tiny_models import conv_classifier, linear_classifier

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in ort.get_available_providers(), reason="ONNX Runtime has no CUDA here"
    ),
]
NEAR: dict[Precision, float] = {"exact": 1e-3, "tf32": 2e-2, "fp16": 2e-2}
PATIENCE_S = 120.0


def on_cuda(
    model: onnx.ModelProto, profile: Profile, precision: Precision = "exact", up_to: int | None = None
) -> OnnxClassifier:
    return open_classifier(model, profile, "cuda", precision=precision, cuda_graphs_up_to=up_to)


@pytest.mark.parametrize("up_to", [None, 16])
@pytest.mark.parametrize("precision", ["exact", "tf32", "fp16"])
@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("datatype", ["FP32", "FP16", "UINT8"])
@pytest.mark.parametrize("blend", list(BLEND_RULES))
def test_the_check_equals_the_numpy_reference(
    blend: str,
    datatype: str,
    layout: str,
    kind: str,
    batch: int | None,
    precision: Precision,
    up_to: int | None,
) -> None:
    model = linear_classifier(
        (3, 6, 7), layout=layout, datatype=datatype, batch=batch, softmax=kind == "probabilities", gain=0.3
    )
    profile = make_profile(model, blend=blend, kind=kind)
    pairs = random_pairs(profile, 11)
    with on_cuda(model, profile, precision, up_to) as classifier:
        assert classifier.device == "cuda"
        classifier.warm_up(64)
        outputs, entropy = check(classifier, pairs)
    near = 2e-2 if datatype == "FP16" else NEAR[precision]
    np.testing.assert_allclose(outputs, reference_outputs(model, profile, pairs), rtol=near, atol=near)
    np.testing.assert_allclose(entropy, reference_entropy(profile, outputs), atol=2e-3)


def test_tf32_is_off_unless_asked_for() -> None:
    """From Ampere on: a sum over 3,072 products, rounded to 11 bits or not."""
    model = linear_classifier((3, 32, 32), classes=16)
    profile = make_profile(model, classes=16)
    pairs = random_pairs(profile, 64, n_images=16)
    with (
        open_classifier(model, profile) as cpu,
        on_cuda(model, profile) as exact,
        on_cuda(model, profile, "tf32") as rough,
    ):
        expected = check(cpu, pairs)[0]
        off = [np.abs(check(way, pairs)[0] - expected).max() for way in (exact, rough)]
    scale = np.abs(expected).max()
    assert off[0] < 1e-5 * scale
    assert off[0] < off[1] < 1e-2 * scale


def test_the_options_reach_the_provider() -> None:
    from guard.runtime.session import open_session

    for precision, graphs in (("exact", False), ("tf32", False), ("exact", True)):
        session = open_session(
            linear_classifier(), device="cuda", threads=1, precision=precision, cuda_graphs=graphs
        )
        options = session.get_provider_options()["CUDAExecutionProvider"]
        assert options["use_tf32"] == ("1" if precision == "tf32" else "0")
        assert options["enable_cuda_graph"] == ("1" if graphs else "0")
        assert options["cudnn_conv_algo_search"] == "HEURISTIC"


@pytest.mark.parametrize("precision", ["exact", "tf32", "fp16"])
def test_a_captured_call_replays_with_new_inputs(precision: Precision) -> None:
    """The first call of a shape captures, those that follow replay: not what went in at first."""
    model = conv_classifier()
    profile = make_profile(model)
    with (
        on_cuda(model, profile, precision) as plain,
        on_cuda(model, profile, precision, up_to=16) as graphs,
    ):
        for seed in range(6):
            pairs = random_pairs(profile, 13, n_images=7, seed=seed)
            for got, wanted in zip(check(graphs, pairs), check(plain, pairs), strict=True):
                np.testing.assert_allclose(got, wanted, rtol=NEAR[precision], atol=NEAR[precision])


def test_captures_of_many_shapes_stand_side_by_side() -> None:
    model = conv_classifier()
    profile = make_profile(model)
    counts = [1, 16, 2, 9, 5, 16, 3, 1, 40, 16]
    with on_cuda(model, profile) as plain, on_cuda(model, profile, up_to=16) as graphs:
        for turn in range(3):
            for count in counts:
                pairs = random_pairs(profile, count, n_images=min(count, 4), seed=count + 100 * turn)
                np.testing.assert_allclose(
                    check(graphs, pairs)[0], check(plain, pairs)[0], rtol=1e-3, atol=1e-3
                )


def in_threads(works: list[Callable[[], None]]) -> list[BaseException]:
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    return errors


def test_one_model_captures_while_others_run_and_load() -> None:
    """CUDA would fail whatever another thread does meanwhile, and the capture with it."""
    model = conv_classifier()
    profile = make_profile(model)
    wanted = {count: random_pairs(profile, count, n_images=4, seed=count) for count in range(1, 33)}

    def serve(classifier: OnnxClassifier) -> None:
        for _ in range(4):
            for pairs in wanted.values():
                assert np.isfinite(check(classifier, pairs)[0]).all()

    def load() -> None:
        for _ in range(8):
            with on_cuda(model, profile) as classifier:
                check(classifier, wanted[7])

    with (
        on_cuda(model, profile, up_to=32) as one,
        on_cuda(model, profile, up_to=32) as other,
        on_cuda(model, profile) as plain,
    ):
        works = [lambda: serve(one), lambda: serve(other), lambda: serve(plain), load]
        assert in_threads(works) == []
        for pairs in wanted.values():
            np.testing.assert_allclose(check(one, pairs)[0], check(plain, pairs)[0], rtol=1e-3, atol=1e-3)


def test_another_thread_captures_its_own() -> None:
    model = conv_classifier()
    profile = make_profile(model)
    pairs = random_pairs(profile, 9)
    results: list[np.ndarray] = []
    with on_cuda(model, profile, up_to=16) as classifier:
        here = check(classifier, pairs)[0]
        assert in_threads([lambda: results.extend(check(classifier, pairs)[0] for _ in range(4))]) == []
    assert len(results) == 4
    for there in results:
        np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-4)


def test_a_model_that_cannot_be_captured_is_refused_saying_so() -> None:
    """A condition inside the graph is decided on the CPU, at every call anew."""
    model = linear_classifier()
    model.graph.node[-1].output[0] = "before"
    branches = {
        name: onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["before"], [f"{name}_out"])],
            name,
            [],
            [onnx.helper.make_tensor_value_info(f"{name}_out", onnx.TensorProto.FLOAT, None)],
        )
        for name in ("then_branch", "else_branch")
    }
    model.graph.node.extend(
        [
            onnx.helper.make_node("ReduceMax", ["before"], ["highest"], keepdims=0),
            onnx.helper.make_node("Cast", ["highest"], ["high"], to=onnx.TensorProto.BOOL),
            onnx.helper.make_node("If", ["high"], ["logits"], **branches),
        ]
    )
    profile = make_profile(model)
    on_cuda(model, profile).close()
    with pytest.raises(UnfitModelError, match="or serve it without cuda_graphs"):
        on_cuda(model, profile, up_to=16)


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("precision", ["exact", "tf32", "fp16"])
def test_an_artifact_is_served_with_the_scores_of_the_cpu(
    tmp_path: Path, precision: Precision, cuda_graphs: bool
) -> None:
    directory = write_tiny_artifact(tmp_path, probed=True)
    options = RuntimeOptions(device="cpu", threads=1, max_batch_pairs=16)
    served = replace(options, device="cuda", precision=precision, cuda_graphs=cuda_graphs)
    cpu, gpu = load_model("tiny", directory, options), load_model("tiny", directory, served)
    try:
        images = random_images(cpu.profile, 9)
        one, other = (full_scores(m.classifier, m.detector, images, max_pairs=16) for m in (cpu, gpu))
        assert gpu.score_shift_bits is not None
        assert gpu.score_shift_bits < 0.05
    finally:
        cpu.close()
        gpu.close()
    np.testing.assert_allclose(other, one, atol=0.05)
