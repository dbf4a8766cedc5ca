"""Write a subject of the zoo and clean images to plain arrays, for an environment without torch and ONNX.

::

    python -m benchmarks.scan.art_export --data FOLDER --subject badnets [--out build/scan_art/badnets.npz]

The images are the first of a fixed shuffle of the holdout: 1,000 to search on, the 1,000 after them to judge
what was found. The ONNX graph goes as JSON, its weights as they are, with the logits that ONNX Runtime gives.
"""

from __future__ import annotations

import argparse
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from jaxtyping import Float32, Int64
from onnx import helper, numpy_helper

from benchmarks.zoo.source import as_floats, read_dataset
from benchmarks.zoo.subjects import load_subject

__all__ = ["plain_graph", "write_bundle"]

SHUFFLE_SEED = 0
CLEAN = 1000
HELD = 1000
REFERENCES = 64

Images = Float32[np.ndarray, "n c h w"]
Labels = Int64[np.ndarray, " n"]


def main() -> None:
    options = read_options()
    subject = load_subject(options.subject)
    name = subject.record["data"]["name"]
    data = read_dataset(options.data, name)
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(data.holdout_images))[: CLEAN + HELD]
    images, labels = as_floats(data.holdout_images[order]), data.holdout_labels[order]
    out = options.out or Path("build/scan_art") / f"{options.subject}.npz"
    drawn = f"holdout rows default_rng({SHUFFLE_SEED}).permutation(n): [:{CLEAN}] clean, the next {HELD} held"
    facts = {"subject": subject.name, "attack": subject.record["attack"], "data": name, "images": drawn}
    write_bundle(
        out, subject.model, (images[:CLEAN], labels[:CLEAN]), (images[CLEAN:], labels[CLEAN:]), facts
    )
    print(out)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write a subject and images for benchmarks.scan.art_peer.")
    parser.add_argument("--data", type=Path, required=True, help="folder with load.py and the npz files")
    parser.add_argument("--subject", required=True, help="its name in the zoo")
    parser.add_argument("--out", type=Path, help="default: build/scan_art/SUBJECT.npz")
    return parser.parse_args()


def write_bundle(
    out: Path, model: Path, clean: tuple[Images, Labels], held: tuple[Images, Labels], facts: dict[str, Any]
) -> None:
    """Write all that the other environment needs to one ``.npz`` without pickles."""
    serialised = model.read_bytes()
    graph, weights = plain_graph(onnx.load_model_from_string(serialised))
    session = onnxruntime.InferenceSession(serialised, providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: clean[0][:REFERENCES]})[0]
    about = {**facts, "model_sha256": sha256(serialised).hexdigest(), "graph": graph}
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        out,
        allow_pickle=False,
        about=np.array(json.dumps(about)),
        clean_images=clean[0],
        clean_labels=clean[1],
        held_images=held[0],
        held_labels=held[1],
        reference_logits=logits,
        **{f"weight:{name}": weight for name, weight in weights.items()},
    )


def plain_graph(model: onnx.ModelProto) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return a graph's nodes as plain values, and its weights by name."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in weights]
    graph = {
        "input": inputs[0],
        "output": model.graph.output[0].name,
        "nodes": [_plain_node(node) for node in model.graph.node],
    }
    return graph, weights


def _plain_node(node: onnx.NodeProto) -> dict[str, Any]:
    attributes = {item.name: _plain(helper.get_attribute_value(item)) for item in node.attribute}
    return {"op": node.op_type, "inputs": [*node.input], "output": node.output[0], "attributes": attributes}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, int | float | str) else [*value]


if __name__ == "__main__":
    main()
