"""Artifact types of our own, where TFX has none. Each is a directory of documented files."""

from tfx.types.artifact import Artifact


class IngestReport(Artifact):
    """summary.json, images.parquet (a row for each image kept) and quarantine.parquet."""

    TYPE_NAME = "SafelightIngestReport"


class ValidationReport(Artifact):
    """validation.json: each check of the gate with its state."""

    TYPE_NAME = "SafelightValidationReport"


class Predictions(Artifact):
    """predictions.parquet: id, split, label, predicted, probabilities; a row an image."""

    TYPE_NAME = "SafelightPredictions"


class ServingCheck(Artifact):
    """serving_check.json: what a clean process served, beside what evaluation said."""

    TYPE_NAME = "SafelightServingCheck"
