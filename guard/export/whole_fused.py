r"""The fused detector in the guarded graph: what :class:`guard.detection.fused.Fused` scores over N blends.

Within the loop every blend is compared with what clean inputs of its image's class answer under its overlay:

::

    predicted (n) = argmax of the answers to the images themselves, which come first in the loop
    e (p, k) = expected[predicted, overlay]                      one row of the table a pair
    departure (p) = 1 − Σ_j √q_j √e_j,   surprise (p) = −Σ_j q_j log₂((1 − ε) e_j + ε / k)
    kept (p) = q[predicted]
    sums (3 + s, n) += entropy, departure, surprise; kept by the overlays' class, over the number of those

After it the sums become statistics, on the scales of the profile, and the highest of its views is the score.
The table of expected answers lies within the body, in the file once.

An image has no class where an answer to itself is not finite, and then it was not checked; nor was it where
a sum is not finite, whatever a maximum over NaN may be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from guard.artifact import FusedRecord, OutputSpec
from guard.detection.capabilities.layer_distances import Layer
from guard.detection.fusion import View
from guard.detection.measurements import MEANS, Measures
from guard.detection.responses import EPSILON
from guard.detection.stratified import Strata
from guard.export.idioms import add_all, add_highest, add_row_sums
from guard.export.parts import Part
from guard.export.whole_detector import Seen, add_entropy_sum
from guard.export.whole_layers import add_layer_distance
from guard.runtime.check_graph import IMAGE_INDEX, OVERLAY_INDEX, probabilities_name
from guard.runtime.node_list import NodeList

__all__ = ["WholeFused"]

_MEANS = 3  # entropy, departure and surprise, in the order of MEANS's columns
_MOST = 1e30


@dataclass(frozen=True, eq=False)
class WholeFused:
    """The fused detector over all N blends.

    Attributes:
        record: Which statistics, and their scales.
        measures: What clean inputs answer.
        sink: The model's output.
    """

    record: FusedRecord
    measures: Measures
    sink: OutputSpec

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Those of the profile; none where the layer distance is no statistic."""
        return tuple(record.layer for record in self.record.layers)

    @property
    def n_sums(self) -> int:
        """Of three measurements, and one for each class that overlays have."""
        strata = self.measures.strata
        return _MEANS + (0 if strata is None else len(strata.classes))

    def add_part_sums(self, g: NodeList, part: Part) -> str:
        """Add the sums of entropies, departures, surprises, and of probabilities kept by stratum."""
        predicted = _add_predicted(g, part.logits)
        classes = g.node("Gather", [predicted, IMAGE_INDEX], g.prefix + "class_of_pair", axis=0)
        expected = self._add_expected(g, classes)
        probabilities = probabilities_name(self.sink)
        departure = self._add_departure(g, probabilities, expected)
        surprise = self._add_surprise(g, probabilities, expected)
        every = np.ones((1, self._n_overlays))
        sums = [
            add_entropy_sum(g, part, self._n_overlays),
            part.add_sums(g, departure, every, g.prefix + "departures"),
            part.add_sums(g, surprise, every, g.prefix + "surprises"),
        ]
        if self.measures.strata is not None:
            kept = self._add_kept(g, probabilities, classes)
            sums.append(part.add_sums(g, kept, _shares(self.measures.strata), g.prefix + "strata"))
        return g.node("Concat", sums, g.prefix + "part_sums", axis=0)

    def add_values(self, g: NodeList, seen: Seen) -> tuple[str, list[str]]:
        """Add minus the scores; without a class, or a finite sum, an image was not checked."""
        predicted = _add_predicted(g, seen.logits)
        conditions = [self._add_has_class(g, seen.logits), _add_finite(g, seen.sums)]
        rows = [self._add_means(g, seen.sums)] if self._means else []
        if "stratified" in self._names:
            rows.append(self._add_stratified(g, seen.sums, predicted))
        if self.measures.layers is not None and seen.features is not None:
            distance, known = add_layer_distance(g, self.measures.layers, seen.features, predicted)
            rows.append(distance)
            conditions.append(known)
        statistics = g.node("Concat", rows, g.prefix + "statistics", axis=0)
        views, height = self._add_views(g, self._add_standardised(g, statistics))
        score = add_highest(g, views, height, g.prefix + "highest")
        column = g.constant("column", np.array([-1, 1], np.int64))
        value = g.node("Reshape", [g.node("Neg", [score], g.prefix + "minus"), column], g.prefix + "value")
        return value, conditions

    @property
    def _n_overlays(self) -> int:
        return int(self.measures.responses.expected.shape[1])

    @property
    def _names(self) -> tuple[str, ...]:
        return self.record.statistics

    @property
    def _means(self) -> list[str]:
        return [name for name in self._names if name in MEANS]

    @property
    def _order(self) -> list[int]:
        """Places of the statistics as the graph has them: means first, then these two."""
        names = [*self._means, "stratified", "layers"]
        return sorted(range(len(self._names)), key=lambda place: names.index(self._names[place]))

    def _add_expected(self, g: NodeList, classes: str) -> str:
        """Add the row of the table for each pair, float32 (p, k); any for an image itself, of weight 0."""
        table = self.measures.responses.expected
        rows = g.constant("expected", table.reshape(-1, table.shape[2]))
        columns = g.constant("n_columns", np.array(table.shape[1], np.int64))
        zero = g.constant("column_0", np.array(0, np.int64))
        itself = g.node("Less", [OVERLAY_INDEX, zero], g.prefix + "is_itself")
        column = g.node("Where", [itself, zero, OVERLAY_INDEX], g.prefix + "column_of_pair")
        first = g.node("Mul", [classes, columns], g.prefix + "first_of_class")
        row = g.node("Add", [first, column], g.prefix + "row_of_pair")
        return g.node("Gather", [rows, row], g.prefix + "expected_of_pair", axis=0)

    def _add_departure(self, g: NodeList, probabilities: str, expected: str) -> str:
        roots = [
            g.node("Sqrt", [name], g.prefix + f"root_{place}")
            for place, name in enumerate((probabilities, expected))
        ]
        overlap = self._add_sum(g, g.node("Mul", roots, g.prefix + "overlaps"), "overlap")
        one = g.constant("one_fp64", np.array(1.0))
        zero = g.constant("zero_fp64", np.array(0.0))
        departure = g.node("Sub", [one, overlap], g.prefix + "departure_rounded")
        negative = g.node("Less", [departure, zero], g.prefix + "departure_negative")
        return g.node("Where", [negative, zero, departure], g.prefix + "departure")  # NaN stays NaN

    def _add_surprise(self, g: NodeList, probabilities: str, expected: str) -> str:
        share = g.constant("share", np.array(1 - EPSILON, np.float32))
        uniform = g.constant("uniform", np.array(EPSILON / self.sink.classes, np.float32))
        to_bits = g.constant("log_to_bits", np.array(-1 / math.log(2), np.float32))
        shared = g.node("Mul", [expected, share], g.prefix + "expected_share")
        mixed = g.node("Add", [shared, uniform], g.prefix + "expected_mixed")
        log = g.node("Log", [mixed], g.prefix + "expected_log")
        bits = g.node("Mul", [log, to_bits], g.prefix + "expected_bits")
        return self._add_sum(g, g.node("Mul", [probabilities, bits], g.prefix + "bits_of_each"), "surprise")

    def _add_kept(self, g: NodeList, probabilities: str, classes: str) -> str:
        """Add the probability of each pair's own class, float64 (p, 1); NaN elsewhere in the row is NaN."""
        numbers = g.constant("numbers", np.arange(self.sink.classes)[None])
        upright = g.constant("class_column", np.array([-1, 1]))
        column = g.node("Reshape", [classes, upright], g.prefix + "class_of_pair_column")
        own = g.node("Equal", [numbers, column], g.prefix + "is_own")
        own = g.node("Cast", [own], g.prefix + "is_own_fp32", to=TensorProto.FLOAT)
        return self._add_sum(g, g.node("Mul", [probabilities, own], g.prefix + "kept_alone"), "kept_of_own")

    def _add_sum(self, g: NodeList, table: str, name: str) -> str:
        wide = g.node("Cast", [table], g.prefix + name + "_wide", to=TensorProto.DOUBLE)
        return add_row_sums(g, wide, self.sink.classes, g.prefix + name)

    def _add_means(self, g: NodeList, sums: str) -> str:
        """Add the statistics that are means, float64 (s, n)."""
        rows = g.constant("mean_rows", np.array([MEANS[name] for name in self._means], np.int64))
        signs = [-1.0 if name == "strip" else 1.0 for name in self._means]
        counts = g.constant("counts", self._n_overlays * np.array(signs)[:, None])
        totals = g.node("Gather", [sums, rows], g.prefix + "totals", axis=0)
        return g.node("Div", [totals, counts], g.prefix + "means")

    def _add_stratified(self, g: NodeList, sums: str, predicted: str) -> str:
        """Add the highest residual of a stratum that is not the image's own class, float64 (1, n)."""
        strata = self.measures.strata
        if strata is None:
            raise ValueError("stratified: expected overlays of two classes or more")
        height = len(strata.classes)
        rows = g.constant("stratum_rows", np.arange(_MEANS, _MEANS + height))
        kept = g.node("Gather", [sums, rows], g.prefix + "kept_by_stratum", axis=0)
        usual = g.constant("stratum_means", np.ascontiguousarray(strata.means.T))
        usual = g.node("Gather", [usual, predicted], g.prefix + "usually_kept", axis=1)
        more = g.node("Sub", [kept, usual], g.prefix + "kept_more")
        residual = g.node(
            "Div", [more, g.constant("spreads", strata.spreads[:, None])], g.prefix + "residuals"
        )
        own = g.node(
            "Equal", [g.constant("stratum_classes", strata.classes[:, None]), predicted], g.prefix + "of_own"
        )
        nothing = g.constant("says_nothing", np.array(-np.inf))
        others = g.node("Where", [own, nothing, residual], g.prefix + "residuals_of_others")
        return add_highest(g, others, height, g.prefix + "stratified")

    def _add_standardised(self, g: NodeList, statistics: str) -> str:
        centres, scales = (
            np.array(values, np.float64)[self._order][:, None]
            for values in (self.record.centres, self.record.scales)
        )
        centred = g.node("Sub", [statistics, g.constant("centres", centres)], g.prefix + "centred")
        return g.node("Div", [centred, g.constant("scales", scales)], g.prefix + "standardised")

    def _add_views(self, g: NodeList, on_scale: str) -> tuple[str, int]:
        """Add what each view sees, float64 (v, n), and v; without views each statistic is one."""
        views = self.record.fusion.views
        if not views:
            return on_scale, len(self._order)
        seen = [self._add_view(g, on_scale, view, f"view_{place}") for place, view in enumerate(views)]
        return g.node("Concat", seen, g.prefix + "views", axis=0), len(views)

    def _add_view(self, g: NodeList, on_scale: str, view: View, name: str) -> str:
        weights = g.constant(name + "_weights", np.ascontiguousarray(view.weights[:, self._order]))
        seen = g.node("MatMul", [weights, on_scale], f"{g.prefix}{name}_rows")
        if len(view.weights) > 1:
            seen = _add_length(g, seen, len(view.weights), name)
        centre, scale = (
            g.constant(f"{name}_{which}", np.array(value))
            for which, value in (("centre", view.centre), ("scale", view.scale))
        )
        away = g.node("Sub", [seen, centre], f"{g.prefix}{name}_away")
        return g.node("Div", [away, scale], g.prefix + name)

    def _add_has_class(self, g: NodeList, logits: str) -> str:
        size = g.node("Abs", [logits], g.prefix + "logits_size")
        infinite = g.constant("infinite", np.array(np.inf, np.float32))
        finite = g.node("Less", [size, infinite], g.prefix + "logits_finite")
        return add_all(g, finite, self.sink.classes, g.prefix + "has_class")


