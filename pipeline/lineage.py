"""What identifies a run: fingerprints of data, configuration and code, and what it is given."""

from __future__ import annotations

from pipeline import fingerprint
from pipeline.config import Config

# The modules that a node's own code starts from; what they import is followed.
_SOURCES = {
    "ImageExampleGen": ("components.image_example_gen",),
    "ImageSchemaGen": ("components.image_schema_gen", "schemas/image.pbtxt"),
    "ValidationGate": ("components.validation_gate",),
    "Transform": ("components.image_transform", "pipeline.transform"),
    "Trainer": ("pipeline.train", "pipeline.train_child"),
    "Evaluator": ("pipeline.evaluate",),
    "Predictor": ("components.predictor",),
    "ServingCheck": ("components.serving_check", "pipeline.serving_child"),
    "BlessingGate": ("components.blessing_gate",),
    "Pusher": ("components.versioned_pusher",),
}

# The sections that decide what a model is and whether it is blessed; the others say where and how.
_LINEAGE_SECTIONS = ("ingest", "validation", "transform", "train", "evaluate", "serving")


def code() -> dict[str, str]:
    """Returns the fingerprint of each node's own sources; TFX's own nodes have none."""
    return {node: fingerprint.of_sources(*modules) for node, modules in _SOURCES.items()}


def of(data: str, config: Config) -> dict[str, str]:
    """Returns the fingerprints of `data` (given as one), of the configuration and of the code."""
    sections = {name: getattr(config, name).model_dump(mode="json") for name in _LINEAGE_SECTIONS}
    return {
        "data": data,
        "config": fingerprint.of_value(sections),
        "code": fingerprint.of_value(code()),
    }
