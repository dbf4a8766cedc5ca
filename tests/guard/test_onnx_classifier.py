"""The classifier on ONNX Runtime: any number of pairs in, unfit models refused before they serve."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from guard.detection.superimpose import BLEND_RULES
from guard.errors import SettingsError, UnfitModelError
from guard.runtime.onnx_classifier import ORT_ERRORS, OnnxClassifier
from tests.artifacts import make_profile, random_images
from tests.guard.check_reference import (
    bare_outputs,
    check,
    open_classifier,
    overlays_of,
    random_pairs,
    reference_entropy,
    reference_outputs,
)
from tests.tiny_models import (
    batch_coupled_classifier,
    conv_classifier,
    linear_classifier,
    not_a_number_classifier,
    untold_classes,
)


def append(model: onnx.ModelProto, op: str, *inputs: str, **attributes: object) -> onnx.ModelProto:
    """Put one more node between a linear classifier and its output."""
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node(op, ["before", *inputs], ["logits"], **attributes))
    return model


def add_constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> onnx.ModelProto:
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


def reshaping_to(batch: int, declared: int | None = None) -> onnx.ModelProto:
    """A classifier that reshapes to a constant batch size inside, as careless exports do."""
    model = linear_classifier(batch=declared)
    return append(add_constant(model, "shape", np.array([batch, 10])), "Reshape", "shape")


def averaging_over_the_batch(declared: int | None = None) -> onnx.ModelProto:
    """A classifier with one row of answers whatever the batch."""
    return append(linear_classifier(batch=declared), "ReduceMean", axes=[0], keepdims=1)


def slightly_coupled(share: float, datatype: str = "FP32") -> onnx.ModelProto:
    """A classifier that subtracts a share of the mean over the batch."""
    model = linear_classifier(datatype=datatype)
    dtype = np.float16 if datatype == "FP16" else np.float32
    model.graph.node[-1].output[0] = "alone"
    add_constant(model, "share", np.array(share, dtype))
    model.graph.node.append(helper.make_node("ReduceMean", ["alone"], ["mean"], axes=[0], keepdims=1))
    model.graph.node.append(helper.make_node("Mul", ["mean", "share"], ["part"]))
    model.graph.node.append(helper.make_node("Sub", ["alone", "part"], ["logits"]))
    return model


def warm_up(model: onnx.ModelProto, largest: int = 64, classes: int = 10) -> None:
    with open_classifier(model, make_profile(model, classes=classes)) as classifier:
        classifier.warm_up(largest)


def refusal_at_warm_up(model: onnx.ModelProto, **options: int) -> str:
    with pytest.raises(UnfitModelError) as refused:
        warm_up(model, **options)
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("batch", [None, 1, 4])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_any_number_of_images_is_answered_whatever_the_models_batch(batch: int | None, count: int) -> None:
    model = linear_classifier(batch=batch)
    profile = make_profile(model)
    images = random_images(profile, count)
    expected = bare_outputs(model, images, batch)
    with open_classifier(model, profile) as classifier:
        np.testing.assert_allclose(classifier.logits(images), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch", [None, 4])
def test_no_images_get_no_answers(batch: int | None) -> None:
    model = linear_classifier(batch=batch)
    profile = make_profile(model)
    with open_classifier(model, profile) as classifier:
        assert classifier.logits(random_images(profile, 0)).shape == (0, 10)


def test_images_that_are_a_view_are_read_right() -> None:
    model = linear_classifier()
    profile = make_profile(model)
    images = random_images(profile, 6)
    with open_classifier(model, profile) as classifier:
        np.testing.assert_array_equal(
            classifier.logits(images[::-2]), classifier.logits(np.ascontiguousarray(images[::-2]))
        )


def test_images_of_another_dtype_raise_an_error_that_the_scheduler_knows() -> None:
    model = linear_classifier()
    profile = make_profile(model)
    with (
        open_classifier(model, profile) as classifier,
        pytest.raises(ORT_ERRORS, match="Unexpected input data"),
    ):
        classifier.logits(random_images(profile, 2).astype(np.float64))


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "UINT8"])
@pytest.mark.parametrize("batch", [None, 1, 4])
@pytest.mark.parametrize("largest", [1, 2, 64])
def test_a_fit_model_passes_warm_up(datatype: str, batch: int | None, largest: int) -> None:
    model = linear_classifier(datatype=datatype, batch=batch)
    profile = make_profile(model)
    with open_classifier(model, profile) as classifier:
        classifier.warm_up(largest)
        assert classifier.logits(random_images(profile, 2)).shape == (2, 10)


def test_fit_models_of_other_kinds_pass_warm_up_too() -> None:
    warm_up(conv_classifier())
    warm_up(untold_classes())
    warm_up(reshaping_to(4, declared=4))
    warm_up(append(linear_classifier(), "Identity"))


def test_a_model_that_answers_nan_is_not_refused_for_it() -> None:
    """The check fails on it row by row, and says so; it is no reason to think that rows are coupled."""
    model = not_a_number_classifier()
    profile = make_profile(model)
    with open_classifier(model, profile) as classifier:
        classifier.warm_up(8)
        outputs, entropy = check(classifier, random_pairs(profile, 5))
    assert np.isnan(outputs).all()
    assert np.isnan(entropy).all()


@pytest.mark.parametrize("model", [batch_coupled_classifier(), slightly_coupled(0.01)])
def test_a_model_whose_rows_affect_each_other_is_refused(model: onnx.ModelProto) -> None:
    assert "answers an image differently in another batch (difference up to" in refusal_at_warm_up(model)
    assert "export it in evaluation mode with a dynamic batch axis" in refusal_at_warm_up(model)


def test_rows_that_affect_each_other_are_found_in_a_fixed_batch_too() -> None:
    model = batch_coupled_classifier()
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    assert make_profile(model).fixed_batch == 4
    assert "answers an image differently in another batch" in refusal_at_warm_up(model)


def test_differences_as_small_as_rounding_are_no_coupling() -> None:
    """Float32 sums differ by 1e-6 of the largest value, float16 ones by 1e-3 of it, from batch to batch."""
    warm_up(slightly_coupled(1e-5))
    warm_up(slightly_coupled(2e-3, "FP16"))
    assert "another batch" in refusal_at_warm_up(slightly_coupled(0.1, "FP16"))


def test_a_model_that_reshapes_to_a_constant_batch_is_refused() -> None:
    message = refusal_at_warm_up(reshaping_to(1))
    assert message.startswith("the model fails on a batch of 5 images: [ONNXRuntimeError]")
    assert message.endswith(
        "expected an output of shape (5, 10): export it with a dynamic batch axis, "
        "or with one fixed size throughout"
    )


@pytest.mark.parametrize("declared", [None, 4])
def test_a_model_with_fewer_answers_than_images_is_refused(declared: int | None) -> None:
    message = refusal_at_warm_up(averaging_over_the_batch(declared))
    got = {None: "(1, 10)", 4: "(2, 10)"}[declared]
    assert message == (
        f"the model gives an output of shape {got} for 5 images, expected (5, 10) as the profile says; "
        f"calibrate this model again"
    )


def test_a_model_with_another_number_of_classes_than_declared_is_refused() -> None:
    message = refusal_at_warm_up(untold_classes(), classes=7)
    assert message.startswith("the model fails on a batch of 1 images: ")
    assert "expected an output of shape (1, 7)" in message


def test_a_model_that_declares_another_number_of_classes_is_refused() -> None:
    message = refusal_at_warm_up(linear_classifier(), classes=7)
    assert message.startswith("the model fails on a batch of 1 images: ")
    assert "expected an output of shape (1, 7)" in message


def misspelt(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Flattten"


def from_the_future(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 999


def of_clashing_shapes(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((7, 10), np.float32), "weight"))


def with_a_missing_tensor(model: onnx.ModelProto) -> None:
    model.graph.node[-1].input[1] = "absent"


@pytest.mark.parametrize(
    "break_it",
    [misspelt, from_the_future, of_clashing_shapes, with_a_missing_tensor],
    ids=lambda f: f.__name__,
)
def test_a_broken_graph_is_refused_with_the_first_line_of_the_reason(break_it: object) -> None:
    model = linear_classifier()
    profile = make_profile(model)
    break_it(model)  # type: ignore[operator]
    with pytest.raises(UnfitModelError) as refused:
        open_classifier(model, profile)
    message = str(refused.value)
    assert message.startswith(f"ONNX Runtime {ort.__version__} cannot load the model: [ONNXRuntimeError]")
    assert message.endswith("; export it again, for a supported opset, and calibrate it")
    assert "\n" not in message


def test_of_a_long_reason_only_the_first_line_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA, ONNX Runtime appends a backtrace of the C++ side."""

    def fail(*_args: object, **_options: object) -> None:
        raise ORT_ERRORS[1]("out of memory\n#0 0x7f… in onnxruntime::Create\n#1 0x7f… in main")

    monkeypatch.setattr(ort, "InferenceSession", fail)
    model = linear_classifier()
    with pytest.raises(
        UnfitModelError, match=r"cannot load the model: out of memory; export it again"
    ) as error:
        open_classifier(model, make_profile(model))
    assert "#0" not in str(error.value)


