"""BlessingGate: the one place that decides whether a model may be pushed."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tfx.components.evaluator import constants
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import ModelBlessing, ModelEvaluation

from components import artifacts
from components.artifacts import IngestReport, Predictions, ServingCheck
from pipeline.blessing import forgetting, slices, verdict
from pipeline.blessing import robustness as spoiled
from pipeline.config import Calibration, Evaluate
from pipeline.config import Robustness as RobustnessOptions
from pipeline.errors import SafelightError
from pipeline.evaluator import evaluate
from pipeline.evaluator import predictions as answers
from pipeline.features import TEST
from pipeline.window_data import OLDER

VERDICT = "verdict.json"


@component
def BlessingGate(
    evaluation: InputArtifact[ModelEvaluation],
    predictions: InputArtifact[Predictions],
    champion_predictions: InputArtifact[Predictions],
    serving_check: InputArtifact[ServingCheck],
    ingest_report: InputArtifact[IngestReport],
    blessing: OutputArtifact[ModelBlessing],
    options: Parameter[str],
    code: Parameter[str],
    robustness: InputArtifact[artifacts.Robustness] = None,
    robustness_options: Parameter[str] = "{}",
    calibration_options: Parameter[str] = "{}",
) -> None:
    """Writes verdict.json, and marks the ModelBlessing as TFX's Pusher wants it.

    Args:
      evaluation: TFMA's results on `test`.
      predictions: the model's answers about the same images.
      champion_predictions: the champion's, or an empty directory.
      serving_check: serving_check.json.
      ingest_report: summary.json, which counts the images, and images.parquet, their facts.
      blessing: custom property `blessed` 0 or 1, and the file BLESSED or NOT_BLESSED.
      options: JSON of config.Evaluate.
      code: fingerprint of the sources, for the cache key.
      robustness: robustness.json, where that node is in the graph.
      robustness_options: JSON of config.Robustness.
      calibration_options: JSON of config.Calibration.

    Raises:
      SafelightError: an input is damaged. A model that fails a check is no error here.
    """
    del code
    answered = answers.read(Path(predictions.uri))
    if answered is None:
        raise SafelightError(f"There are no predictions at {predictions.uri}. Run again.")
    summary = json.loads((Path(ingest_report.uri) / "summary.json").read_text(encoding="utf-8"))
    served = json.loads((Path(serving_check.uri) / "serving_check.json").read_text("utf-8"))
    evidence = verdict.Evidence(
        measured=evaluate.read_metrics(evaluation.uri),
        predictions=answered,
        champion=answers.read(Path(champion_predictions.uri)),
        serving=served,
        test_images=summary["examples"]["test"],
        facts=slices.with_spans(
            _facts(Path(ingest_report.uri) / "images.parquet"), summary.get("spans", ())
        ),
        robustness=_robustness(robustness),
        older=_older(summary, Path(predictions.uri), Path(champion_predictions.uri)),
    )
    found = verdict.judge(
        evidence,
        Evaluate.model_validate_json(options),
        RobustnessOptions.model_validate_json(robustness_options),
        Calibration.model_validate_json(calibration_options),
    )
    _write(blessing, found)


def _facts(file: Path) -> pa.Table | None:
    """Returns what ingest knows of each test image, in the order of the records."""
    if not file.is_file():
        return None
    rows = pq.read_table(file)
    return rows.filter(pc.equal(rows.column("split"), TEST))


def _older(summary: dict, ours: Path, theirs: Path) -> forgetting.Older | None:
    """Returns what both models say about a window's older spans; None where there are none."""
    answered = answers.read(ours / OLDER)
    if answered is None or not summary.get("older"):
        return None
    spans = [(one["name"], one["images"]) for one in summary["older"]]
    return forgetting.Older(spans, answered, answers.read(theirs / OLDER))


def _robustness(artifact: artifacts.Robustness | None) -> dict | None:
    if artifact is None:
        return None
    return json.loads((Path(artifact.uri) / spoiled.FILE).read_text(encoding="utf-8"))


def _write(blessing: ModelBlessing, found: dict) -> None:
    folder = Path(blessing.uri)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / VERDICT).write_text(_text(found) + "\n", encoding="utf-8")
    if found["blessed"]:
        name, value = constants.BLESSED_FILE_NAME, constants.BLESSED_VALUE
    else:
        name, value = constants.NOT_BLESSED_FILE_NAME, constants.NOT_BLESSED_VALUE
    (folder / name).touch()
    blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY, value)


def _text(told: dict, margin: str = "") -> str:
    """Returns JSON for people's eyes, with a line for each row of a confusion matrix.

    With one for each number, as `indent` would have it, that of 1,000 classes has a million.
    """
    inner = margin + "  "
    lines = []
    for key, value in told.items():
        if key == "confusion" and isinstance(value, list):
            rows = [f"{inner}  {json.dumps(row, separators=(',', ':'))}" for row in value]
            written = "\n".join(["[", ",\n".join(rows), f"{inner}]"])
        elif isinstance(value, dict) and value:
            written = _text(value, inner)
        else:
            written = json.dumps(value, indent=2).replace("\n", "\n" + inner)
        lines.append(f"{inner}{json.dumps(key)}: {written}")
    return "\n".join(["{", ",\n".join(lines), margin + "}"])
