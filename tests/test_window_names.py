"""Spans whose files have the same names, joined into a window: who looks an image up finds it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from tfx.types.standard_artifacts import Examples, Model, TransformGraph

from components import artifacts
from components.serving_check import ServingCheck
from pipeline import features, window_data
from pipeline.blessing import slices
from pipeline.blessing.buckets import found_in
from pipeline.config import Evaluate, Serving
from pipeline.evaluator import predictions
from pipeline.evaluator.predictions import Predictions
from pipeline.report.collect import Record
from pipeline.window_data import Part
from pipeline.workdir import open_workdir
from tests import exports, made, reports
from tests.ingested import Ingested, ingest

LABELS = ("blue", "green", "red", "white")
# (name, files of each class, the number of its first picture): other pictures of the same names.
SPANS = (("span-1", 16, 0), ("span-2", 16, 100), ("golden", 12, 200))


class Window:
    """Three folders read by the real ImageExampleGen, joined as ImageWindow joins them."""

    def __init__(self, root: Path) -> None:
        self.spans: dict[str, Ingested] = {}
        parts = []
        for name, count, first in SPANS:
            data = root / "data" / name
            for label in LABELS:
                (data / label).mkdir(parents=True)
                for number in range(count):
                    picture = made.picture(label, first + number)
                    picture.save(data / label / f"{number:05d}.png")
            self.spans[name] = span = ingest(data, root / name)
            parts.append(
                Part(
                    name,
                    span.summary["fingerprint"],
                    name == "golden",
                    name != "span-1",
                    Path(span.artifact.uri),
                    span.report,
                )
            )
        self.examples, self.report = root / "window" / "examples", root / "window" / "report"
        self.report.mkdir(parents=True)
        window_data.link(parts, self.examples)
        self.summary = window_data.write_report(parts, [], {}, "window", self.report)
        exports.save_model(root / "model" / "Format-Serving")
        self.model = root / "model"
        self.predictions = root / "predictions"
        self.predictions.mkdir()
        export = predictions.Export(self.model / "Format-Serving")
        said = predictions.answer_split(export, str(self.examples), features.TEST)
        predictions.write(self.predictions, said, export)

    def rows(self, split: str) -> list[dict]:
        """Returns the rows of images.parquet about a split."""
        table = pq.read_table(self.report / "images.parquet")
        return table.filter(pc.equal(table["split"], split)).to_pylist()

    def records(self, split: str) -> list[tf.train.Example]:
        paths = sorted(str(path) for path in (self.examples / f"Split-{split}").iterdir())
        return [
            tf.train.Example.FromString(record.numpy()) for record in tf.data.TFRecordDataset(paths)
        ]

    def answers(self) -> Predictions:
        said = predictions.read(self.predictions)
        assert said is not None
        return said


@pytest.fixture(scope="module")
def window(tmp_path_factory) -> Window:
    return Window(tmp_path_factory.mktemp("window"))


def first(record: tf.train.Example, name: str) -> bytes:
    return record.features.feature[name].bytes_list.value[0]


def test_rows_stand_in_the_order_of_the_records(window):
    # The golden set has its images in all splits, mixed: or else this would test nothing.
    mixed = [row["split"] for row in window.spans["golden"].table("images")]
    assert set(mixed) == {"train", "eval", "test"} and mixed != sorted(
        mixed, key=features.SPLITS.index
    )
    for split in features.SPLITS:
        rows, records = window.rows(split), window.records(split)
        assert len(rows) == window.summary["examples"][split] > 0
        hashes = [first(record, features.SHA256) for record in records]
        assert [row["sha256"].encode() for row in rows] == hashes
        assert [row["label"].encode() for row in rows] == [first(one, "label") for one in records]
    test = window.rows("test")
    assert [row["id"] for row in test] == [first(one, "id") for one in window.records("test")]


def test_each_image_has_a_name_of_its_own(window):
    rows = [row for split in features.SPLITS for row in window.rows(split)]
    names = {row["sha256"]: row["id"] for row in rows}
    assert len(set(names.values())) == len(names) == len(rows)
    # The newest span's images keep theirs; an older one's test images are not in these splits.
    for name, before in (("span-1", b"span-1/"), ("span-2", b""), ("golden", b"golden/")):
        for row in window.spans[name].table("images"):
            if name != "span-1" or row["split"] != "test":
                assert names[row["sha256"]] == before + row["id"]


def test_all_but_the_name_of_a_golden_record_stays(window):
    was = {
        first(record, features.SHA256): record
        for split in features.SPLITS
        for record in window.spans["golden"].records(split)
    }
    renamed = [one for one in window.records("test") if first(one, "id").startswith(b"golden/")]
    assert len(renamed) == len(was) == 48
    for record in renamed:
        before = was[first(record, features.SHA256)]
        record.features.feature["id"].bytes_list.value[0] = first(before, "id")
        assert record == before


def test_the_gate_finds_slices_and_holds_a_floor(window):
    facts = pa.Table.from_pylist(window.rows("test"))
    options = Evaluate(min_slice_accuracy=0.5, min_slice_images=5)
    facts = slices.with_spans(facts, window.summary["spans"])
    checks, told = slices.judge(window.answers(), None, facts, options)
    assert [(check.name, check.passed) for check in checks] == [("slices", True)]
    spans = {row["bucket"]: row for row in told["slices"] if row["feature"] == "span"}
    assert spans["golden"]["examples"] == 48
    # The name before a golden image's own is its span, and no folder that it lies in.
    assert not [bucket for bucket in found_in(facts, None, 5) if bucket.feature == "source"]


def test_slices_of_other_images_are_not_judged_and_the_advice_can_be_followed(window):
    options = Evaluate(min_slice_accuracy=0.5)
    [check], told = slices.judge(window.answers(), None, None, options)
    assert not check.passed and told == {}
    assert "new workdir" in check.message and "--no-cache" not in check.message


def test_a_good_model_passes_the_serving_check(window, tmp_path):
    target = exports.artifact(artifacts.ServingCheck, tmp_path / "check")
    ServingCheck.test_call(
        examples=exports.artifact(Examples, window.examples, split_names='["test"]'),
        model=exports.artifact(Model, window.model),
        predictions=exports.artifact(artifacts.Predictions, window.predictions),
        transform_graph=exports.artifact(TransformGraph, tmp_path / "graph"),
        serving_check=target,
        options=Serving(agreement_images=0, check_images=1000).model_dump_json(),
        code="",
        champion="",
    )
    report = json.loads((tmp_path / "check" / "serving_check.json").read_text())
    assert report["passed"], report["message"]
    assert report["images"] == len(window.answers().ids)


def test_the_report_shows_the_images_that_it_names(window, tmp_path):
    workdir = open_workdir(tmp_path / "work")
    run = reports.new_run(workdir, window.report, "20250304T050607Z-0000")
    node = {"examples": str(window.examples), "ingest_report": str(window.report)}
    run.artifacts.write_text(json.dumps({"ImageExampleGen": node}))
    record = Record(workdir, run)
    rows = [row for split in features.SPLITS for row in window.rows(split)]
    stored = record.stored(row["id"] for row in rows)
    # The hash that ingest knows an image by, from the file that stands beside it in its record.
    of_file = {
        first(one, features.IMAGE): first(one, features.SHA256).decode()
        for split in features.SPLITS
        for one in window.records(split)
    }
    found = {name: of_file[image.encoded] for name, image in stored.items()}
    assert found == {row["id"]: row["sha256"] for row in rows}
    [name] = record.stored_by_name(["golden/red/00006.png"])
    assert name == "golden/red/00006.png"


def test_pairs_of_alike_images_are_named_as_the_images_are(tmp_path):
    def part(name: str, golden: bool) -> Part:
        folder = tmp_path / name
        folder.mkdir()
        pair = {"id": [b"red/1.png"], "other_id": [b"red/2.png"], "kind": ["near_duplicate"]}
        pq.write_table(pa.table(pair), folder / "duplicates.parquet")
        return Part(name, name, golden, True, folder, folder)

    parts = [part("span-1", False), part("span-2", False), part("golden", True)]
    (tmp_path / "out").mkdir()
    window_data._write_table("duplicates.parquet", parts, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "duplicates.parquet")
    assert table["id"].to_pylist() == [b"span-1/red/1.png", b"red/1.png", b"golden/red/1.png"]
    assert table["other_id"].to_pylist()[-1] == b"golden/red/2.png"


def test_a_source_is_a_folder_whichever_span_it_lies_in():
    labels = ["a", "b"] * 60
    names = [f"cam{row % 3}/{label}/{row}.png" for row, label in enumerate(labels)]
    ids = [f"golden/{name}" if row >= 60 else name for row, name in enumerate(names)]
    spans = ["span-2"] * 60 + ["golden"] * 60
    facts = pa.table({"id": [name.encode() for name in ids], "label": labels, "span": spans})
    found = found_in(facts, ["source"], 30)
    assert {bucket.name: len(bucket.rows) for bucket in found} == dict.fromkeys(
        ("cam0", "cam1", "cam2"), 40
    )
