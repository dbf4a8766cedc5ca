"""The check graph gives what the numpy reference gives, for every model it can be put around."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from guard.arrays import DATATYPES
from guard.artifact import Profile
from guard.detection.superimpose import BLEND_RULES
from guard.errors import UnfitModelError
from guard.runtime import check_graph
from guard.runtime.check_graph import build_check_graph
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
from tests.tiny_models import conv_classifier, linear_classifier, linear_weights

ENTROPY_TOLERANCE = 1e-5
# Float32 sums of 192 products in another order; logits are of the order of 10.
OUTPUT_TOLERANCE = {"FP32": 1e-5, "UINT8": 1e-5, "FP16": 2e-2}
# Float16 keeps 11 bits: one unit in the last place is 2^-8 below 8 and 2^-7 below 16, and a sum
# taken in another order may end a unit or two beside.


def assert_equals_reference(model: onnx.ModelProto, profile: Profile, n_pairs: int = 11) -> None:
    pairs = random_pairs(profile, n_pairs)
    with open_classifier(model, profile) as classifier:
        outputs, entropy = check(classifier, pairs)
    expected = reference_outputs(model, profile, pairs)
    tolerance = OUTPUT_TOLERANCE[profile.input.datatype]
    np.testing.assert_allclose(outputs, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(entropy, reference_entropy(profile, outputs), atol=ENTROPY_TOLERANCE)
    if profile.input.datatype != "FP16":
        np.testing.assert_allclose(entropy, reference_entropy(profile, expected), atol=ENTROPY_TOLERANCE)
    assert outputs.dtype == entropy.dtype == np.float32
    assert np.ptp(entropy) > 0.05  # certain and uncertain rows alike: the comparison means something


def uncertain_conv_classifier(batch: int | None = None) -> onnx.ModelProto:
    """A convolutional net whose predictions are neither certain nor uniform."""
    model = conv_classifier(batch=batch)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(0.03), "weight"))
    return model


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("datatype", ["FP32", "FP16", "UINT8"])
@pytest.mark.parametrize("blend", list(BLEND_RULES))
def test_the_graph_equals_the_numpy_reference(
    blend: str, datatype: str, layout: str, kind: str, batch: int | None
) -> None:
    model = linear_classifier(
        (3, 6, 7), layout=layout, datatype=datatype, batch=batch, softmax=kind == "probabilities", gain=0.3
    )
    assert_equals_reference(model, make_profile(model, blend=blend, kind=kind))


@pytest.mark.parametrize("blend", ["add", "add_clip"])
def test_the_graph_equals_the_reference_around_a_convolutional_net(blend: str) -> None:
    model = uncertain_conv_classifier()
    assert_equals_reference(model, make_profile(model, blend=blend), n_pairs=37)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("blend", ["add_clip", "half_clip"])
def test_clipping_follows_a_range_given_per_channel(blend: str, layout: str) -> None:
    model = linear_classifier((3, 6, 7), layout=layout, gain=0.3)
    profile = make_profile(model, blend=blend)
    per_channel = {"low": (-2.1, -2.0, -1.8), "high": (2.2, 2.4, 2.6)}  # as after ImageNet's mean and std
    profile = profile.model_copy(update={"input": profile.input.model_copy(update=per_channel)})
    assert_equals_reference(model, profile)


@pytest.mark.parametrize("blend", list(BLEND_RULES))
def test_a_hand_made_blend_reaches_the_model(blend: str) -> None:
    """One pixel, weight 1: logits are (b, 0) for the blended value b, x = 0.5 and o = 0.75."""
    model = linear_classifier((1, 1, 1), classes=2)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([[1, 0]], np.float32), "weight"))
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros(2, np.float32), "bias"))
    profile = make_profile(model, blend=blend, rounds=(1,), classes=2, layout="NCHW")
    wrapped = build_check_graph(
        model,
        source=profile.input,
        sink=profile.output,
        overlays=np.full((1, 1, 1, 1), 0.75, np.float32),
        blend=BLEND_RULES[blend],
    )
    logits = onnx_run(wrapped, np.full((1, 1, 1, 1), 0.5, np.float32), np.array([0, -1], np.int64))
    b = {"add": 1.25, "add_clip": 1.0, "half_clip": 0.875, "convex": 0.625}[blend]
    assert logits.tolist() == [[b, 0.0], [0.5, 0.0]]


def onnx_run(wrapped: onnx.ModelProto, images: np.ndarray, overlay_index: np.ndarray) -> np.ndarray:
    """Run the graph with ONNX's own reference evaluator, in plain numpy: no runtime of ours."""
    from onnx.reference import ReferenceEvaluator

    feed = {
        check_graph.IMAGES: images,
        check_graph.IMAGE_INDEX: np.zeros(len(overlay_index), np.int64),
        check_graph.OVERLAY_INDEX: overlay_index,
    }
    return ReferenceEvaluator(wrapped).run([check_graph.LOGITS], feed)[0]


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("datatype", ["FP32", "FP16", "UINT8"])
@pytest.mark.parametrize("blend", list(BLEND_RULES))
def test_an_image_alone_gets_exactly_the_bare_models_answer(
    blend: str, datatype: str, batch: int | None
) -> None:
    model = linear_classifier(datatype=datatype, batch=batch)
    profile = make_profile(model, blend=blend)
    images = random_images(profile, 8)
    expected = bare_outputs(model, images, batch)
    with open_classifier(model, profile) as classifier:
        answer = classifier.logits(images).astype(DATATYPES[profile.output.datatype])  # as it is sent
    np.testing.assert_array_equal(answer, expected)


