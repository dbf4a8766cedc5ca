"""One contract for every way of running the check graph: as calls come, or filled up to sizes that repeat.

All of it runs on the CPU; ``test_cuda.py`` has the same contract on CUDA, and what only CUDA shows.
"""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from guard.artifact.precision import Precision
from guard.errors import SettingsError, UnfitModelError
from guard.runtime.check_graph import ENTROPY, LOGITS, build_check_graph
from guard.runtime.half import in_half_precision
from guard.runtime.onnx_classifier import ORT_ERRORS
from tests.artifacts import make_profile, random_images
from tests.guard.check_reference import (
    Pairs,
    bare_outputs,
    check,
    open_classifier,
    overlays_of,
    random_pairs,
    reference_entropy,
    reference_outputs,
)
from tests.tiny_models import conv_classifier, linear_classifier

WAYS = {"as they come": None, "fixed up to 1": 1, "fixed up to 8": 8, "fixed up to 64": 64}
every_way = pytest.mark.parametrize("up_to", list(WAYS.values()), ids=list(WAYS))
fixed_ways = pytest.mark.parametrize("up_to", [1, 8, 64])
TOLERANCE: dict[Precision, float] = {"exact": 1e-4, "fp16": 2e-2}
"""Of logits of the order of 4: float16 keeps 11 bits."""


@every_way
@pytest.mark.parametrize("precision", ["exact", "fp16"])
@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("datatype", ["FP32", "FP16", "UINT8"])
def test_the_check_equals_the_numpy_reference(
    datatype: str, kind: str, batch: int | None, precision: Precision, up_to: int | None
) -> None:
    model = linear_classifier(
        (3, 6, 7), datatype=datatype, batch=batch, softmax=kind == "probabilities", gain=0.3
    )
    profile = make_profile(model, kind=kind)
    pairs = random_pairs(profile, 11)
    with open_classifier(model, profile, precision=precision, cuda_graphs_up_to=up_to) as classifier:
        classifier.warm_up(16)
        outputs, entropy = check(classifier, pairs)
    near = 2e-2 if datatype == "FP16" else TOLERANCE[precision]
    np.testing.assert_allclose(outputs, reference_outputs(model, profile, pairs), rtol=near, atol=near)
    np.testing.assert_allclose(entropy, reference_entropy(profile, outputs), atol=2e-5)


@fixed_ways
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 33, 64, 65, 130])
def test_filling_up_changes_no_result(count: int, up_to: int) -> None:
    model = conv_classifier()
    profile = make_profile(model)
    pairs = random_pairs(profile, count, n_images=min(count, 5))
    with open_classifier(model, profile) as plain:
        expected = check(plain, pairs)
    with open_classifier(model, profile, cuda_graphs_up_to=up_to) as classifier:
        got = check(classifier, pairs)
    for array, wanted in zip(got, expected, strict=True):
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-5)


@every_way
@pytest.mark.parametrize("images", [0, 3])
@pytest.mark.parametrize("batch", [None, 4])
def test_no_pairs_get_no_answers(batch: int | None, images: int, up_to: int | None) -> None:
    model = linear_classifier(batch=batch)
    profile = make_profile(model)
    nothing = np.empty(0, np.int64)
    with open_classifier(model, profile, cuda_graphs_up_to=up_to) as classifier:
        outputs, entropy = classifier.check(random_images(profile, images), nothing, nothing)
    assert outputs.shape == (0, 10)
    assert entropy.shape == (0,)


@every_way
def test_one_pair_of_many_images_is_of_the_image_meant(up_to: int | None) -> None:
    model = linear_classifier()
    profile = make_profile(model)
    images = random_images(profile, 9)
    with open_classifier(model, profile, cuda_graphs_up_to=up_to) as classifier:
        outputs, _ = classifier.check(images, np.array([6]), np.array([-1]))
    np.testing.assert_allclose(outputs, bare_outputs(model, images[6:7], None), rtol=1e-5, atol=1e-5)


