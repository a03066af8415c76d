"""What ValidationGate checks: plain functions from protos and counts to findings.

Each check has a mode in the configuration: `off`, `warn` or `fail`. A finding names the feature,
the split, what was found and what was expected. TFDV's protos are read, TFDV itself isn't needed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2

from pipeline.blessing import size
from pipeline.config import Evaluate, Mode, Validation
from pipeline.errors import DataRefused, bounded
from pipeline.features import LABEL, SPLITS, TEST, TRAIN
from pipeline.validation import targets

State = Literal["ok", "warn", "fail", "off"]
Counts = Mapping[str, Mapping[str, int]]  # {class: {split: images}}

_MOST_FINDINGS = 20  # that the report lists for one check
_STANDARD_ERRORS = 3.0  # a difference of shares below this many is chance


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    `feature` and `split` are empty where the finding is about more than one.
    """

    feature: str
    split: str
    found: str
    expected: str
    message: str


@dataclass(frozen=True)
class Check:
    """A line of validation.json: a check that found nothing or is off, or one of its findings."""

    name: str
    mode: Mode
    state: State
    feature: str = ""
    split: str = ""
    found: str = ""
    expected: str = ""
    message: str = ""

    def as_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Evidence:
    """What the checks look at.

    Attributes:
      statistics: TFDV's, by split.
      anomalies: ExampleValidator's, by split.
      counts: images of each class in each split, from the ingest report.
      images: the ingest report's images.parquet, which has the targets of heads, image by image;
        None where there is none.
      judged: what the model will be held to on `test`; None to leave that out.
    """

    statistics: Mapping[str, statistics_pb2.DatasetFeatureStatisticsList]
    anomalies: Mapping[str, anomalies_pb2.Anomalies]
    counts: Counts
    images: Path | None = None
    judged: Evaluate | None = None


def run(options: Validation, evidence: Evidence) -> list[Check]:
    """Runs every check that isn't off, in a fixed order."""
    findings: list[tuple[str, Mode, Iterable[Finding]]] = [
        ("anomalies", options.anomalies, anomalies(evidence)),
        ("unseen_labels", options.unseen_labels, _unseen(evidence)),
        ("absent_classes", options.absent_classes, absent_classes(evidence.counts)),
        ("few_images", options.few_images, few_images(evidence.counts, options.min_images)),
        ("imbalance", options.imbalance, imbalance(evidence.counts, options.max_imbalance)),
        ("split_mix", options.split_mix, split_mix(evidence.counts, options.max_split_distance)),
    ]
    if evidence.judged is not None:
        small = test_size(evidence.counts, evidence.judged)
        findings.append(("test_size", options.test_size, small))
    return [check for name, mode, found in findings for check in _as_checks(name, mode, found)]


def refuse(checks: Sequence[Check]) -> None:
    """Raises DataRefused when a check in mode `fail` found something."""
    failed = [check for check in checks if check.state == "fail"]
    if not failed:
        return
    names = sorted({check.name for check in failed})
    reasons = [check.message for check in failed]
    raise DataRefused(
        f"Validation refused the data: {bounded(reasons, limit=3)} "
        f"Mend the data, or set {' and '.join(f'validation.{name}' for name in names)} to 'warn'.",
        reasons,
    )


def _as_checks(name: str, mode: Mode, findings: Iterable[Finding]) -> Iterator[Check]:
    if mode == "off":
        yield Check(name, mode, "off")
        return
    everything = list(findings)
    if not everything:
        yield Check(name, mode, "ok")
    for finding in everything[:_MOST_FINDINGS]:
        yield Check(name, mode, mode, **asdict(finding))
    rest = len(everything) - _MOST_FINDINGS
    if rest > 0:
        yield Check(name, mode, mode, message=f"{name}: {rest} more findings.")


def anomalies(evidence: Evidence) -> Iterator[Finding]:
    """Yields what TFDV found against the schema, split by split, feature by feature."""
    for split in _ordered(evidence.anomalies):
        proto = evidence.anomalies[split]
        for key in sorted(proto.anomaly_info):
            info = proto.anomaly_info[key]
            # The key quotes what is no plain word.
            feature = ".".join(info.path.step) or key
            expected = _expected(proto.baseline, feature)
            found = _found(evidence.statistics.get(split), feature) or info.description
            found += targets.outside(evidence.images, proto.baseline, feature, split)
            yield Finding(
                feature,
                split,
                found,
                expected,
                f"The feature {feature!r} of split {split!r} has an anomaly: "
                f"{info.short_description} ({info.description.rstrip('. ')}). "
                f"Expected {expected}; found {found}.",
            )
        if proto.data_missing:
            yield Finding("", split, "no image", "images", f"The split {split!r} holds no image.")
        if proto.HasField("dataset_anomaly_info"):
            info = proto.dataset_anomaly_info
            yield Finding(
                "",
                split,
                info.description,
                "what the schema asks of the data set",
                f"The split {split!r} has an anomaly: {info.short_description} "
                f"({info.description.rstrip('. ')}).",
            )


