"""The check graph returns the activations of layers, one row for each pair, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from guard.detection.capabilities.layer_distances import Layer
from guard.detection.superimpose import blend_pairs
from guard.errors import UnfitModelError
from guard.runtime import check_graph
from guard.runtime.check_graph import build_check_graph
from guard.runtime.half import in_half_precision
from tests.artifacts import make_profile
from tests.guard.check_reference import open_classifier, overlays_of, random_pairs
from tests.tiny_models import conv_classifier

LAYERS = (Layer("positive", 16, True), Layer("flat", 16, False))


def run(
    model: onnx.ModelProto, layers: tuple[Layer, ...], blend: str = "add"
) -> tuple[list[np.ndarray], ...]:
    """Run pairs through the check graph of a model that is conv_classifier's, in float32 or float16."""
    profile = make_profile(conv_classifier(), blend=blend)
    pairs = random_pairs(profile, 13)
    graph = build_check_graph(
        model,
        source=profile.input,
        sink=profile.output,
        overlays=overlays_of(profile),
        blend=profile.check.blend_rule,
        layers=layers,
    )
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    fed = {
        check_graph.IMAGES: pairs.images,
        check_graph.IMAGE_INDEX: pairs.image_index,
        check_graph.OVERLAY_INDEX: pairs.overlay_index,
    }
    blended = blend_pairs(
        pairs.images,
        overlays_of(profile),
        pairs.image_index,
        pairs.overlay_index,
        profile.check.blend_rule,
        profile.input.value_range,
    )
    return session.run(None, fed), [blended]


def activations(images: np.ndarray) -> np.ndarray:
    """What conv_classifier has after its Relu, asked of the bare model."""
    model = conv_classifier()
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info("positive"))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    positive: np.ndarray = session.run(["positive"], {"images": images})[0]
    return positive


@pytest.mark.parametrize("blend", ["add", "convex"])
def test_features_are_the_layers_of_each_pair_averaged_over_space(blend: str) -> None:
    (_, _, features), (blended,) = run(conv_classifier(), LAYERS, blend)
    expected = activations(blended).mean(axis=(2, 3))
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, np.concatenate([expected, expected], axis=1), rtol=1e-5, atol=1e-6)
    assert expected.std(axis=0).min() > 0  # rows differ: the comparison means something


def test_output_and_entropy_are_the_same_with_layers_and_without() -> None:
    (logits, entropy, _), _ = run(conv_classifier(), LAYERS)
    (bare_logits, bare_entropy), _ = run(conv_classifier(), ())
    np.testing.assert_allclose(logits, bare_logits, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(entropy, bare_entropy, rtol=1e-6, atol=1e-6)


def test_layers_of_a_model_in_half_precision_come_as_float32() -> None:
    (_, _, features), (blended,) = run(in_half_precision(conv_classifier()), LAYERS)
    expected = activations(blended).mean(axis=(2, 3))
    assert features.dtype == np.float32
    np.testing.assert_allclose(features[:, :16], expected, atol=0.01 * np.abs(expected).max())


def test_a_layer_that_the_model_lacks_is_refused_by_name() -> None:
    with pytest.raises(UnfitModelError, match="no tensor 'nowhere'"):
        run(conv_classifier(), (Layer("nowhere", 16, True),))


@pytest.mark.parametrize("graphs_up_to", [None, 8])
@pytest.mark.parametrize("batch", [None, 4])
def test_the_classifier_returns_features_with_the_same_output_and_entropy(
    batch: int | None, graphs_up_to: int | None
) -> None:
    model = conv_classifier(batch=batch)
    profile = make_profile(model)
    pairs = random_pairs(profile, 13)
    asked = (pairs.images, pairs.image_index, pairs.overlay_index)
    with open_classifier(model, profile, cuda_graphs_up_to=graphs_up_to, layers=LAYERS) as classifier:
        logits, entropy, features = classifier.check_layers(*asked)
        plain_logits, plain_entropy = classifier.check(*asked)
        nothing = classifier.check_layers(pairs.images[:0], *(np.empty(0, np.int64),) * 2)
    blended = blend_pairs(
        pairs.images,
        overlays_of(profile),
        pairs.image_index,
        pairs.overlay_index,
        profile.check.blend_rule,
        profile.input.value_range,
    )
    np.testing.assert_allclose(features[:, 16:], activations(blended).mean(axis=(2, 3)), rtol=1e-5, atol=1e-6)
    assert (logits == plain_logits).all()
    assert (entropy == plain_entropy).all()
    assert [part.shape for part in nothing] == [(0, 10), (0,), (0, 32)]


def test_a_classifier_that_was_opened_without_layers_says_so() -> None:
    profile = make_profile(conv_classifier())
    pairs = random_pairs(profile, 2)
    with (
        open_classifier(conv_classifier(), profile) as classifier,
        pytest.raises(RuntimeError, match="without"),
    ):
        classifier.check_layers(pairs.images, pairs.image_index, pairs.overlay_index)


@pytest.mark.parametrize("wrong", [Layer("positive", 15, True), Layer("flat", 1, False)])
@pytest.mark.parametrize("batch", [None, 4])
def test_a_layer_of_another_width_than_the_profile_says_is_found_before_it_serves(
    batch: int | None, wrong: Layer
) -> None:
    model = conv_classifier(batch=batch)
    profile = make_profile(model)
    with (
        open_classifier(model, profile, layers=(wrong,)) as classifier,
        pytest.raises(UnfitModelError, match=rf"layers of shape .* 16\).* expected .* {wrong.width}\)"),
    ):
        classifier.warm_up(8)
