r"""The fused graph: one ONNX model with images in, the model's answers and the guard's verdicts out.

Theory of operation. The sidecar decides, round by round, which blends it still needs. A model server
runs one fixed graph for each request, so this one computes all N blends of every image: N + 1 passes
an image, whatever it is, and in return scores that are always exact.

::

    images (n, …)
        Loop over parts of [the image itself, overlay 0, …, overlay N - 1], g of them at a time:
            the check graph on n · g pairs    as the sidecar runs it (guard.runtime.check_graph)
            sum (n) += entropies of the blends, float64
            logits (n, k) kept from the part that holds the image itself
        mean = sum / N,  checked = every value in range and mean finite,  suspicious = mean < τ
    → the model's output (n, k), guard_score (n, 1), guard_p_value (n, 1), guard_verdict (n, 1)

The loop bounds memory: a pass has n · g rows, not n · (N + 1). Overlays and weights lie within its
body, in the file once. The list of N + 1 is cut into parts of one length; the last is filled up with
the image itself, whose entropies have weight 0.

NaN never compares true, and every comparison here is so put that what is not true is not accepted:
a value is in range if it is above one bound and below the other, an entropy is finite if it is below
a bound, and only what is checked and not suspicious has its answer let through.

As in the check graph, only operators that have meant the same since opset 9 are used.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from guard.arrays import Overlays
from guard.artifact import InputSpec, OutputSpec, Profile
from guard.detection.threshold import Policy, Verdict
from guard.errors import UnfitModelError
from guard.export.fused_check import add_check
from guard.runtime.check_graph import build_check_graph
from guard.runtime.node_list import NodeList

__all__ = ["GUARD_OUTPUTS", "P_VALUE", "SCORE", "VERDICT", "build_fused_graph", "with_boundary"]

SCORE: Final = "guard_score"
VERDICT: Final = "guard_verdict"
P_VALUE: Final = "guard_p_value"
GUARD_OUTPUTS: Final = (SCORE, VERDICT, P_VALUE)

_PREFIX = "guard_check/fused/"  # the check graph refuses models with names under guard_check/
_BOUNDARY = _PREFIX + "boundary_bits"
_FLOAT = TensorProto.FLOAT
_ELEMENT = {"FP32": _FLOAT, "FP16": TensorProto.FLOAT16, "UINT8": TensorProto.UINT8}
_MOST_BITS = 1e30
_WORDS: Final = {
    Policy.ENFORCE: (Verdict.ACCEPT, Verdict.REJECT, Verdict.REJECT),
    Policy.FLAG: (Verdict.ACCEPT, Verdict.FLAG, Verdict.UNCHECKED),
}
"""What is said of a clean row, of a suspicious one, and of one that cannot be checked."""
_CLEAN, _SUSPICIOUS, _UNCHECKED = range(3)


def build_fused_graph(
    model: onnx.ModelProto,
    *,
    profile: Profile,
    overlays: Overlays,
    policy: Policy,
    overlays_per_pass: int,
) -> onnx.ModelProto:
    """Return a model that answers and judges; ``model`` itself is left as it was.

    Its input is the model's own. Its outputs are the model's own, where under ``enforce`` the rows
    that are not accepted hold NaN, and, each with one value a row:

    - ``guard_score``, float32: minus the mean entropy over all N overlays, bits; NaN if unchecked;
    - ``guard_verdict``, string: ``accept``, or under ``flag`` ``flag`` or ``unchecked``, or under
      ``enforce`` ``reject``, of what cannot be checked too;
    - ``guard_p_value``, float32: the conformal p-value; NaN if unchecked.

    Args:
        model: The classifier, weights inline.
        profile: Its profile.
        overlays: The N overlays of its artifact, in the plan's order.
        policy: ``enforce`` or ``flag``.
        overlays_per_pass: Most overlays that every image is blended with at a time; a model with a
            fixed batch takes one at a time.

    Raises:
        UnfitModelError: If the model cannot be wrapped, or has a tensor named as one of our outputs.
    """
    _check_names(model)
    source, sink = profile.input, profile.output
    wrapped = build_check_graph(
        model, source=source, sink=sink, overlays=overlays, blend=profile.check.blend_rule
    )
    g = NodeList(_PREFIX)
    per_pass = 1 if profile.fixed_batch else overlays_per_pass
    total, logits = add_check(g, wrapped.graph, source, sink, len(overlays), per_pass)
    _add_judgement(g, profile, policy, total, logits)
    batch = profile.fixed_batch or "n"
    graph = helper.make_graph(g.nodes, "guarded", [_input(source, batch)], _outputs(sink, batch), g.constants)
    del wrapped.graph.node[:], wrapped.graph.initializer[:]
    wrapped.graph.CopyFrom(graph)
    return wrapped


def with_boundary(fused: onnx.ModelProto, boundary_bits: float) -> onnx.ModelProto:
    """Return a copy of a fused graph with another boundary, bits; for trying it."""
    moved = onnx.ModelProto()
    moved.CopyFrom(fused)
    [boundary] = [tensor for tensor in moved.graph.initializer if tensor.name == _BOUNDARY]
    boundary.CopyFrom(numpy_helper.from_array(np.array(boundary_bits, np.float64), _BOUNDARY))
    return moved


def _check_names(model: onnx.ModelProto) -> None:
    graph = model.graph
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    names.update(value.name for value in graph.input)
    names.update(tensor.name for tensor in graph.initializer)
    clash = sorted(names & set(GUARD_OUTPUTS))
    if clash:
        raise UnfitModelError(
            f"the model has a tensor named {clash[0]!r}, which is the name of an output of the guard; "
            f"rename it and calibrate the model again"
        )


def _input(source: InputSpec, batch: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(source.name, _ELEMENT[source.datatype], [batch, *source.shape])


def _outputs(sink: OutputSpec, batch: int | str) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(sink.name, _ELEMENT[sink.datatype], [batch, sink.classes]),
        helper.make_tensor_value_info(SCORE, _FLOAT, [batch, 1]),
        helper.make_tensor_value_info(VERDICT, TensorProto.STRING, [batch, 1]),
        helper.make_tensor_value_info(P_VALUE, _FLOAT, [batch, 1]),
    ]


def _add_judgement(g: NodeList, profile: Profile, policy: Policy, total: str, logits: str) -> None:
    count = g.constant("n_overlays", np.array(profile.check.n_overlays, np.float64))
    column = g.constant("column", np.array([-1, 1], np.int64))
    mean = g.node("Reshape", [g.node("Div", [total, count], _PREFIX + "mean_flat"), column], _PREFIX + "mean")
    checked = _add_checked(g, profile.input, mean)
    boundary = g.constant("boundary_bits", np.array(profile.boundary.boundary_bits, np.float64))
    suspicious = g.node("Less", [mean, boundary], _PREFIX + "suspicious")
    _add_numbers(g, profile, mean, checked)
    _add_verdict(g, policy, checked, suspicious)
    if policy is Policy.ENFORCE:
        calm = g.node("Not", [suspicious], _PREFIX + "not_suspicious")
        accepted = g.node("And", [checked, calm], _PREFIX + "accepted")
        logits = g.node("Where", [accepted, logits, _nan(g)], _PREFIX + "answers")
    g.node("Cast", [logits], profile.output.name, to=_ELEMENT[profile.output.datatype])


def _add_checked(g: NodeList, source: InputSpec, mean: str) -> str:
    """Return (n, 1): every value is finite and in range, and so is the mean entropy."""
    low, high = source.value_range.tolerated()
    below = g.constant("below_range", np.nextafter(low, np.float32(-np.inf)))
    above = g.constant("above_range", np.nextafter(high, np.float32(np.inf)))
    values = g.node("Cast", [source.name], _PREFIX + "values", to=_FLOAT)
    inside = g.node(
        "And",
        [
            g.node("Greater", [values, below], _PREFIX + "not_too_low"),
            g.node("Less", [values, above], _PREFIX + "not_too_high"),
        ],
        _PREFIX + "inside",
    )
    outside = g.node(
        "Cast", [g.node("Not", [inside], _PREFIX + "outside")], _PREFIX + "outside_fp32", to=_FLOAT
    )
    flat = g.node("Flatten", [outside], _PREFIX + "outside_flat", axis=1)
    ones = g.constant("pixels", np.ones((int(np.prod(source.shape)), 1), np.float32))
    misfits = g.node("MatMul", [flat, ones], _PREFIX + "misfits")
    fits = g.node("Less", [misfits, g.constant("half", np.array(0.5, np.float32))], _PREFIX + "fits")
    limit = g.constant("most_bits", np.array(_MOST_BITS, np.float64))
    finite = g.node("Less", [mean, limit], _PREFIX + "finite")
    return g.node("And", [fits, finite], _PREFIX + "checked")


def _add_numbers(g: NodeList, profile: Profile, mean: str, checked: str) -> None:
    narrow = g.node("Cast", [g.node("Neg", [mean], _PREFIX + "negative")], _PREFIX + "score", to=_FLOAT)
    g.node("Where", [checked, narrow, _nan(g)], SCORE)
    clean = np.asarray(profile.calibration.clean_entropies_bits, np.float64)
    above = g.node("Less", [mean, g.constant("clean_entropies", clean)], _PREFIX + "cleaner")
    above = g.node("Cast", [above], _PREFIX + "cleaner_fp32", to=_FLOAT)
    ones = g.constant("clean_images", np.ones((len(clean), 1), np.float32))
    count = g.node("MatMul", [above, ones], _PREFIX + "cleaner_count")
    everyone = g.constant("n_clean_plus_1", np.array(len(clean) + 1, np.float32))
    rank = g.node("Sub", [everyone, count], _PREFIX + "rank")
    p = g.node("Div", [rank, everyone], _PREFIX + "p_value")
    g.node("Where", [checked, p, _nan(g)], P_VALUE)


def _add_verdict(g: NodeList, policy: Policy, checked: str, suspicious: str) -> None:
    clean, doubtful, unchecked = (
        g.constant(name, np.array(code, np.int64))
        for name, code in (
            ("clean", _CLEAN),
            ("suspicious_code", _SUSPICIOUS),
            ("unchecked", _UNCHECKED),
        )
    )
    of_checked = g.node("Where", [suspicious, doubtful, clean], _PREFIX + "code_of_checked")
    code = g.node("Where", [checked, of_checked, unchecked], _PREFIX + "code")
    words = g.constant("words", np.array([word.value for word in _WORDS[policy]], np.object_))
    g.node("Gather", [words, code], VERDICT, axis=0)


def _nan(g: NodeList) -> str:
    name = _PREFIX + "nan"
    if all(tensor.name != name for tensor in g.constants):
        g.constant("nan", np.array(np.nan, np.float32))
    return name
