"""BlessingGate: the one place that decides whether a model may be pushed."""

import json
from pathlib import Path

from tfx.components.evaluator import constants
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import ModelBlessing, ModelEvaluation

from components.artifacts import IngestReport, Predictions, ServingCheck
from pipeline import evaluate, verdict
from pipeline import predictions as answers
from pipeline.config import Evaluate
from pipeline.errors import SafelightError

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
) -> None:
    """Writes verdict.json, and marks the ModelBlessing as TFX's Pusher wants it.

    Args:
      evaluation: TFMA's results on `test`.
      predictions: the model's answers about the same images.
      champion_predictions: the champion's, or an empty directory.
      serving_check: serving_check.json.
      ingest_report: summary.json, which counts the images.
      blessing: custom property `blessed` 0 or 1, and the file BLESSED or NOT_BLESSED.
      options: JSON of config.Evaluate.
      code: fingerprint of the sources, for the cache key.

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
    )
    found = verdict.judge(evidence, Evaluate.model_validate_json(options))
    _write(blessing, found)


def _write(blessing: ModelBlessing, found: dict) -> None:
    folder = Path(blessing.uri)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / VERDICT).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if found["blessed"]:
        name, value = constants.BLESSED_FILE_NAME, constants.BLESSED_VALUE
    else:
        name, value = constants.NOT_BLESSED_FILE_NAME, constants.NOT_BLESSED_VALUE
    (folder / name).touch()
    blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY, value)