def _shares(strata: Strata) -> np.ndarray:
    """Return the weight of each overlay in its stratum's mean, (s, N)."""
    members = strata.overlay_classes[None] == strata.classes[:, None]
    shares: np.ndarray = members / members.sum(axis=1, keepdims=True)
    return shares


def _add_length(g: NodeList, rows: str, height: int, name: str) -> str:
    """Add the length of each column's part above 0, (``height``, n) to (1, n)."""
    zero = g.constant(name + "_zero", np.array(0.0))
    below = g.node("Less", [rows, zero], f"{g.prefix}{name}_below")
    above = g.node("Where", [below, zero, rows], f"{g.prefix}{name}_above")  # NaN stays NaN
    squares = g.node("Mul", [above, above], f"{g.prefix}{name}_squares")
    ones = g.constant(name + "_ones", np.ones((1, height)))
    return g.node(
        "Sqrt", [g.node("MatMul", [ones, squares], f"{g.prefix}{name}_sum")], f"{g.prefix}{name}_length"
    )


def _add_predicted(g: NodeList, logits: str) -> str:
    return g.node("ArgMax", [logits], g.prefix + "predicted", axis=1, keepdims=0)


def _add_finite(g: NodeList, sums: str) -> str:
    """Add whether the sums of entropy, departure and surprise are all finite, (n, 1)."""
    rows = g.constant("measured_rows", np.arange(_MEANS))
    measured = g.node("Gather", [sums, rows], g.prefix + "measured", axis=0)
    by_image = g.node("Transpose", [measured], g.prefix + "measured_by_image", perm=[1, 0])
    below = g.node("Less", [by_image, g.constant("most", np.array(_MOST))], g.prefix + "measured_finite")
    return add_all(g, below, _MEANS, g.prefix + "all_measured")
