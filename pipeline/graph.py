"""The pipeline, node by node, in the order that the data flows: the table of contents.

Every runner builds the same graph from the same configuration; what differs between a laptop and
a cluster (where artifacts lie, which champion is current) is in `Given`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from tfx.components.example_validator.component import ExampleValidator
from tfx.components.trainer.component import Trainer
from tfx.dsl.components.base.base_node import BaseNode
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import trainer_pb2
from tfx.types.channel_utils import union

from components.blessing_gate import BlessingGate
from components.explainer import Explainer
from components.image_evaluator import image_evaluator
from components.image_example_gen import ImageExampleGen
from components.image_schema_gen import ImageSchemaGen
from components.image_statistics import IN_MEMORY_RUNNER, ImageStatistics
from components.image_transform import image_transform
from components.image_window import ImageWindow, StatisticsWindow
from components.predictor import Predictor
from components.robustness import Robustness
from components.search_tuner import search_tuner
from components.serving_check import ServingCheck
from components.validation_gate import ValidationGate
from components.variant_maker import VariantMaker
from components.variant_pusher import VariantPusher
from components.versioned_pusher import versioned_pusher
from pipeline import heads, lineage
from pipeline.config import Config, Section
from pipeline.evaluator import evaluate
from pipeline.features import EVAL, TRAIN
from pipeline.validation import statistics

NAME = "safelight"


@dataclass(frozen=True)
class Given:
    """What a run is given beside its configuration.

    `known_classes` is the class order to keep, `known_columns` that of the columns which class
    heads learn, `champion_uri` the directory of the version to beat ("" without one), and `lineage`
    (`data`, `config`, `code`, `known_classes`, `champion`) goes into the registry with whatever is
    pushed. `spans` is a window (`Request.spans`); `data` then only names the folder they lie in.
    """

    data: str
    known_classes: tuple[str, ...]
    champion_uri: str
    lineage: dict[str, Any]
    artifacts: str
    checkpoints: str
    serving_dir: str
    known_columns: Mapping[str, list[str]] = field(default_factory=dict)
    spans: tuple[Mapping[str, Any], ...] = ()

    @property
    def exports_dir(self) -> str:
        """The workdir's `exports/`: serving_dir is its `serving/<model>`."""
        return str(Path(self.serving_dir).parent.parent / "exports")