def test_an_image_out_of_range_is_served_unclipped() -> None:
    model = linear_classifier()
    profile = make_profile(model, blend="add_clip")
    images = random_images(profile, 4) * 5.0 - 2.0
    with open_classifier(model, profile) as classifier:
        np.testing.assert_array_equal(classifier.logits(images), bare_outputs(model, images, None))


def test_a_convolutional_net_answers_as_it_does_bare() -> None:
    model = conv_classifier()
    profile = make_profile(model)
    images = random_images(profile, 8)
    with open_classifier(model, profile) as classifier:
        np.testing.assert_allclose(classifier.logits(images), bare_outputs(model, images, None), atol=1e-6)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21])
def test_the_graph_goes_around_models_of_any_opset_from_9_on(opset: int, softmax: bool) -> None:
    model = linear_classifier((3, 6, 7), opset=opset, softmax=softmax, gain=0.3)
    kind = "probabilities" if softmax else "logits"
    for blend in ("add", "add_clip"):
        assert_equals_reference(model, make_profile(model, blend=blend, kind=kind))
    model = linear_classifier((3, 6, 7), opset=opset, softmax=softmax, gain=0.3, datatype="UINT8")
    assert_equals_reference(model, make_profile(model, blend="half_clip", kind=kind))


def test_the_wrapped_graph_is_valid_onnx() -> None:
    model = linear_classifier()
    profile = make_profile(model, blend="add_clip")
    onnx.checker.check_model(wrap(model, profile), full_check=True)


def test_an_older_opset_is_refused() -> None:
    model = linear_classifier(opset=8)
    with pytest.raises(UnfitModelError, match=r"uses ONNX opset 8, expected 9 or newer; export it again"):
        wrap(model, make_profile(model))


def test_a_model_of_ir_version_3_with_weights_among_its_inputs_is_wrapped() -> None:
    model = linear_classifier((3, 6, 7), opset=9, gain=0.3)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(value)
    onnx.checker.check_model(model)
    profile = make_profile(model)
    assert_equals_reference(model, profile)
    onnx.checker.check_model(wrap(model, profile))  # our constants are no inputs, which version 4 allows


def with_bias(bias: list[float]) -> onnx.ModelProto:
    model = linear_classifier((3, 6, 7), classes=len(bias), gain=0.3)
    _, old = linear_weights((3, 6, 7), len(bias), gain=0.3)
    value = (old + np.array(bias)).astype(np.float32)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(value, "bias"))
    return model


