"""Statistics without Beam: the same as TFX's own executor finds on Beam."""

from __future__ import annotations

import math
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from tensorflow_metadata.proto.v0 import statistics_pb2
from tfx.types.standard_artifacts import Examples, ExampleStatistics
from tfx_bsl.tfxio import dataset_options, tf_example_record

from components import image_statistics
from components.image_statistics import Executor, in_process
from pipeline import graph
from pipeline.config import Config
from pipeline.validation import statistics
from tests import examples, made
from tests.examples import BEAM_ARGS, artifact, execute

SPLITS = ("train", "eval")


def rows(count: int) -> list:
    """Returns Examples, among them some with troubles that statistics have to show."""
    found = [
        examples.example(examples.encoded(made.picture(label, index)), label, f"{label}/{index}")
        for label in ("red", "blue")
        for index in range(count)
    ]
    feature = [row.features.feature for row in found]
    feature[0]["brightness"].float_list.value[0] = math.nan
    del feature[1]["format"]
    feature[2]["label"].bytes_list.value[0] = "grün".encode()
    feature[3]["channel_mean"].float_list.value.extend([0.5] * 3)
    return found


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("examples")
    for split, count in zip(SPLITS, (12, 4), strict=True):
        examples.write_split(root, split, rows(count))
    return root


def counted(stored: Path, out: Path) -> dict[str, statistics_pb2.DatasetFeatureStatistics]:
    """Returns what the executor writes of each split."""
    written = artifact(ExampleStatistics, out)
    execute(
        Executor,
        {"examples": artifact(Examples, stored, SPLITS)},
        {"statistics": written},
        stats_options_json=statistics.statistics_options().to_json(),
        code="1",
    )
    assert written.split_names == artifact(Examples, stored, SPLITS).split_names
    found = {}
    for split in SPLITS:
        parsed = statistics_pb2.DatasetFeatureStatisticsList()
        parsed.ParseFromString((out / f"Split-{split}" / "FeatureStats.pb").read_bytes())
        [found[split]] = parsed.datasets
    return found


def rounded(dataset: statistics_pb2.DatasetFeatureStatistics) -> dict[str, object]:
    """Returns the features by name; sums are added up in another order, so means are rounded."""
    for feature in dataset.features:
        for name in ("mean", "std_dev"):
            if feature.HasField("num_stats"):
                exact = getattr(feature.num_stats, name)
                setattr(feature.num_stats, name, float(f"{exact:.12g}"))
    return {".".join(feature.path.step): str(feature) for feature in dataset.features}


def test_the_same_is_counted_as_on_beam(stored, tmp_path, monkeypatch):
    ours = counted(stored, tmp_path / "ours")
    monkeypatch.setattr(image_statistics, "in_process", lambda args: False)
    monkeypatch.setattr(statistics, "count", None)  # nobody may call it
    beams = counted(stored, tmp_path / "beam")
    for split in SPLITS:
        assert ours[split].num_examples == beams[split].num_examples > 0
        assert rounded(ours[split]) == rounded(beams[split])


@pytest.mark.parametrize(
    ("more", "alone"),
    [
        ([], True),
        (["--direct_num_workers=4"], False),
        (["--direct_running_mode=multi_processing"], False),
        (["--runner=FlinkRunner"], False),
    ],
    ids=["alone", "workers", "processes", "cluster"],
)
def test_only_beam_in_one_process_is_done_without(more, alone):
    assert in_process([*BEAM_ARGS, *more]) is alone


@pytest.mark.current
def test_beam_is_told_to_stay_in_this_process_and_downloads_no_program(caplog):
    args = graph.beam_args(Config())
    assert in_process(args)
    with caplog.at_level("INFO"), beam.Pipeline(options=PipelineOptions(args)) as pipeline:
        _ = pipeline | beam.Create([1, 2]) | beam.Map(str)
    assert "prism" not in caplog.text.lower()


def test_beam_without_a_word_on_it_is_not_done_without():
    assert not in_process([])


def test_batches_add_up(stored):
    options = statistics.statistics_options()
    source = tf_example_record.TFExampleRecord(
        str(stored / "Split-train" / "*"), schema=options.schema, telemetry_descriptors=["test"]
    )
    found = [
        statistics.count(
            source.RecordBatches(
                dataset_options.RecordBatchesOptions(batch_size=size, num_epochs=1, shuffle=False)
            ),
            options,
        )
        for size in (5, 1000)
    ]
    one, many = (rounded(result.datasets[0]) for result in found)
    assert one == many


def test_no_batches_are_no_examples():
    found = statistics.count([], statistics.statistics_options())
    assert [dataset.num_examples for dataset in found.datasets] == [0]