def build(config: Config, given: Given) -> Pipeline:
    """Returns the pipeline; `config` is resolved: nothing in it is left to be chosen."""
    code = lineage.code(config.train, config.tune)
    further = heads.beside(config.train.heads)

    # Images become tf.Examples: decoded once, bad files aside, each in its split. Facts and labels
    # are counted, never image bytes.
    source = (_window if given.spans else _folder)(config, given, code)
    examples = source.example_gen.outputs["examples"]
    ingest_report = source.example_gen.outputs["ingest_report"]
    counted = source.statistics_gen.outputs["statistics"]

    # The curated schema, completed with this data's classes in their order.
    schema_gen = ImageSchemaGen(
        ingest_report=ingest_report,
        options=_json(config.validation),
        code=code["ImageSchemaGen"],
        heads=json.dumps(heads.data_options(config.train)),
    )
    schema = schema_gen.outputs["schema"]

    # What departs from the schema, split by split.
    validator = ExampleValidator(statistics=counted, schema=schema)

    # ExampleValidator only reports: this stops the run on broken data.
    validation_gate = ValidationGate(
        statistics=counted,
        anomalies=validator.outputs["anomalies"],
        ingest_report=ingest_report,
        options=_json(config.validation),
        code=code["ValidationGate"],
        judged=_json(config.evaluate),
    )

    # One graph from encoded bytes to pixels, for training, evaluation and serving.
    transform = image_transform(
        examples=examples,
        schema=schema,
        custom_config={
            "transform": config.transform.model_dump(mode="json"),
            "heads": heads.data_options(config.train),
            "code": code["Transform"],
        },
    )
    transform.add_upstream_node(validation_gate)

    # Good values are searched for, where that was asked: each trial is a short training.
    tuner = None
    if config.tune.algorithm != "off":
        tuner = search_tuner(
            examples=examples,
            transform_graph=transform.outputs["transform_graph"],
            schema=schema,
            custom_config={
                "train": config.train.model_dump(mode="json"),
                "tune": config.tune.model_dump(mode="json"),
                "transform": config.transform.model_dump(mode="json"),
                "checkpoints": given.checkpoints,
                "code": code["Tuner"],
            },
        )

    # The network is fitted in a child process that owns the devices.
    trainer = Trainer(
        examples=examples,
        transform_graph=transform.outputs["transform_graph"],
        schema=schema,
        hyperparameters=tuner.outputs["best_hyperparameters"] if tuner else None,
        run_fn="pipeline.trainer.train.run_fn",
        train_args=trainer_pb2.TrainArgs(splits=[TRAIN]),
        eval_args=trainer_pb2.EvalArgs(splits=[EVAL]),
        custom_config={
            "train": config.train.model_dump(mode="json"),
            "transform": config.transform.model_dump(mode="json"),
            "checkpoints": given.checkpoints,
            "code": code["Trainer"],
            **({"calibration": config.calibration.fitting()} if config.calibration.on else {}),
            **_warm_start(config, given),
        },
    )
    model = trainer.outputs["model"]

    # TFMA's metrics on the exported model's own signatures, and its validation of the floors.
    evaluator = image_evaluator(
        examples=examples,
        model=model,
        eval_config=evaluate.eval_config(config.evaluate, code["Evaluator"], further),
    )

    # Each test image's probabilities, from the challenger and from the champion, written once.
    predictor = Predictor(
        examples=examples, model=model, champion=given.champion_uri, code=code["Predictor"]
    )

    # A clean process must serve real files as evaluation saw them, and the export must answer as
    # the network that was trained.
    serving_check = ServingCheck(
        examples=examples,
        model=model,
        predictions=predictor.outputs["predictions"],
        transform_graph=transform.outputs["transform_graph"],
        options=_json(config.serving),
        code=code["ServingCheck"],
        champion=given.champion_uri,
    )

    # Both models about test images that are spoiled on purpose, where that was asked.
    robustness = None
    if config.robustness.images:
        robustness = Robustness(
            examples=examples,
            model=model,
            champion=given.champion_uri,
            count=config.robustness.images,
            confidence=config.evaluate.confidence,
            code=code["Robustness"],
        )

    # The floors and the champion: the one blessing that Pusher obeys.
    blessing_gate = BlessingGate(
        evaluation=evaluator.outputs["evaluation"],
        predictions=predictor.outputs["predictions"],
        champion_predictions=predictor.outputs["champion_predictions"],
        serving_check=serving_check.outputs["serving_check"],
        ingest_report=ingest_report,
        options=_json(config.evaluate),
        calibration_options=_json(config.calibration),
        code=code["BlessingGate"],
        **_spoiled(robustness, config),
    )

    # What the model looked at, for mistakes and changed answers, where that was asked.
    explainer = None
    if config.explain.images:
        explainer = Explainer(
            examples=examples,
            model=model,
            transform_graph=transform.outputs["transform_graph"],
            predictions=predictor.outputs["predictions"],
            champion_predictions=predictor.outputs["champion_predictions"],
            options=_json(config.explain),
            code=code["Explainer"],
        )
        explainer.add_upstream_node(blessing_gate)

    # Smaller forms of a blessed model, each judged by itself.
    variant_maker = None
    if config.variants.names:
        variant_maker = VariantMaker(
            examples=examples,
            model=model,
            transform_graph=transform.outputs["transform_graph"],
            schema=schema,
            predictions=predictor.outputs["predictions"],
            blessing=blessing_gate.outputs["blessing"],
            options=_variant_options(config),
            code=code["VariantMaker"],
        )

    # The next version directory, then the registry.
    pusher = versioned_pusher(
        model=model,
        blessing=blessing_gate.outputs["blessing"],
        serving_dir=given.serving_dir,
        custom_config={"lineage": given.lineage, "code": code["Pusher"]},
    )

    # Blessed variants beside what was pushed, under the same version.
    variant_pusher = None
    if variant_maker:
        variant_pusher = VariantPusher(
            pushed_model=pusher.outputs["pushed_model"],
            variants=variant_maker.outputs["variants"],
            exports_dir=given.exports_dir,
            code=code["VariantPusher"],
        )

    return Pipeline(
        pipeline_name=NAME,
        pipeline_root=given.artifacts,
        components=[
            *source.spans,
            source.example_gen,
            schema_gen,
            source.statistics_gen,
            validator,
            validation_gate,
            transform,
            *([tuner] if tuner else []),
            trainer,
            evaluator,
            predictor,
            serving_check,
            *([robustness] if robustness else []),
            blessing_gate,
            *([explainer] if explainer else []),
            *([variant_maker] if variant_maker else []),
            pusher,
            *([variant_pusher] if variant_pusher else []),
        ],
        enable_cache=True,
        beam_pipeline_args=beam_args(config),
    )