def test_a_class_ruled_out_by_minus_infinity_adds_nothing_to_the_entropy() -> None:
    model = with_bias([0.0, -np.inf, 0.0, 0.0, -np.inf])
    profile = make_profile(model, classes=5)
    assert_equals_reference(model, profile)
    pairs = random_pairs(profile, 20)
    with open_classifier(model, profile) as classifier:
        outputs, entropy = check(classifier, pairs)
    assert np.isneginf(outputs[:, [1, 4]]).all()
    assert (entropy <= np.log2(3) + 1e-6).all()


def test_a_float16_model_may_keep_more_digits_inside_the_graph_than_it_would_alone() -> None:
    """ORT's CPU provider runs float16 in float32 and drops the rounding between two casts.

    So before it is sent, an answer may differ from the bare model's by half a unit of float16,
    and the entropy is that of the finer answer.
    """
    model = linear_classifier(datatype="FP16")
    profile = make_profile(model)
    images = random_images(profile, 8)
    with open_classifier(model, profile) as classifier:
        np.testing.assert_allclose(
            classifier.logits(images), bare_outputs(model, images, None), rtol=2**-11, atol=2**-24
        )


@pytest.mark.parametrize(
    ("bias", "bits"),
    [
        ([1e4, 0.0, 0.0, 0.0], 0.0),
        ([-1e4, -1e4, -1e4, 1e4], 0.0),
        ([3e38, -3e38, 0.0, 0.0], 0.0),
        ([1e6, 1e6, -1e6, -1e6], 1.0),
    ],
)
def test_entropy_is_stable_for_very_large_logits(bias: list[float], bits: float) -> None:
    model = linear_classifier((3, 6, 7), classes=4)
    constants = {"weight": np.zeros((126, 4), np.float32), "bias": np.array(bias, np.float32)}
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(constants[tensor.name], tensor.name))
    profile = make_profile(model, classes=4)
    with open_classifier(model, profile) as classifier:
        _, entropy = check(classifier, random_pairs(profile, 5))
    np.testing.assert_allclose(entropy, bits, atol=1e-6)


def test_a_logit_of_nan_gives_an_entropy_of_nan_in_its_row_only() -> None:
    """A NaN must reach the detector, which then fails the check, and not be clamped to a number."""
    images = np.array([0.5, np.nan, 0.25], np.float32).reshape(3, 1, 1, 1)
    index, nothing = np.arange(3), np.full(3, -1)
    for softmax in (False, True):
        model = linear_classifier((1, 1, 1), classes=3, softmax=softmax)
        kind = "probabilities" if softmax else "logits"
        profile = make_profile(model, classes=3, layout="NCHW", kind=kind)
        with open_classifier(model, profile) as classifier:
            _, entropy = classifier.check(images, index, nothing)
        assert np.isnan(entropy).tolist() == [False, True, False]


def test_the_model_passed_in_is_left_as_it_was() -> None:
    model = linear_classifier()
    before = model.SerializeToString()
    wrap(model, make_profile(model, blend="add_clip"))
    assert model.SerializeToString() == before


def wrap(model: onnx.ModelProto, profile: Profile) -> onnx.ModelProto:
    return build_check_graph(
        model,
        source=profile.input,
        sink=profile.output,
        overlays=overlays_of(profile),
        blend=profile.check.blend_rule,
    )


def test_a_model_wrapped_twice_is_refused() -> None:
    model = linear_classifier()
    profile = make_profile(model)
    wrapped = wrap(model, profile)
    expected = r"tensor named 'guard_check/.*names under 'guard_check/' are the guard's own; .*the original"
    with pytest.raises(UnfitModelError, match=expected):
        wrap(wrapped, profile)


def name_an_input(model: onnx.ModelProto, name: str) -> None:
    model.graph.input[0].name = name
    model.graph.node[0].input[0] = name


def name_a_tensor(model: onnx.ModelProto, name: str) -> None:
    model.graph.node[0].output[0] = name
    model.graph.node[1].input[0] = name