@every_way
def test_images_that_are_a_view_are_read_right(up_to: int | None) -> None:
    model = linear_classifier()
    profile = make_profile(model)
    images = random_images(profile, 6)
    with open_classifier(model, profile, cuda_graphs_up_to=up_to) as classifier:
        np.testing.assert_allclose(
            classifier.logits(images[::-2]), bare_outputs(model, images[::-2], None), rtol=1e-5, atol=1e-5
        )


@every_way
def test_images_of_another_dtype_are_refused(up_to: int | None) -> None:
    model = linear_classifier()
    profile = make_profile(model)
    with (
        open_classifier(model, profile, cuda_graphs_up_to=up_to) as classifier,
        pytest.raises((*ORT_ERRORS, ValueError), match="Unexpected input data"),
    ):
        classifier.logits(random_images(profile, 2).astype(np.float64))


@fixed_ways
def test_images_of_another_shape_are_refused_and_not_stretched(up_to: int) -> None:
    """A row of one channel would fit into one of three, copied three times."""
    model = linear_classifier()
    profile = make_profile(model)
    with (
        open_classifier(model, profile, cuda_graphs_up_to=up_to) as classifier,
        pytest.raises(ValueError, match=r"expected images of shape \(3, 8, 8\) and dtype float32"),
    ):
        classifier.logits(random_images(profile, 2)[:, :1])


@every_way
@pytest.mark.parametrize("image", [2, 100])
def test_a_pair_of_an_image_that_is_not_there_is_refused(image: int, up_to: int | None) -> None:
    model = linear_classifier()
    profile = make_profile(model)
    with open_classifier(model, profile, cuda_graphs_up_to=up_to) as classifier:
        classifier.logits(random_images(profile, 8))  # what might show in their place
        with pytest.raises((*ORT_ERRORS, ValueError)):
            classifier.check(random_images(profile, 2), np.array([0, image]), np.array([-1, -1]))


@every_way
def test_an_overlay_that_is_not_there_is_refused_and_the_next_call_runs(up_to: int | None) -> None:
    model = linear_classifier()
    profile = make_profile(model)
    pairs = random_pairs(profile, 5)
    with open_classifier(model, profile, cuda_graphs_up_to=up_to) as classifier:
        before = check(classifier, pairs)
        with pytest.raises(ORT_ERRORS):
            classifier.check(pairs.images, np.zeros(5, np.int64), np.full(5, 99))
        np.testing.assert_array_equal(check(classifier, pairs)[0], before[0])


@every_way
def test_nothing_of_one_call_shows_in_another(up_to: int | None) -> None:
    model = linear_classifier()
    profile = make_profile(model)
    poison = Pairs(np.full_like(random_images(profile, 4), np.nan), np.arange(4), np.full(4, -1))
    clean = random_pairs(profile, 3)
    with open_classifier(model, profile, cuda_graphs_up_to=up_to) as classifier:
        first = check(classifier, clean)
        kept = [array.copy() for array in first]
        assert np.isnan(check(classifier, poison)[0]).all()
        second = check(classifier, clean)
    for array, again, held in zip(first, second, kept, strict=True):
        np.testing.assert_array_equal(array, held)  # the results are the caller's own
        np.testing.assert_array_equal(again, held)


@every_way
def test_an_image_of_nan_spoils_no_other_in_its_batch(up_to: int | None) -> None:
    model = linear_classifier()
    profile = make_profile(model)
    images = random_images(profile, 3)
    expected = bare_outputs(model, images[1:], None)
    images[0] = np.nan
    with open_classifier(model, profile, cuda_graphs_up_to=up_to) as classifier:
        outputs = classifier.logits(images)
    assert np.isnan(outputs[0]).all()
    np.testing.assert_allclose(outputs[1:], expected, rtol=1e-5, atol=1e-5)


@every_way
def test_another_thread_gets_the_same(up_to: int | None) -> None:
    """A model is warmed up on one thread and serves on another."""
    model = linear_classifier()
    profile = make_profile(model)
    pairs = random_pairs(profile, 9)
    results = []
    with open_classifier(model, profile, cuda_graphs_up_to=up_to) as classifier:
        here = check(classifier, pairs)
        thread = threading.Thread(target=lambda: results.append(check(classifier, pairs)))
        thread.start()
        thread.join()
    np.testing.assert_array_equal(results[0][0], here[0])
    np.testing.assert_array_equal(results[0][1], here[1])


