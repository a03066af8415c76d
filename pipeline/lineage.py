"""What identifies a run: fingerprints of data, configuration and code, and what it is given."""

from __future__ import annotations

from pathlib import Path

from pipeline import fingerprint, own_model, presets, search
from pipeline.config import Config, Train, Tune

# The modules that a node's own code starts from; what they import is followed.
_SOURCES = {
    "ImageExampleGen": ("components.image_example_gen",),
    "ImageWindow": ("components.image_window",),
    "StatisticsGen": ("components.image_statistics",),
    "ImageSchemaGen": ("components.image_schema_gen", "schemas/image.pbtxt"),
    "ValidationGate": ("components.validation_gate",),
    "Transform": ("components.image_transform", "pipeline.transform"),
    "Tuner": ("components.search_tuner", "pipeline.trainer.tune", "pipeline.trainer.tune_child"),
    "Trainer": ("pipeline.trainer.train", "pipeline.trainer.train_child"),
    "Evaluator": ("components.image_evaluator", "pipeline.evaluator.evaluate"),
    "Predictor": ("components.predictor",),
    "ServingCheck": ("components.serving_check", "pipeline.blessing.serving_child"),
    "Robustness": ("components.robustness",),
    "BlessingGate": ("components.blessing_gate",),
    "Explainer": ("components.explainer", "pipeline.explain.child"),
    "VariantMaker": (
        "components.variant_maker",
        "pipeline.variants.child",
        "pipeline.variants.prune_child",
    ),
    "Pusher": ("components.versioned_pusher",),
    "VariantPusher": ("components.variant_pusher",),
}

# The sections that decide what a model is and whether it is blessed; the others say where and how.
_LINEAGE_SECTIONS = (
    "ingest",
    "validation",
    "transform",
    "tune",
    "train",
    "calibration",
    "evaluate",
    "serving",
    "robustness",
)


# What builds the network: a change of the user's own module, or of the weights that a backbone
# starts from, re-runs these.
_BUILDERS = ("Tuner", "Trainer")


def code(train: Train, tune: Tune | None = None) -> dict[str, str]:
    """Returns the fingerprint of each node's own sources; TFX's own nodes have none.

    Args:
      train: the section.
      tune: with what a search may put in train's place.

    Raises:
      ConfigError: train.model, or a model of the space, names a module that isn't there.
    """
    tune = tune or Tune()
    found = {node: fingerprint.of_sources(*modules) for node, modules in _SOURCES.items()}
    own = [own_model.digest(name) for name in search.named("model", train, tune) if name]
    # Not the path alone: another file may come to stand there.
    named = [where for key in presets.PATHS for where in search.named(key, train, tune) if where]
    own += [fingerprint.of_path(path) for path in map(Path, named) if path.exists()]
    if own:
        found.update({node: fingerprint.of_value([found[node], *own]) for node in _BUILDERS})
    return found


def of(data: str, config: Config) -> dict[str, str]:
    """Returns the fingerprints of `data` (given as one), of the configuration and of the code.

    Raises:
      ConfigError: train.model, or a model of the space, names a module that isn't there.
    """
    sections = {name: getattr(config, name).model_dump(mode="json") for name in _LINEAGE_SECTIONS}
    return {
        "data": data,
        "config": fingerprint.of_value(sections),
        "code": fingerprint.of_value(code(config.train, config.tune)),
    }