def _unseen(evidence: Evidence) -> Iterator[Finding]:
    yield from unseen_labels(evidence.counts)
    for feature, counts in targets.class_counts(evidence.images).items():
        yield from unseen_labels(counts, feature)


def unseen_labels(counts: Counts, feature: str = LABEL) -> Iterator[Finding]:
    """Yields a finding for each held-out split with classes that train has no image of.

    Args:
      counts: of the label's classes, or of another feature's.
      feature: which.
    """
    of_feature = "" if feature == LABEL else f" of {feature!r}"
    for split in _splits(counts):
        unseen = [name for name, of in counts.items() if of.get(split) and not of.get(TRAIN)]
        if split != TRAIN and unseen:
            found = bounded([repr(name) for name in unseen])
            yield Finding(
                feature,
                split,
                found,
                f"classes that {TRAIN!r} has images of",
                f"The split {split!r} holds classes{of_feature} that train has no image of: "
                f"{found}. Expected every class in train: no model can learn it. Add images, or "
                "split anew.",
            )


def absent_classes(counts: Counts) -> Iterator[Finding]:
    """Yields a finding if there are classes without any image: those that the champion knows."""
    absent = [name for name, of in counts.items() if not any(of.values())]
    if absent:
        found = bounded([repr(name) for name in absent])
        yield Finding(
            LABEL,
            TRAIN,
            found,
            "images of each class that the served model knows",
            f"The served model knows {found}, and the data has no image of that: a model trained "
            "on it would not know it any more, and no test image would show it. Put its images "
            "back. If the class is meant to go, train a model of another name (push.model_name); "
            "with this check at 'warn' it stays among the answers, untrained.",
        )


def few_images(counts: Counts, least: int) -> Iterator[Finding]:
    """Yields a finding for train and test each, if a class has fewer than `least` images there."""
    for split in (TRAIN, TEST):
        few = [
            f"{name!r} has {of.get(split, 0)}"
            for name, of in counts.items()
            if any(of.values())
            and of.get(split, 0) < least
            and not (split == TRAIN and _is_unseen(of))
        ]
        if few:
            yield Finding(
                LABEL,
                split,
                bounded(few),
                f"at least {least} a class",
                f"Too few images in split {split!r}: {bounded(few)}. Expected at least {least} of "
                "each class (validation.min_images). Add images, or leave the class out.",
            )


def test_size(counts: Counts, judged: Evaluate) -> Iterator[Finding]:
    """Yields a finding for each thing asked of the model that test is too small to show."""
    sizes = {name: of.get(TEST, 0) for name, of in counts.items()}
    for head, found, expected, message in size.hopeless(sizes, judged):
        yield Finding(head, TEST, found, expected, message)


def _is_unseen(of: Mapping[str, int]) -> bool:
    """Says whether `unseen_labels` speaks of this class already."""
    return not of.get(TRAIN) and any(of.values())


def imbalance(counts: Counts, most: float) -> Iterator[Finding]:
    """Yields a finding if train's largest class is more than `most` times its smallest."""
    sizes = {name: of[TRAIN] for name, of in counts.items() if of.get(TRAIN)}
    if not sizes:
        return
    large, small = max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)
    ratio = sizes[large] / sizes[small]
    if ratio > most:
        found = f"{large!r} has {sizes[large]}, {small!r} has {sizes[small]}: {ratio:.1f} times"
        yield Finding(
            LABEL,
            TRAIN,
            found,
            f"at most {most:g} times",
            f"Classes in train are imbalanced: {found}. Expected at most {most:g} times "
            "(validation.max_imbalance). Add images of the smaller classes.",
        )