def test_a_closed_classifier_refuses_to_run() -> None:
    model = linear_classifier()
    profile = make_profile(model)
    classifier = open_classifier(model, profile)
    images = random_images(profile, 2)
    before = classifier.logits(images)
    classifier.close()
    classifier.close()  # twice does no harm
    assert before.shape == (2, 10)
    with pytest.raises(RuntimeError, match="the classifier is closed"):
        classifier.logits(images)


def test_leaving_a_with_block_closes_the_classifier() -> None:
    model = linear_classifier()
    profile = make_profile(model)
    with open_classifier(model, profile) as classifier:
        pass
    with pytest.raises(RuntimeError, match="the classifier is closed"):
        classifier.logits(random_images(profile, 1))


no_cuda_here = pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="ONNX Runtime has CUDA here"
)


@no_cuda_here
def test_cuda_asked_for_where_there_is_none_says_what_to_install() -> None:
    model = linear_classifier()
    with pytest.raises(SettingsError) as refused:
        open_classifier(model, make_profile(model), device="cuda")
    assert str(refused.value) == (
        f"device 'cuda' was asked for, but ONNX Runtime offers only "
        f"{', '.join(ort.get_available_providers())}; install inference-guard[gpu] in place of [cpu], "
        f"or set device to 'cpu'"
    )