def resident_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


@every_way
def test_memory_does_not_grow_over_200_calls(up_to: int | None) -> None:
    """What a call leaves behind, were it all of its images, would be 150 MiB in the end."""
    model = linear_classifier((3, 64, 64))
    profile = make_profile(model)
    pairs = random_pairs(profile, 16, n_images=16)
    with open_classifier(model, profile, cuda_graphs_up_to=up_to) as classifier:
        for _ in range(20):
            check(classifier, pairs)
        gc.collect()
        before = resident_mib()
        for _ in range(200):
            check(classifier, pairs)
        gc.collect()
        assert resident_mib() - before < 30


@every_way
def test_closing_lets_go_of_session_and_tensors(up_to: int | None) -> None:
    model = linear_classifier()
    profile = make_profile(model)

    def held() -> int:
        gc.collect()
        kinds = (ort.InferenceSession, ort.OrtValue, ort.IOBinding)
        return sum(issubclass(type(thing), kinds) for thing in gc.get_objects())

    before = held()
    classifier = open_classifier(model, profile, cuda_graphs_up_to=up_to)
    check(classifier, random_pairs(profile, 5))
    assert held() > before
    classifier.close()
    assert held() == before
    with pytest.raises(RuntimeError, match="the classifier is closed"):
        check(classifier, random_pairs(profile, 5))


def test_converting_leaves_the_model_as_it_was_and_its_edges_float32() -> None:
    model = conv_classifier()
    before = model.SerializeToString()
    half = in_half_precision(model)
    assert model.SerializeToString() == before
    ends = [*half.graph.input, *half.graph.output]
    assert {value.type.tensor_type.elem_type for value in ends} == {onnx.TensorProto.FLOAT}
    weights = {tensor.data_type for tensor in half.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in weights
    assert onnx.TensorProto.FLOAT not in weights


def test_float16_moves_answers_by_its_rounding_and_no_more() -> None:
    model = conv_classifier()
    profile = make_profile(model)
    pairs = random_pairs(profile, 40, n_images=8)
    with open_classifier(model, profile) as exact, open_classifier(model, profile, precision="fp16") as half:
        expected, got = check(exact, pairs)[0], check(half, pairs)[0]
    moved = np.abs(got - expected).max() / np.abs(expected).max()
    assert 1e-6 < moved < 5e-3


def test_converting_leaves_the_import_path_as_it_was() -> None:
    import sys

    before = list(sys.path)
    in_half_precision(linear_classifier())
    assert sys.path == before


def test_tf32_is_refused_where_it_is_the_cpu_that_runs() -> None:
    model = linear_classifier()
    with pytest.raises(SettingsError, match=r"'tf32' was asked for, but the model runs on the CPU"):
        open_classifier(model, make_profile(model), precision="tf32")


def test_what_the_converter_fails_on_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime.transformers import float16

    def fail(*_args: object, **_options: object) -> None:
        raise AssertionError("no such type")

    monkeypatch.setattr(float16, "convert_float_to_float16", fail)
    model = linear_classifier()
    with pytest.raises(
        UnfitModelError,
        match=r"cannot be converted to float16: no such type; serve it with precision 'exact' or 'tf32'",
    ):
        open_classifier(model, make_profile(model), precision="fp16")


def test_blends_and_entropies_stay_float32_in_float16() -> None:
    model = linear_classifier()
    profile = make_profile(model)
    wrapped = build_check_graph(
        in_half_precision(model),
        source=profile.input,
        sink=profile.output,
        overlays=overlays_of(profile),
        blend=profile.check.blend_rule,
    )
    ours = {t.name: t.data_type for t in wrapped.graph.initializer if t.name.startswith("guard_check/")}
    assert ours["guard_check/bank"] == onnx.TensorProto.FLOAT
    assert set(ours.values()) == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    outputs = {value.name: value.type.tensor_type.elem_type for value in wrapped.graph.output}
    assert outputs == dict.fromkeys((LOGITS, ENTROPY), onnx.TensorProto.FLOAT)
