"""What several processes counted, as if one had. Pure.

Counters and histograms add up. What a gauge of several processes comes to stands in the catalogue. When a
series was created is when the first of them created it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import log10
from types import MappingProxyType
from typing import Final

from prometheus_client import Metric
from prometheus_client.samples import Sample

from guard.metrics_catalogue import CATALOGUE, Across

__all__ = ["counted_only", "merge"]

_CREATED: Final = "_created"
_COUNTED: Final = frozenset({"counter", "histogram"})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _log10_mean(values: Sequence[float]) -> float:
    highest = max(values)
    return highest + log10(_mean([10.0 ** (value - highest) for value in values]))


_RULES: Final[Mapping[Across, Callable[[Sequence[float]], float]]] = MappingProxyType(
    {"sum": sum, "min": min, "max": max, "mean": _mean, "log10_mean": _log10_mean}
)


def merge(parts: Iterable[Iterable[Metric]]) -> list[Metric]:
    """Return every family of all parts once, with every series of it once.

    Args:
        parts: What each process exposes, ``_created`` samples within their families.
    """
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], list[float]]] = {}
    for part in parts:
        for family in part:
            families.setdefault(family.name, family)
            series = values.setdefault(family.name, {})
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                series.setdefault(key, []).append(sample.value)
    return [_merged(family, values[name]) for name, family in families.items()]


def counted_only(families: Iterable[Metric]) -> list[Metric]:
    """Return what a process that is gone has counted, without what it measured just then."""
    return [family for family in families if family.type in _COUNTED]


def _merged(family: Metric, series: Mapping[tuple[str, tuple[tuple[str, str], ...]], list[float]]) -> Metric:
    merged = Metric(family.name, family.documentation, family.type, family.unit)
    for (name, labels), values in series.items():
        merged.samples.append(Sample(name, dict(labels), _rule(family, name)(values)))
    return merged


def _rule(family: Metric, sample: str) -> Callable[[Sequence[float]], float]:
    if sample.endswith(_CREATED):
        return min
    if family.type in _COUNTED:
        return sum
    spec = CATALOGUE.get(family.name)
    return _RULES[spec.across if spec else "max"]
