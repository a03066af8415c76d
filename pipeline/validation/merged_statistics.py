"""Statistics of a window from those of its spans: no example is read again.

Counts, extremes, means, deviations and the values of strings come out as TFDV would find them over
all examples. Histograms and the median are interpolated within their buckets.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from tensorflow_metadata.proto.v0 import statistics_pb2

Floats = npt.NDArray[np.float64]
_STANDARD = statistics_pb2.Histogram.STANDARD
_QUANTILES = statistics_pb2.Histogram.QUANTILES
_TOP_VALUES = 2  # as many as StatisticsGen keeps


def merge(
    parts: Sequence[statistics_pb2.DatasetFeatureStatisticsList],
) -> statistics_pb2.DatasetFeatureStatisticsList:
    """Returns one dataset's statistics for all the examples that the parts are of.

    Args:
      parts: TFDV's, one dataset each, without slices or weights.
    """
    datasets = [part.datasets[0] for part in parts if part.datasets]
    merged = statistics_pb2.DatasetFeatureStatisticsList()
    out = merged.datasets.add()
    out.num_examples = sum(one.num_examples for one in datasets)
    if datasets:
        out.name = datasets[0].name
    names: dict[tuple[str, ...], None] = {}
    for dataset in datasets:
        names.update(dict.fromkeys(tuple(one.path.step) for one in dataset.features))
    for name in names:
        _merge_feature(name, datasets, out.features.add())
    return merged


def _merge_feature(
    name: tuple[str, ...],
    datasets: Sequence[statistics_pb2.DatasetFeatureStatistics],
    out: statistics_pb2.FeatureNameStatistics,
) -> None:
    there: list[statistics_pb2.FeatureNameStatistics] = []
    absent = 0
    for dataset in datasets:
        found = [one for one in dataset.features if tuple(one.path.step) == name]
        there += found
        absent += 0 if found else dataset.num_examples
    # Where a part knows no value, TFDV can't tell the kind: one that does decides.
    kinds = [one for one in there if _common(one).num_non_missing] or there
    out.path.step.extend(name)
    out.type = kinds[0].type
    if kinds[0].HasField("string_stats"):
        _merge_strings(kinds, out.string_stats)
    else:
        _merge_numbers(kinds, out.num_stats)
    common = _common(out)
    _merge_common([_common(one) for one in there], absent, common)


def _common(feature: statistics_pb2.FeatureNameStatistics) -> statistics_pb2.CommonStatistics:
    if feature.HasField("string_stats"):
        return feature.string_stats.common_stats
    return feature.num_stats.common_stats


def _merge_common(
    parts: Sequence[statistics_pb2.CommonStatistics],
    absent: int,
    out: statistics_pb2.CommonStatistics,
) -> None:
    filled = [one for one in parts if one.num_non_missing]
    out.num_non_missing = sum(one.num_non_missing for one in parts)
    out.num_missing = sum(one.num_missing for one in parts) + absent
    out.tot_num_values = sum(one.tot_num_values for one in parts)
    if filled:
        out.min_num_values = min(one.min_num_values for one in filled)
        out.max_num_values = max(one.max_num_values for one in filled)
        out.avg_num_values = out.tot_num_values / out.num_non_missing
    nested = [one.presence_and_valency_stats[0] for one in parts if one.presence_and_valency_stats]
    if nested:
        presence = out.presence_and_valency_stats.add()
        presence.num_non_missing = sum(one.num_non_missing for one in nested)
        presence.num_missing = sum(one.num_missing for one in nested) + absent
        presence.tot_num_values = sum(one.tot_num_values for one in nested)
        known = [one for one in nested if one.num_non_missing]
        if known:
            presence.min_num_values = min(one.min_num_values for one in known)
            presence.max_num_values = max(one.max_num_values for one in known)


def _merge_strings(
    parts: Sequence[statistics_pb2.FeatureNameStatistics], out: statistics_pb2.StringStatistics
) -> None:
    counts: Counter[str] = Counter()
    length = 0.0
    for part in parts:
        for bucket in part.string_stats.rank_histogram.buckets:
            counts[bucket.label] += int(bucket.sample_count)
        length += part.string_stats.avg_length * _common(part).tot_num_values
    values = sum(_common(part).tot_num_values for part in parts)
    out.avg_length = length / values if values else 0.0
    # Beyond the buckets' end the parts only count: then this is a lower bound.
    out.unique = max([len(counts), *(part.string_stats.unique for part in parts)])
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    for value, count in ranked[:_TOP_VALUES]:
        out.top_values.add(value=value, frequency=count)
    for rank, (value, count) in enumerate(ranked):
        out.rank_histogram.buckets.add(
            low_rank=rank, high_rank=rank, label=value, sample_count=count
        )


def _merge_numbers(
    parts: Sequence[statistics_pb2.FeatureNameStatistics], out: statistics_pb2.NumericStatistics
) -> None:
    filled = [one.num_stats for one in parts if one.num_stats.common_stats.tot_num_values]
    if not filled:
        return
    weights = np.array([one.common_stats.tot_num_values for one in filled], np.float64)
    means = np.array([one.mean for one in filled])
    squares = np.array([one.std_dev**2 + one.mean**2 for one in filled])
    out.mean = float(np.average(means, weights=weights))
    out.std_dev = math.sqrt(max(0.0, float(np.average(squares, weights=weights)) - out.mean**2))
    out.num_zeros = sum(one.num_zeros for one in filled)
    out.min = min(one.min for one in filled)
    out.max = max(one.max for one in filled)
    for kind in (_STANDARD, _QUANTILES):
        found = [_histogram(one, kind) for one in filled]
        histograms = [one for one in found if one is not None and one.buckets]
        if len(histograms) == len(filled):
            _merge_histograms(histograms, kind, out)
    middle = [one for one in out.histograms if one.type == _QUANTILES]
    if middle:
        edges = [middle[0].buckets[0].low_value, *(one.high_value for one in middle[0].buckets)]
        out.median = float(np.interp(0.5, np.linspace(0, 1, len(edges)), edges))


def _histogram(
    numbers: statistics_pb2.NumericStatistics, kind: int
) -> statistics_pb2.Histogram | None:
    return next((one for one in numbers.histograms if one.type == kind), None)


def _merge_histograms(
    parts: Sequence[statistics_pb2.Histogram],
    kind: statistics_pb2.Histogram.HistogramType,
    out: statistics_pb2.NumericStatistics,
) -> None:
    count = max(len(one.buckets) for one in parts)
    total = sum(bucket.sample_count for one in parts for bucket in one.buckets)
    below = _below(parts)
    if kind == _STANDARD:
        edges = np.linspace(out.min, out.max, count + 1)
        counts = np.diff(np.array([below(edge) for edge in edges]))
        counts[-1] += total - counts.sum()  # values at the upper end itself
    else:
        edges = _quantiles(parts, below, total, count)
        counts = np.full(count, total / count)
    histogram = out.histograms.add(type=kind)
    histogram.num_nan = sum(one.num_nan for one in parts)
    for (low, high), share in zip(itertools.pairwise(edges), counts, strict=True):
        histogram.buckets.add(
            low_value=float(low), high_value=float(high), sample_count=float(max(0.0, share))
        )


def _below(parts: Sequence[statistics_pb2.Histogram]) -> Callable[[float], float]:
    """Returns how many values lie below one, as the buckets tell."""
    buckets = [bucket for one in parts for bucket in one.buckets]
    low = np.array([bucket.low_value for bucket in buckets])
    high = np.array([bucket.high_value for bucket in buckets])
    counts = np.array([bucket.sample_count for bucket in buckets])
    width = high - low

    def below(value: float) -> float:
        # A bucket without width holds one value: it counts once that is passed.
        wide = np.where(width > 0, width, 1.0)
        shares = np.where(width > 0, np.clip((value - low) / wide, 0.0, 1.0), low < value)
        return float(np.sum(shares * counts))

    return below


def _quantiles(
    parts: Sequence[statistics_pb2.Histogram],
    below: Callable[[float], float],
    total: float,
    count: int,
) -> Floats:
    edges = np.unique([edge for one in parts for bucket in one.buckets for edge in _ends(bucket)])
    reached = np.maximum.accumulate([below(edge) for edge in edges])
    reached[-1] = total
    return np.interp(np.linspace(0, total, count + 1), reached, edges)


def _ends(bucket: statistics_pb2.Histogram.Bucket) -> tuple[float, float]:
    return bucket.low_value, bucket.high_value
