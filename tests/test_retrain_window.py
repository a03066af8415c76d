"""A window of spans in TFX: each span's own nodes, joined without reading an image again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_data_validation as tfdv

from pipeline import events, window_data
from pipeline.errors import DataRefused, SafelightError
from pipeline.ingest import records, wire
from pipeline.validation import merged_statistics
from pipeline.window_data import Part
from tests.framing import framed


def features(statistics) -> dict:
    return {one.path.step[0]: one for one in statistics.datasets[0].features}


def table(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "label": rng.choice(["a", "b", "c"][: seed + 1], rows),
            "brightness": rng.normal(0.4 + seed / 10, 0.1, rows),
            "height": rng.integers(0, 50, rows),
        }
    )


def test_merged_statistics_are_those_of_all_examples():
    tables = [table(400, 1), table(900, 2)]
    parts = [tfdv.generate_statistics_from_dataframe(one) for one in tables]
    whole = features(tfdv.generate_statistics_from_dataframe(pd.concat(tables, ignore_index=True)))
    merged = features(merged_statistics.merge(parts))
    assert merged.keys() == whole.keys()
    ranks = [one["label"].string_stats.rank_histogram.buckets for one in (merged, whole)]
    counts = [{bucket.label: bucket.sample_count for bucket in buckets} for buckets in ranks]
    assert counts[0] == counts[1]
    assert merged["label"].string_stats.unique == 3
    for name in ("brightness", "height"):
        mine, theirs = merged[name].num_stats, whole[name].num_stats
        assert mine.common_stats.num_non_missing == theirs.common_stats.num_non_missing == 1300
        assert mine.num_zeros == theirs.num_zeros
        for figure in ("mean", "std_dev", "min", "max"):
            assert getattr(mine, figure) == pytest.approx(getattr(theirs, figure), rel=1e-6)
        assert mine.median == pytest.approx(theirs.median, rel=0.05)
        for kind in (0, 1):
            [ours] = [one for one in mine.histograms if one.type == kind]
            [real] = [one for one in theirs.histograms if one.type == kind]
            assert sum(bucket.sample_count for bucket in ours.buckets) == pytest.approx(1300)
            low, high = ours.buckets[0].low_value, ours.buckets[-1].high_value
            assert (low, high) == pytest.approx(
                (real.buckets[0].low_value, real.buckets[-1].high_value)
            )


def test_merged_statistics_serve_validation_and_drift():
    same = merged_statistics.merge([tfdv.generate_statistics_from_dataframe(table(500, 2))] * 2)
    schema = tfdv.infer_schema(same)
    label = tfdv.get_feature(schema, "label")
    label.drift_comparator.infinity_norm.threshold = 0.01
    tfdv.get_feature(
        schema, "brightness"
    ).drift_comparator.jensen_shannon_divergence.threshold = 0.1
    assert not tfdv.validate_statistics(same, schema, previous_statistics=same).anomaly_info
    other = tfdv.generate_statistics_from_dataframe(table(500, 1))
    found = tfdv.validate_statistics(other, schema, previous_statistics=same).anomaly_info
    assert "label" in found and "brightness" in found


def test_a_feature_that_a_span_lacks_is_missing_there():
    with_group = table(10, 1).assign(group=["g"] * 10)
    parts = [tfdv.generate_statistics_from_dataframe(one) for one in (table(30, 1), with_group)]
    group = features(merged_statistics.merge(parts))["group"].string_stats.common_stats
    assert (group.num_non_missing, group.num_missing) == (10, 30)


def span(root: Path, name: str, per_class: dict[str, tuple[int, int, int]], **role) -> Part:
    """Writes what ingest writes of a span: shards (here of names), tables and summary.json."""
    node = root / f"ImageExampleGen.{name}"
    examples, report = node / "examples" / "1", node / "ingest_report" / "1"
    report.mkdir(parents=True)
    rows = []
    for position, split in enumerate(("train", "eval", "test")):
        folder = examples / f"Split-{split}"
        folder.mkdir(parents=True)
        record = wire.pack({"id": [f"{name} {split}".encode()]})
        (folder / "data_tfrecord-00000-of-00001").write_bytes(framed(record))
        for label, counts in per_class.items():
            rows += [
                (f"{label}/{n}".encode(), split, label, f"{name}{label}{split}{n}")
                for n in range(counts[position])
            ]
    columns = zip(*rows, strict=True)
    fields = zip(("id", "split", "label", "sha256"), columns, strict=True)
    pq.write_table(
        pa.table({key: list(values) for key, values in fields}), report / "images.parquet"
    )
    summary = {
        "fingerprint": f"f-{name}",
        "data": f"/data/{name}",
        "classes": list(per_class),
        "per_class": {
            label: dict(zip(("train", "eval", "test"), counts, strict=True))
            for label, counts in per_class.items()
        },
        "examples": {
            split: sum(counts[position] for counts in per_class.values())
            for position, split in enumerate(("train", "eval", "test"))
        },
        "quarantined": 1,
        "quarantine_reasons": {"empty": 1},
        "converted": {},
        "near_duplicates": {"mode": "report", "pairs": len(name), "dropped": 0},
        "ignored": [],
        "ignored_count": 0,
        "files": 10,
        "bytes": 1000,
    }
    (report / "summary.json").write_text(json.dumps(summary))
    return Part(
        name,
        f"f-{name}",
        role.get("golden", False),
        role.get("judged", True),
        examples,
        report,
    )


@pytest.fixture
def parts(tmp_path):
    return [
        span(tmp_path, "span-1", {"a": (5, 1, 2), "b": (4, 1, 2)}, judged=False),
        span(tmp_path, "span-2", {"c": (3, 1, 1), "b": (4, 1, 2)}),
        span(tmp_path, "golden", {"a": (2, 1, 1), "c": (1, 1, 1)}, golden=True),
    ]


def name_in(file: Path) -> str:
    [(_, size)] = records.index(os.fsencode(file))
    [name] = wire.unpack(file.read_bytes()[records.HEADER_BYTES :][:size])["id"]
    assert isinstance(name, bytes)
    return name.decode()


def test_examples_are_linked_by_the_windows_splits(parts, tmp_path):
    window_data.link(parts, tmp_path / "out")
    read = {
        split: [name_in(file) for file in sorted((tmp_path / "out" / f"Split-{split}").iterdir())]
        for split in ("train", "eval", "test")
    }
    assert read["train"] == ["span-1 train", "span-2 train"]
    assert read["eval"] == ["span-1 eval", "span-2 eval"]
    # The newest span and the golden set judge; an older span's test images do nothing.
    golden = [f"golden/golden {split}" for split in ("train", "eval", "test")]
    assert read["test"] == ["span-2 test", *golden]
    # But it is kept beside: what the older span's images say of a newer model.
    older = tmp_path / "out" / f"Split-{window_data.OLDER}"
    assert [name_in(file) for file in older.iterdir()] == ["span-1 test"]
    linked = tmp_path / "out" / "Split-train" / "data_tfrecord-00000-of-00002"
    assert linked.stat().st_nlink == 2


def test_one_report_of_the_window(parts, tmp_path):
    out = tmp_path / "report"
    out.mkdir()
    summary = window_data.write_report(parts, ["b", "z"], {}, "window", out)
    alike = {"mode": "report", "pairs": sum(len(part.name) for part in parts), "dropped": 0}
    assert summary["near_duplicates"] == alike
    assert summary["classes"] == ["b", "z", "a", "c"]
    assert summary["per_class"]["b"] == {"train": 8, "eval": 2, "test": 2}
    assert summary["per_class"]["a"] == {"train": 5, "eval": 1, "test": 4}
    assert summary["examples"] == {"train": 16, "eval": 4, "test": 10}
    assert summary["quarantine_reasons"] == {"empty": 3} and summary["files"] == 30
    assert [one["name"] for one in summary["spans"]] == ["span-1", "span-2", "golden"]
    assert summary["older"] == [{"name": "span-1", "images": 4}]
    splits = pq.read_table(out / "images.parquet")["split"].to_pylist()
    assert {split: splits.count(split) for split in set(splits)} == summary["examples"]


def test_golden_images_that_train_are_told(tmp_path, event_log):
    twin = span(tmp_path, "span-1", {"a": (5, 1, 2), "b": (4, 1, 2)})
    gold = Part("golden", twin.fingerprint, True, True, twin.examples, twin.report)
    (tmp_path / "report").mkdir()
    window_data.write_report([twin, gold], [], {}, "w", tmp_path / "report")
    [said] = [event["text"] for _, event in events.read(event_log) if event["kind"] == "warning"]
    assert "15 of 15 images of the golden set" in said


def test_a_span_that_changed_fails_the_run_and_refuses_no_data(parts, tmp_path):
    changed = Part("span-1", "another", False, True, parts[0].examples, parts[0].report)
    with pytest.raises(SafelightError, match="span-1 changed while it was read") as raised:
        window_data.check([changed, parts[1]])
    # Refused data would put every new span of the window into quarantine.
    assert not isinstance(raised.value, DataRefused)
    window_data.check(parts)


def test_a_window_without_judges_is_refused(tmp_path):
    only = span(tmp_path, "span-1", {"a": (5, 1, 2), "b": (4, 1, 2)}, judged=False)
    (tmp_path / "report").mkdir()
    with pytest.raises(DataRefused, match="no image in test"):
        window_data.write_report([only], [], {}, "w", tmp_path / "report")