def split_mix(counts: Counts, most: float) -> Iterator[Finding]:
    """Yields a finding for two splits whose shares of a class differ by more than `most`.

    The largest difference over the classes (L-infinity). It has to be larger, too, than chance
    would make it: with ten images in a split, a share is off by a tenth without anybody's fault.
    """
    for one, other in itertools.combinations(_splits(counts), 2):
        sizes = [sum(of.get(split, 0) for of in counts.values()) for split in (one, other)]
        if not all(sizes):
            continue
        name, distance, bound = _most_apart(counts, (one, other), sizes, most)
        if distance > bound:
            shares = [counts[name].get(s, 0) / n for s, n in zip((one, other), sizes, strict=True)]
            found = f"{name!r} is {shares[0]:.1%} of {one!r} and {shares[1]:.1%} of {other!r}"
            yield Finding(
                LABEL,
                f"{one}, {other}",
                found,
                f"shares that differ by at most {bound:.1%}",
                f"The splits hold the classes in different shares: {found}. Expected a difference "
                f"of at most {bound:.1%} (validation.max_split_distance is {most:g}). "
                "Split anew, or add images where they lack.",
            )


def _most_apart(
    counts: Counts, splits: tuple[str, str], sizes: Sequence[int], most: float
) -> tuple[str, float, float]:
    """Returns the class that exceeds its bound by most: (name, distance, bound)."""
    total = sum(sizes)
    rows = []
    for name, of in counts.items():
        first, second = (of.get(split, 0) for split in splits)
        share = (first + second) / total
        error = math.sqrt(share * (1 - share) * (1 / sizes[0] + 1 / sizes[1]))
        distance = abs(first / sizes[0] - second / sizes[1])
        rows.append((name, distance, max(most, _STANDARD_ERRORS * error)))
    return max(rows, key=lambda row: row[1] - row[2])


def _splits(counts: Counts) -> list[str]:
    return _ordered({split for of in counts.values() for split in of})


def _ordered(splits: Iterable[str]) -> list[str]:
    """Returns the splits as the data flows, others behind."""
    return sorted(splits, key=lambda s: (SPLITS.index(s) if s in SPLITS else len(SPLITS), s))


def _found(statistics: statistics_pb2.DatasetFeatureStatisticsList | None, feature: str) -> str:
    """Returns what the statistics say of a feature: its range, or its commonest values."""
    for dataset in statistics.datasets if statistics else ():
        for stats in dataset.features:
            if stats.path.step[:] == [feature] or stats.name == feature:
                return _described(stats, dataset.num_examples)
    return ""


def _described(stats: statistics_pb2.FeatureNameStatistics, examples: int) -> str:
    kind = stats.WhichOneof("stats")
    common: Any = getattr(stats, kind).common_stats if kind else None
    parts = []
    if kind == "num_stats":
        parts.append(f"values from {stats.num_stats.min:g} to {stats.num_stats.max:g}")
    if kind == "string_stats":
        values = [repr(bucket.label) for bucket in stats.string_stats.rank_histogram.buckets]
        parts.append(f"the values {bounded(values)}")
    if common is not None:
        missing = examples - common.num_non_missing
        counts = (common.min_num_values, common.max_num_values)
        if missing:
            parts.append(f"none in {missing} of {examples} images")
        if counts != (1, 1):
            parts.append(f"{counts[0]} to {counts[1]} values an image")
    return ", ".join(parts)


def _expected(schema: schema_pb2.Schema, feature: str) -> str:
    """Returns what the schema asks of a feature, in words."""
    for asked in schema.feature:
        if asked.name == feature:
            return ", ".join(_asked(schema, asked)) or "nothing in particular"
    return f"no feature of this name ({bounded([f.name for f in schema.feature], limit=20)})"


def _asked(schema: schema_pb2.Schema, feature: schema_pb2.Feature) -> Iterator[str]:
    kind = feature.WhichOneof("domain_info")
    if kind == "domain":
        for domain in schema.string_domain:
            if domain.name == feature.domain:
                yield f"one of {bounded([repr(value) for value in domain.value], limit=10)}"
    elif kind in ("int_domain", "float_domain"):
        domain = getattr(feature, kind)
        if domain.HasField("min"):
            yield f"at least {domain.min:g}"
        if domain.HasField("max"):
            yield f"at most {domain.max:g}"
    if feature.presence.min_fraction > 0:
        yield "present in every image"
    shape = feature.WhichOneof("shape_type")
    if shape == "value_count":
        yield f"{feature.value_count.min} to {feature.value_count.max} values"
    elif shape == "shape":
        yield "one value"