class _Source(NamedTuple):
    """Where examples, ingest report and statistics come from, and the nodes behind those."""

    example_gen: BaseNode
    statistics_gen: BaseNode
    spans: Sequence[BaseNode] = ()


def _folder(config: Config, given: Given, code: Mapping[str, str]) -> _Source:
    """One place of data."""
    example_gen = _ingest(given.data, given.lineage["data"], given, config, code)
    return _Source(example_gen, _count(example_gen, config, code))


def _window(config: Config, given: Given, code: Mapping[str, str]) -> _Source:
    """Spans: each has nodes of its own, so that a new one costs only itself; then they are joined.

    The class order is settled where they are joined: another champion re-reads no span.
    """
    anew = replace(given, known_classes=(), known_columns={})
    read = {
        span["name"]: _ingest(span["path"], span["fingerprint"], anew, config, code).with_id(
            f"ImageExampleGen.{span['name']}"
        )
        for span in given.spans
    }
    counts = {
        name: _count(node, config, code).with_id(f"StatisticsGen.{name}")
        for name, node in read.items()
    }
    roles = ("name", "fingerprint", "golden", "judged")
    window = ImageWindow(
        span_examples=union([node.outputs["examples"] for node in read.values()]),
        span_reports=union([node.outputs["ingest_report"] for node in read.values()]),
        spans=json.dumps([{key: span[key] for key in roles} for span in given.spans]),
        fingerprint=given.lineage["data"],
        known_classes=json.dumps(given.known_classes),
        known_columns=json.dumps(given.known_columns, sort_keys=True),
        code=code["ImageWindow"],
    ).with_id("ImageExampleGen")
    trained = [counts[span["name"]] for span in given.spans if not span["golden"]]
    statistics_gen = StatisticsWindow(
        span_statistics=union([node.outputs["statistics"] for node in trained]),
        code=code["ImageWindow"],
    ).with_id("StatisticsGen")
    return _Source(window, statistics_gen, [*read.values(), *counts.values()])


def _ingest(
    data: str, fingerprint: str, given: Given, config: Config, code: Mapping[str, str]
) -> BaseNode:
    return ImageExampleGen(
        data=data,
        fingerprint=fingerprint,
        known_classes=json.dumps(given.known_classes),
        known_columns=json.dumps(given.known_columns, sort_keys=True),
        options=_json(config.ingest),
        calib=config.calibration.carved,
        code=code["ImageExampleGen"],
    )


def _count(example_gen: BaseNode, config: Config, code: Mapping[str, str]) -> BaseNode:
    further = heads.beside(config.train.heads)
    return ImageStatistics(
        examples=example_gen.outputs["examples"],
        stats_options=statistics.statistics_options(further),
        code=code["StatisticsGen"],
    )


def _spoiled(robustness: BaseNode | None, config: Config) -> dict[str, Any]:
    """Returns what the gate takes of the node Robustness, where there is one."""
    if robustness is None:
        return {}
    found = robustness.outputs["robustness"]
    return {"robustness": found, "robustness_options": _json(config.robustness)}


def _warm_start(config: Config, given: Given) -> dict[str, Any]:
    """Returns the champion to go on from; nothing for a run on one place of data."""
    if not given.spans or not given.champion_uri or config.retrain.start == "cold":
        return {}
    both = {"also_cold": True} if config.retrain.start == "both" else {}
    return {"warm_start": given.champion_uri, **both}


def _variant_options(config: Config) -> str:
    sections = ("variants", "train", "transform")
    given = {name: getattr(config, name).model_dump(mode="json") for name in sections}
    return json.dumps({**given, "confidence": config.evaluate.confidence}, sort_keys=True)


def beam_args(config: Config) -> list[str]:
    """Returns Beam's options; runner and mode are always named, for Beam's defaults move."""
    args = [f"--runner={config.beam.runner}"]
    if config.beam.runner == "DirectRunner":
        args = [f"--runner={IN_MEMORY_RUNNER}"]
        args += ["--direct_running_mode=in_memory", "--direct_num_workers=1"]
        # Nothing is shipped to workers of this runner. Without a word on their image, TFX would
        # build a source distribution of itself at each Beam node: 2 s every time.
        args += ["--sdk_container_image=none"]
    return [*args, *config.beam.args]


def _json(section: Section) -> str:
    return json.dumps(section.model_dump(mode="json"), sort_keys=True)
