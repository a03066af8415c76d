"""ImageSchemaGen: the curated schema, with this data's classes as the label's domain.

TFX's ImportSchemaGen caches by the file's path and not by its content, and the classes are data:
they come from the ingest report, in the order that ingest fixed.
"""

import json
from pathlib import Path

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Schema

from components.artifacts import IngestReport
from pipeline import heads as model_heads
from schemas import image_schema


@component
def ImageSchemaGen(
    ingest_report: InputArtifact[IngestReport],
    schema: OutputArtifact[Schema],
    options: Parameter[str],
    code: Parameter[str],
    heads: Parameter[str] = "[]",
) -> None:
    """Writes `schema.pbtxt`, the same to the byte for the same classes.

    Args:
      ingest_report: whose summary.json lists `classes` in order, and the `class_columns`.
      schema: the curated schema, completed.
      options: JSON of config.Validation, part of the cache key.
      code: fingerprint of the sources, part of the cache key.
      heads: JSON of the heads beside the label, as heads.data_options gives them.
    """
    del options, code
    summary = json.loads((Path(ingest_report.uri) / "summary.json").read_text(encoding="utf-8"))
    configured = json.loads(heads)
    of_column = summary.get("class_columns", {})
    classes = {
        head["name"]: of_column[head.get("column", head["name"])]
        for head in configured
        if head["kind"] == "class"
    }
    text = image_schema.completed(summary["classes"], model_heads.beside(configured, classes))
    folder = Path(schema.uri)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / image_schema.FILE_NAME).write_text(text, encoding="utf-8")
