import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.scan.art_export import plain_graph, write_bundle
from benchmarks.zoo.subjects import MODELS

MODEL = MODELS / "badnets" / "model.onnx"

Bundle = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    images = np.random.default_rng(3).random((5, 3, 32, 32), np.float32)
    labels = np.arange(5)
    out = tmp_path_factory.mktemp("bundle") / "a" / "badnets.npz"
    write_bundle(out, MODEL, (images[:3], labels[:3]), (images[3:], labels[3:]), {"subject": "badnets"})
    with np.load(out, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def test_a_bundle_tells_of_which_model_it_is(bundle: Bundle) -> None:
    about = json.loads(str(bundle["about"]))
    assert about["subject"] == "badnets"
    assert about["model_sha256"] == sha256(MODEL.read_bytes()).hexdigest()


def test_every_input_of_a_node_is_an_image_a_weight_or_an_earlier_answer(bundle: Bundle) -> None:
    graph = json.loads(str(bundle["about"]))["graph"]
    known = {graph["input"], *(name.removeprefix("weight:") for name in bundle)}
    for node in graph["nodes"]:
        assert set(node["inputs"]) <= known
        known.add(node["output"])
    assert graph["output"] in known


def test_the_last_layer_of_a_bundle_gives_the_reference_logits(bundle: Bundle) -> None:
    pooled = _pooled(bundle["clean_images"])
    logits = pooled @ bundle["weight:head.weight"].T + bundle["weight:head.bias"]
    np.testing.assert_allclose(logits, bundle["reference_logits"], atol=1e-4)


def test_clean_and_held_images_are_kept_apart(bundle: Bundle) -> None:
    assert bundle["clean_labels"].tolist() == [0, 1, 2]
    assert bundle["held_labels"].tolist() == [3, 4]
    assert len(bundle["clean_images"]) == 3
    assert len(bundle["held_images"]) == 2


def test_attributes_become_plain_values() -> None:
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 1, 4, 4])
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["n", 1, 4, 4])
    kernel = numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "kernel")
    node = helper.make_node("Conv", ["images", "kernel"], ["answer"], pads=[1, 1, 1, 1], auto_pad="NOTSET")
    graph, weights = plain_graph(
        helper.make_model(helper.make_graph([node], "", [images], [answer], [kernel]))
    )
    assert graph == {
        "input": "images",
        "output": "answer",
        "nodes": [
            {
                "op": "Conv",
                "inputs": ["images", "kernel"],
                "output": "answer",
                "attributes": {"pads": [1, 1, 1, 1], "auto_pad": "NOTSET"},
            }
        ],
    }
    np.testing.assert_array_equal(weights["kernel"], np.ones((1, 1, 3, 3)))


def _pooled(images: np.ndarray) -> np.ndarray:
    """Return what goes into the last layer, by ONNX Runtime."""

    model = onnx.load(Path(MODEL))
    name = model.graph.node[-1].input[0]
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run([name], {"images": images})[0]
    return found
