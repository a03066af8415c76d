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


class Robustness(Artifact):
    """robustness.json: what is right of test images under noise, blur and the like."""

    TYPE_NAME = "SafelightRobustness"


class Explanations(Artifact):
    """explanations.json, and the pictures that it names: what the model looked at."""

    TYPE_NAME = "SafelightExplanations"


class Variants(Artifact):
    """variants.json, and a folder for each smaller form of the model."""

    TYPE_NAME = "SafelightVariants"


class Exports(Artifact):
    """exports.json: where each blessed variant was published."""

    TYPE_NAME = "SafelightExports"
