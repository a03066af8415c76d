"""One model before the judges: the pipeline's own stages, in the order of its graph.

    ended = measure(case, options)
    found = ended or decide(case, options, folder)

Evaluator's executor and the functions of Predictor, ServingCheck, Robustness, BlessingGate and
VariantMaker run on artifacts on disk, as TFX would run them. Nothing is judged here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import standard_artifacts as standard
from tfx.types.artifact import Artifact
from tfx.utils import proto_utils

from components import artifacts
from components.blessing_gate import VERDICT, BlessingGate
from components.image_evaluator import Executor
from components.predictor import Predictor
from components.robustness import Robustness
from components.serving_check import ServingCheck
from components.variant_maker import VariantMaker
from pipeline import graph
from pipeline.blessing import paired
from pipeline.config import Config, Section
from pipeline.evaluator import evaluate, predictions
from pipeline.features import TEST
from pipeline.variants import make

AnyArtifact = TypeVar("AnyArtifact", bound=Artifact)


@dataclass(frozen=True)
class Case:
    """A model, and what it is judged on.

    Attributes:
      examples: the artifact, with the split test.
      ingest_report: that of the same run.
      transform_graph: what training read the images through.
      model: the artifact: Format-Serving is below it.
      champion: a SavedModel, or None.
      folder: gets what every configuration has in common.
    """

    examples: Path
    ingest_report: Path
    transform_graph: Path
    model: Path
    champion: Path | None
    folder: Path


def measure(case: Case, options: Config) -> dict[str, Any] | None:
    """Runs Evaluator and Predictor; what they do depends on no key in which the profiles differ.

    Returns:
      None, or what `decide` returns of a model with which a stage ended in an error.
    """
    return _run(_measuring(case, options))


def decide(case: Case, options: Config, folder: Path) -> dict[str, Any]:
    """Runs the stages behind those, up to the gate, by this configuration.

    Args:
      case: measured.
      options: the whole configuration.
      folder: gets the artifacts.

    Returns:
      `blessed`; `by`, the checks that failed, or the stage that ended the run with an error
      (`error`); `reasons`; and, with a champion, `loss` (of accuracy, on test), `disagreement` (the
      share of test images that one of the two alone has right) and `images`.
    """
    ended = _run(_deciding(case, options, folder))
    if ended is not None:
        return ended
    verdict = json.loads((folder / "blessing" / VERDICT).read_text(encoding="utf-8"))
    return {
        "blessed": verdict["blessed"],
        "by": [check["name"] for check in verdict["checks"] if not check["passed"]],
        "reasons": verdict["reasons"],
        "error": False,
        **_compared(case),
    }


def _run(stages: Mapping[str, Callable[[], None]]) -> dict[str, Any] | None:
    for name, stage in stages.items():
        try:
            stage()
        except Exception as error:  # noqa: BLE001 - whatever it is ends the run: nothing is pushed
            lines = str(error).strip().splitlines() or [""]
            said = f"{type(error).__name__}: {lines[0][:300]}"
            return {"blessed": False, "by": [f"{name} failed"], "reasons": [said], "error": True}
    return None


def decide_variant(
    case: Case, name: str, options: Config, schema: Path, examples: Path, folder: Path
) -> dict[str, Any]:
    """Has a smaller form made of a model as if that were blessed.

    Args:
      case: measured.
      name: of the variant.
      options: the whole configuration, with `train` and `transform` as the model has them.
      schema: the artifact's directory.
      examples: the artifact whose split train the converter takes its ranges from.
      folder: gets the artifacts.

    Returns:
      What `decide` does, of that form; the loss is that against the model itself.
    """
    blessing = _at(standard.ModelBlessing, folder / "blessing")
    blessing.set_int_custom_property("blessed", 1)
    variants = options.variants.model_copy(update={"names": (name,)})
    sections = {"variants": variants, "train": options.train, "transform": options.transform}
    told: dict[str, Any] = {key: one.model_dump(mode="json") for key, one in sections.items()}
    VariantMaker.test_call(
        examples=_at(standard.Examples, examples),
        model=_at(standard.Model, case.model),
        transform_graph=_at(standard.TransformGraph, case.transform_graph),
        schema=_at(standard.Schema, schema),
        predictions=_at(artifacts.Predictions, case.folder / "predictions"),
        blessing=blessing,
        variants=_at(artifacts.Variants, folder / "variants"),
        options=json.dumps({**told, "confidence": options.evaluate.confidence}),
        code="",
    )
    found = json.loads((folder / "variants" / make.FILE).read_text(encoding="utf-8"))
    entry = found["variants"][name]
    failed = [check for check in entry["checks"] if not check["passed"]]
    return {
        "blessed": entry["blessed"],
        "by": [check["name"] for check in failed],
        "reasons": [check["message"] for check in failed],
        "error": entry["accuracy"] is None,
        "loss": entry["drop"],
        "images": found["images"],
    }


def _served(case: Case) -> dict[str, Any]:
    return {
        "examples": _at(standard.Examples, case.examples, split_names=json.dumps([TEST])),
        "model": _at(standard.Model, case.model),
    }


def _predictions(case: Case) -> dict[str, Any]:
    names = ("predictions", "champion_predictions")
    return {name: _at(artifacts.Predictions, case.folder / name) for name in names}


def _measuring(case: Case, options: Config) -> dict[str, Callable[[], None]]:
    served, champion = _served(case), str(case.champion or "")

    def evaluator() -> None:
        context = BaseBeamExecutor.Context(beam_pipeline_args=graph.beam_args(options))
        unread = _at(standard.ModelBlessing, case.folder / "unread")
        Executor(context).Do(
            {name: [artifact] for name, artifact in served.items()},
            {
                "evaluation": [_at(standard.ModelEvaluation, case.folder / "evaluation")],
                "blessing": [unread],
            },
            {
                "eval_config": proto_utils.proto_to_json(evaluate.eval_config(options.evaluate)),
                "example_splits": json.dumps([TEST]),
                "module_path": evaluate.__name__,
            },
        )

    def predictor() -> None:
        Predictor.test_call(**served, **_predictions(case), champion=champion, code="")

    return {"Evaluator": evaluator, "Predictor": predictor}


def _deciding(case: Case, options: Config, folder: Path) -> dict[str, Callable[[], None]]:
    served, champion = _served(case), str(case.champion or "")
    checked = _at(artifacts.ServingCheck, folder / "serving_check")
    spoiled = _at(artifacts.Robustness, folder / "robustness")

    def serving_check() -> None:
        ServingCheck.test_call(
            **served,
            predictions=_predictions(case)["predictions"],
            transform_graph=_at(standard.TransformGraph, case.transform_graph),
            serving_check=checked,
            options=_json(options.serving),
            code="",
            champion=champion,
        )

    def robustness() -> None:
        Robustness.test_call(
            **served,
            robustness=spoiled,
            champion=champion,
            count=options.robustness.images,
            confidence=options.evaluate.confidence,
            code="",
        )

    def gate() -> None:
        BlessingGate.test_call(
            evaluation=_at(standard.ModelEvaluation, case.folder / "evaluation"),
            **_predictions(case),
            serving_check=checked,
            ingest_report=_at(artifacts.IngestReport, case.ingest_report),
            blessing=_at(standard.ModelBlessing, folder / "blessing"),
            options=_json(options.evaluate),
            calibration_options=_json(options.calibration),
            robustness=spoiled if options.robustness.images else None,
            robustness_options=_json(options.robustness),
            code="",
        )

    return {
        "ServingCheck": serving_check,
        **({"Robustness": robustness} if options.robustness.images else {}),
        "BlessingGate": gate,
    }


def _compared(case: Case) -> dict[str, Any]:
    ours = predictions.read(case.folder / "predictions")
    theirs = predictions.read(case.folder / "champion_predictions")
    if ours is None or theirs is None:
        return {}
    right, was_right = ours.correct(), theirs.correct()
    return {
        "loss": float(was_right.mean() - right.mean()),
        "disagreement": sum(paired.alone(right, was_right)) / len(right),
        "images": int(np.size(right)),
    }


def _at(kind: type[AnyArtifact], place: Path, **properties: str) -> AnyArtifact:
    artifact = kind()
    artifact.uri = str(place)
    for name, value in properties.items():
        setattr(artifact, name, value)
    return artifact


def _json(section: Section) -> str:
    return json.dumps(section.model_dump(mode="json"))