@no_cuda_here
def test_cuda_that_is_offered_but_does_not_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with onnxruntime-gpu on a machine without a driver: the session falls back to the CPU."""
    monkeypatch.setattr(
        ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    model = linear_classifier()
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(
            SettingsError, match=r"'cuda' was asked for, but CUDA could not be started; see the log"
        ),
    ):
        open_classifier(model, make_profile(model), device="cuda")


@no_cuda_here
def test_auto_takes_the_cpu_where_there_is_no_cuda() -> None:
    model = linear_classifier()
    with open_classifier(model, make_profile(model), device="auto") as classifier:
        assert classifier.device == "cpu"


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_the_number_of_threads_does_not_change_the_answers(threads: int | None) -> None:
    model = conv_classifier()
    profile = make_profile(model)
    images = random_images(profile, 16)
    with OnnxClassifier.open(
        model,
        source=profile.input,
        sink=profile.output,
        fixed_batch=None,
        overlays=overlays_of(profile),
        blend=BLEND_RULES["add"],
        threads=threads,
    ) as classifier:
        np.testing.assert_allclose(
            classifier.logits(images), bare_outputs(model, images, None), rtol=1e-5, atol=1e-4
        )


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("datatype", ["FP32", "FP16", "UINT8"])
@pytest.mark.parametrize("blend", list(BLEND_RULES))
def test_on_cuda_the_check_equals_the_numpy_reference(
    blend: str, datatype: str, layout: str, kind: str, batch: int | None
) -> None:
    """Within 2e-2: CUDA multiplies float32 in TF32, which keeps 11 bits, on logits of the order of 4."""
    model = linear_classifier(
        (3, 6, 7), layout=layout, datatype=datatype, batch=batch, softmax=kind == "probabilities", gain=0.3
    )
    profile = make_profile(model, blend=blend, kind=kind)
    pairs = random_pairs(profile, 11)
    with open_classifier(model, profile, device="cuda") as classifier:
        assert classifier.device == "cuda"
        classifier.warm_up(64)
        outputs, entropy = check(classifier, pairs)
    np.testing.assert_allclose(outputs, reference_outputs(model, profile, pairs), rtol=2e-2, atol=2e-2)
    np.testing.assert_allclose(entropy, reference_entropy(profile, outputs), atol=2e-3)
