"""ValidationGate: stops the run on broken data, which ExampleValidator only reports.

What is checked stands in `pipeline/validation/checks.py`, and what each finding means in
docs/validation.md.
"""

import json
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message
from tensorflow_metadata.proto.v0 import anomalies_pb2, statistics_pb2
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils
from tfx.types.artifact import Artifact
from tfx.types.standard_artifacts import ExampleAnomalies, ExampleStatistics

from components.artifacts import IngestReport, ValidationReport
from pipeline import events, refused
from pipeline.config import Evaluate, Validation
from pipeline.validation import checks

REPORT = "validation.json"
_STATISTICS = "FeatureStats.pb"  # StatisticsGen's name for it
_ANOMALIES = "SchemaDiff.pb"  # ExampleValidator's

_Proto = TypeVar("_Proto", bound=Message)


@component
def ValidationGate(
    statistics: InputArtifact[ExampleStatistics],
    anomalies: InputArtifact[ExampleAnomalies],
    ingest_report: InputArtifact[IngestReport],
    validation_report: OutputArtifact[ValidationReport],
    options: Parameter[str],
    code: Parameter[str],
    judged: Parameter[str] = "",
) -> None:
    """Writes validation.json, and tells every finding in mode `warn`.

    Args:
      statistics: StatisticsGen's, of each split.
      anomalies: ExampleValidator's, of each split.
      ingest_report: whose summary.json counts the images `per_class`.
      validation_report: `{"checks": [...]}`, each finding with its check, mode and state.
      options: JSON of config.Validation.
      code: fingerprint of the sources, for the cache key.
      judged: JSON of config.Evaluate, which says what test must be large enough for; "" asks
        nothing.

    Raises:
      DataRefused: a check in mode `fail` found something. TFX then drops the report, of which a
        copy stays with the run; the error's `reasons` carry the findings.
    """
    del code
    report_folder = Path(ingest_report.uri)
    summary = json.loads((report_folder / "summary.json").read_text(encoding="utf-8"))
    images = report_folder / "images.parquet"
    evidence = checks.Evidence(
        statistics=_read(statistics, _STATISTICS, statistics_pb2.DatasetFeatureStatisticsList),
        anomalies=_read(anomalies, _ANOMALIES, anomalies_pb2.Anomalies),
        counts=summary["per_class"],
        images=images if images.is_file() else None,
        judged=Evaluate.model_validate_json(judged) if judged else None,
    )
    found = checks.run(Validation.model_validate_json(options), evidence)
    folder = Path(validation_report.uri)
    folder.mkdir(parents=True, exist_ok=True)
    report = {"checks": [check.as_json() for check in found]}
    (folder / REPORT).write_text(
        json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    for check in found:
        if check.state == "warn":
            events.warn(check.message)
    if any(check.state == "fail" for check in found):
        refused.keep("ValidationGate", "validation_report", folder)
    checks.refuse(found)


def _read(artifact: Artifact, name: str, kind: type[_Proto]) -> dict[str, _Proto]:
    """Returns the proto of each of the artifact's splits."""
    protos = {}
    for split in artifact_utils.decode_split_names(artifact.split_names):
        file = Path(artifact_utils.get_split_uri([artifact], split)) / name
        proto = kind()
        proto.ParseFromString(file.read_bytes())
        protos[split] = proto
    return protos
