"""ImageExampleGen run as the component would, and its artifacts opened."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow.parquet as pq
import tensorflow as tf
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import standard_artifacts

from components.artifacts import IngestReport
from components.image_example_gen import Executor
from components.image_statistics import IN_MEMORY_RUNNER
from pipeline import features
from pipeline.config import Ingest
from pipeline.ingest.scan import scan

BEAM_ARGS = [f"--runner={IN_MEMORY_RUNNER}", "--direct_running_mode=in_memory"]


@dataclass(frozen=True)
class Ingested:
    """The artifacts of one ingest, opened."""

    artifact: standard_artifacts.Examples
    report: Path
    summary: dict[str, Any]

    def shards(self, split: str) -> list[Path]:
        return sorted((Path(self.artifact.uri) / f"Split-{split}").iterdir())

    def records(self, split: str) -> list[tf.train.Example]:
        paths = [str(path) for path in self.shards(split)]
        return [
            tf.train.Example.FromString(record.numpy()) for record in tf.data.TFRecordDataset(paths)
        ]

    def table(self, name: str) -> list[dict[str, Any]]:
        return pq.read_table(self.report / f"{name}.parquet").to_pylist()

    def split_of(self) -> dict[bytes, str]:
        return {row["id"]: row["split"] for row in self.table("images")}

    def reasons(self) -> dict[bytes, str]:
        return {row["path"]: row["reason"] for row in self.table("quarantine")}

    def digest(self) -> str:
        total = hashlib.sha256()
        for split in features.SPLITS:
            for path in self.shards(split):
                total.update(path.name.encode() + path.read_bytes())
        return total.hexdigest()


def ingest(
    data: Path | str,
    out: Path,
    known_classes: tuple[str, ...] = (),
    known_columns: dict[str, list[str]] | None = None,
    calib: float = 0.0,
    **options: Any,
) -> Ingested:
    """Runs the executor as the component would."""
    settings = Ingest(**options)
    examples, report = standard_artifacts.Examples(), IngestReport()
    examples.uri, report.uri = str(out / "examples"), str(out / "report")
    executor = Executor(
        BaseBeamExecutor.Context(make_beam_pipeline_fn=lambda: beam.Pipeline(argv=BEAM_ARGS))
    )
    executor.Do(
        {},
        {"examples": [examples], "ingest_report": [report]},
        {
            "data": str(data),
            "fingerprint": scan(str(data), settings).fingerprint,
            "known_classes": json.dumps(known_classes),
            "known_columns": json.dumps(known_columns or {}),
            "options": settings.model_dump_json(),
            "calib": calib,
            "code": "test",
        },
    )
    summary = json.loads((out / "report" / "summary.json").read_text())
    return Ingested(examples, out / "report", summary)
