"""A window of spans: from each span's own artifacts to one set of examples, report and statistics.

Each span is ingested and counted once, by nodes of its own; here nothing is decoded or counted
again. The nodes have the ids of those that a run on one folder has, so that all that stands behind
them reads a window as it reads a folder.
"""

import json
import shutil
from pathlib import Path
from typing import List  # noqa: UP035 - TFX reads the annotation, and knows this one

from tensorflow_metadata.proto.v0 import statistics_pb2
from tfx.components.util import examples_utils
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Examples, ExampleStatistics

from components.artifacts import IngestReport
from pipeline import window_data
from pipeline.errors import SafelightError
from pipeline.validation import merged_statistics

_STATISTICS = "FeatureStats.pb"


@component
def ImageWindow(
    span_examples: InputArtifact[List[Examples]],  # noqa: UP006
    span_reports: InputArtifact[List[IngestReport]],  # noqa: UP006
    examples: OutputArtifact[Examples],
    ingest_report: OutputArtifact[IngestReport],
    spans: Parameter[str],
    fingerprint: Parameter[str],
    known_classes: Parameter[str],
    known_columns: Parameter[str],
    code: Parameter[str],
) -> None:
    """Links the spans' examples and writes one report of them all.

    Args:
      span_examples: each span's, in any order; their names hold the producing node's.
      span_reports: each span's.
      examples: splits train, eval and test of the window, and calib where the spans have it.
        Beside them, as the folder Split-older, the test images of spans that no longer judge.
      ingest_report: as ImageExampleGen writes it, and in summary.json `spans` and `older`.
      spans: JSON list of `{"name", "fingerprint", "golden", "judged"}`, in the window's order.
      fingerprint: of the window.
      known_classes: JSON list: names whose order is kept.
      known_columns: JSON object: the same for the columns of further heads.
      code: fingerprint of the sources, for the cache key.

    Raises:
      DataRefused: a split is empty.
      SafelightError: a span changed while it was read.
    """
    del code
    folder, report = Path(examples.uri), Path(ingest_report.uri)
    for place in (folder, report):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    parts = _parts(json.loads(spans), span_examples, span_reports)
    window_data.check(parts)
    window_data.link(parts, folder)
    window_data.write_report(
        parts,
        json.loads(known_classes or "[]"),
        json.loads(known_columns or "{}"),
        fingerprint,
        report,
    )
    examples.split_names = artifact_utils.encode_split_names(list(window_data.splits_of(parts)))
    examples_utils.set_payload_format(examples, example_gen_pb2.FORMAT_TF_EXAMPLE)
    examples_utils.set_file_format(examples, "tfrecords_gzip")


@component
def StatisticsWindow(
    span_statistics: InputArtifact[List[ExampleStatistics]],  # noqa: UP006
    statistics: OutputArtifact[ExampleStatistics],
    code: Parameter[str],
) -> None:
    """Merges the spans' statistics, split by split; the golden set is not among them.

    Args:
      span_statistics: StatisticsGen's of each span.
      statistics: of the window.
      code: fingerprint of the sources, for the cache key.
    """
    del code
    splits = artifact_utils.decode_split_names(span_statistics[0].split_names)
    for split in splits:
        parts = []
        for uri in artifact_utils.get_split_uris(span_statistics, split):
            part = statistics_pb2.DatasetFeatureStatisticsList()
            part.ParseFromString((Path(uri) / _STATISTICS).read_bytes())
            parts.append(part)
        folder = Path(statistics.uri) / f"Split-{split}"
        folder.mkdir(parents=True, exist_ok=True)
        merged = merged_statistics.merge(parts)
        (folder / _STATISTICS).write_bytes(merged.SerializeToString())
    statistics.split_names = artifact_utils.encode_split_names(list(splits))
    statistics.span = 0


def _parts(
    spans: list[dict], examples: list[Examples], reports: list[IngestReport]
) -> list[window_data.Part]:
    """Returns the window in its order; an artifact's folder names the node that made it."""
    of_examples = {_producer(one.uri): Path(one.uri) for one in examples}
    of_reports = {_producer(one.uri): Path(one.uri) for one in reports}
    parts = []
    for span in spans:
        node = f"ImageExampleGen.{span['name']}"
        if node not in of_examples or node not in of_reports:
            raise SafelightError(f"The examples of {span['name']} are missing. Run again.")
        parts.append(window_data.Part(
            name=span["name"],
            fingerprint=span["fingerprint"],
            golden=span["golden"],
            judged=span["judged"],
            examples=of_examples[node],
            report=of_reports[node],
        ))  # fmt: skip
    return parts


def _producer(uri: str) -> str:
    """Returns the node's id in <root>/<node>/<output>/<execution>."""
    return Path(uri).parts[-3]