def name_the_output(model: onnx.ModelProto, name: str) -> None:
    model.graph.node[-1].output[0] = name
    model.graph.output[0].name = name


def name_an_unused_weight(model: onnx.ModelProto, name: str) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), name))


@pytest.mark.parametrize(
    "rename", [name_an_input, name_a_tensor, name_the_output, name_an_unused_weight], ids=lambda f: f.__name__
)
def test_a_model_with_a_tensor_named_like_ours_is_refused(rename: object) -> None:
    model = linear_classifier()
    rename(model, check_graph.LOGITS)  # type: ignore[operator]
    with pytest.raises(UnfitModelError, match=r"has a tensor named 'guard_check/logits'"):
        wrap(model, make_profile(model))


def test_names_that_only_resemble_ours_are_fine() -> None:
    model = linear_classifier((3, 6, 7), gain=0.3)
    name_an_input(model, "images/guard_check/")
    name_the_output(model, "guard_checked")
    assert_equals_reference(model, make_profile(model))


def test_names_within_a_local_function_are_its_own() -> None:
    """So one like ours is no clash there."""
    model = linear_classifier((3, 6, 7), gain=0.3)
    node = helper.make_node("Identity", ["x"], [check_graph.LOGITS])
    opset = [helper.make_opsetid("", 17)]
    function = helper.make_function("mine", "Same", ["x"], [check_graph.LOGITS], [node], opset)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node[-1].output[0] = "raw"
    model.graph.node.append(helper.make_node("Same", ["raw"], ["logits"], domain="mine"))
    assert_equals_reference(model, make_profile(model))


@pytest.mark.parametrize("net", ["linear", "convolutional"])
@pytest.mark.parametrize("batch", [None, 4])
def test_results_do_not_depend_on_how_pairs_are_split_into_calls(net: str, batch: int | None) -> None:
    if net == "linear":
        model = linear_classifier((3, 6, 7), batch=batch, gain=0.3)
    else:
        model = uncertain_conv_classifier(batch)
    profile = make_profile(model)
    pairs = random_pairs(profile, 23)
    with open_classifier(model, profile) as classifier:
        outputs, entropy = check(classifier, pairs)
        scale = max(1.0, np.abs(outputs).max())
        assert np.ptp(entropy) > 0.05
        for sizes in ([1] * 23, [4, 4, 8, 7], [22, 1], [2, 21]):
            ends = np.cumsum(sizes)
            parts = [
                check(classifier, pairs.part(slice(end - size, end)))
                for size, end in zip(sizes, ends, strict=True)
            ]
            np.testing.assert_allclose(np.concatenate([part[1] for part in parts]), entropy, atol=1e-6)
            np.testing.assert_allclose(
                np.concatenate([part[0] for part in parts]), outputs, atol=1e-6 * scale
            )


def test_results_follow_their_pairs_when_these_are_reordered() -> None:
    model = linear_classifier()
    profile = make_profile(model)
    pairs = random_pairs(profile, 23)
    order = np.random.default_rng(1).permutation(23)
    with open_classifier(model, profile) as classifier:
        outputs, entropy = check(classifier, pairs)
        shuffled_outputs, shuffled_entropy = check(classifier, pairs.part(order))
    np.testing.assert_allclose(shuffled_outputs, outputs[order], atol=1e-5)
    np.testing.assert_allclose(shuffled_entropy, entropy[order], atol=1e-6)


def test_only_three_inputs_and_two_outputs_cross_to_the_device() -> None:
    model = linear_classifier(datatype="UINT8")
    wrapped = wrap(model, make_profile(model))
    inputs = {value.name: value.type.tensor_type.elem_type for value in wrapped.graph.input}
    assert inputs == {
        check_graph.IMAGES: TensorProto.UINT8,
        check_graph.IMAGE_INDEX: TensorProto.INT64,
        check_graph.OVERLAY_INDEX: TensorProto.INT64,
    }
    assert [value.name for value in wrapped.graph.output] == [check_graph.LOGITS, check_graph.ENTROPY]
