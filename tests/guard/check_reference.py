"""The numpy reference of a check: blend, run the bare model, take the entropy in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort

from guard.artifact import Profile
from guard.detection.capabilities.layer_distances import Layer
from guard.detection.entropy import entropy_of_logits, entropy_of_probabilities
from guard.detection.superimpose import blend_pairs
from guard.runtime.onnx_classifier import Device, OnnxClassifier, Precision
from tests.artifacts import random_images


@dataclass(frozen=True)
class Pairs:
    """Images and a ragged list of pairs over them, as the scheduler makes it."""

    images: np.ndarray
    image_index: np.ndarray
    overlay_index: np.ndarray

    def part(self, chosen: slice | np.ndarray) -> Pairs:
        """Return some of the pairs over the same images."""
        return Pairs(self.images, self.image_index[chosen], self.overlay_index[chosen])


def overlays_of(profile: Profile) -> np.ndarray:
    return random_images(profile, profile.check.n_overlays, seed=99)


def random_pairs(profile: Profile, count: int, n_images: int = 3, seed: int = 0) -> Pairs:
    """Return pairs in random order, some of them repeated, at least one of them an image alone."""
    generator = np.random.default_rng(seed)
    image_index = generator.integers(0, n_images, count)
    overlay_index = generator.integers(-1, profile.check.n_overlays, count)
    overlay_index[generator.integers(count)] = -1
    return Pairs(random_images(profile, n_images, seed), image_index, overlay_index)


def open_classifier(
    model: onnx.ModelProto,
    profile: Profile,
    device: Device = "cpu",
    *,
    precision: Precision = "exact",
    cuda_graphs_up_to: int | None = None,
    layers: Sequence[Layer] = (),
) -> OnnxClassifier:
    return OnnxClassifier.open(
        model,
        source=profile.input,
        sink=profile.output,
        fixed_batch=profile.fixed_batch,
        overlays=overlays_of(profile),
        blend=profile.check.blend_rule,
        device=device,
        threads=1,
        precision=precision,
        cuda_graphs_up_to=cuda_graphs_up_to,
        layers=layers,
    )


def check(classifier: OnnxClassifier, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    return classifier.check(pairs.images, pairs.image_index, pairs.overlay_index)


def bare_outputs(model: onnx.ModelProto, images: np.ndarray, fixed_batch: int | None) -> np.ndarray:
    """Run the model as it came, without its check, on ONNX Runtime's CPU provider."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name, batch = session.get_inputs()[0].name, fixed_batch or len(images)
    padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % batch, axis=0)])
    parts = [session.run(None, {name: padded[i : i + batch]})[0] for i in range(0, len(padded), batch)]
    return np.concatenate(parts)[: len(images)].astype(np.float32)


def reference_outputs(model: onnx.ModelProto, profile: Profile, pairs: Pairs) -> np.ndarray:
    blended = blend_pairs(
        pairs.images,
        overlays_of(profile),
        pairs.image_index,
        pairs.overlay_index,
        profile.check.blend_rule,
        profile.input.value_range,
    )
    return bare_outputs(model, blended, profile.fixed_batch)


def reference_entropy(profile: Profile, outputs: np.ndarray) -> np.ndarray:
    """Return the entropy of a model's outputs, in float64."""
    wide = outputs.astype(np.float64)
    return entropy_of_logits(wide) if profile.output.kind == "logits" else entropy_of_probabilities(wide)
