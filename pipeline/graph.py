"""The pipeline, node by node, in the order that the data flows: the table of contents.

Every runner builds the same graph from the same configuration; what differs between a laptop and
a cluster (where artifacts lie, which champion is current) is in `Given`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tfx.components.evaluator.component import Evaluator
from tfx.components.example_validator.component import ExampleValidator
from tfx.components.statistics_gen.component import StatisticsGen
from tfx.components.trainer.component import Trainer
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import trainer_pb2

from components.blessing_gate import BlessingGate
from components.image_example_gen import ImageExampleGen
from components.image_schema_gen import ImageSchemaGen
from components.image_transform import image_transform
from components.predictor import Predictor
from components.serving_check import ServingCheck
from components.validation_gate import ValidationGate
from components.versioned_pusher import versioned_pusher
from pipeline import evaluate, lineage, statistics
from pipeline.config import Config, Section
from pipeline.features import EVAL, TEST, TRAIN

NAME = "safelight"


@dataclass(frozen=True)
class Given:
    """What a run is given beside its configuration.

    `known_classes` is the class order to keep, `champion_uri` the directory of the version to
    beat ("" without one), and `lineage` (`data`, `config`, `code`, `known_classes`, `champion`)
    goes into the registry with whatever is pushed.
    """

    data: str
    known_classes: tuple[str, ...]
    champion_uri: str
    lineage: dict[str, Any]
    artifacts: str
    checkpoints: str
    serving_dir: str


def build(config: Config, given: Given) -> Pipeline:
    """Returns the pipeline; `config` is resolved: nothing in it is left to be chosen."""
    code = lineage.code()

    # Images become tf.Examples: decoded once, bad files aside, each in its split.
    example_gen = ImageExampleGen(
        data=given.data,
        fingerprint=given.lineage["data"],
        known_classes=json.dumps(given.known_classes),
        options=_json(config.ingest),
        code=code["ImageExampleGen"],
    )
    examples = example_gen.outputs["examples"]
    ingest_report = example_gen.outputs["ingest_report"]

    # The curated schema, completed with this data's classes in their order.
    schema_gen = ImageSchemaGen(
        ingest_report=ingest_report, options=_json(config.validation), code=code["ImageSchemaGen"]
    )
    schema = schema_gen.outputs["schema"]

    # Statistics of facts and labels, never of image bytes.
    statistics_gen = StatisticsGen(examples=examples, stats_options=statistics.statistics_options())

    # What departs from the schema, split by split.
    validator = ExampleValidator(statistics=statistics_gen.outputs["statistics"], schema=schema)

    # ExampleValidator only reports: this stops the run on broken data.
    validation_gate = ValidationGate(
        statistics=statistics_gen.outputs["statistics"],
        anomalies=validator.outputs["anomalies"],
        ingest_report=ingest_report,
        options=_json(config.validation),
        code=code["ValidationGate"],
    )

    # One graph from encoded bytes to pixels, for training, evaluation and serving.
    transform = image_transform(
        examples=examples,
        schema=schema,
        custom_config={
            "transform": config.transform.model_dump(mode="json"),
            "code": code["Transform"],
        },
    )
    transform.add_upstream_node(validation_gate)

    # The network is fitted in a child process that owns the devices.
    trainer = Trainer(
        examples=examples,
        transform_graph=transform.outputs["transform_graph"],
        schema=schema,
        run_fn="pipeline.train.run_fn",
        train_args=trainer_pb2.TrainArgs(splits=[TRAIN]),
        eval_args=trainer_pb2.EvalArgs(splits=[EVAL]),
        custom_config={
            "train": config.train.model_dump(mode="json"),
            "transform": config.transform.model_dump(mode="json"),
            "checkpoints": given.checkpoints,
            "code": code["Trainer"],
        },
    )
    model = trainer.outputs["model"]

    # TFMA's metrics on the exported model's own signatures.
    evaluator = Evaluator(
        examples=examples,
        model=model,
        eval_config=evaluate.eval_config(config.evaluate, code["Evaluator"]),
        example_splits=[TEST],
        module_path=evaluate.__name__,
    )

    # Each test image's probabilities, from the challenger and from the champion, written once.
    predictor = Predictor(
        examples=examples, model=model, champion=given.champion_uri, code=code["Predictor"]
    )

    # A clean process must serve real files as evaluation saw them.
    serving_check = ServingCheck(
        examples=examples,
        model=model,
        predictions=predictor.outputs["predictions"],
        options=_json(config.serving),
        code=code["ServingCheck"],
    )

    # The floors and the champion: the one blessing that Pusher obeys.
    blessing_gate = BlessingGate(
        evaluation=evaluator.outputs["evaluation"],
        predictions=predictor.outputs["predictions"],
        champion_predictions=predictor.outputs["champion_predictions"],
        serving_check=serving_check.outputs["serving_check"],
        ingest_report=ingest_report,
        options=_json(config.evaluate),
        code=code["BlessingGate"],
    )

    # The next version directory, then the registry.
    pusher = versioned_pusher(
        model=model,
        blessing=blessing_gate.outputs["blessing"],
        serving_dir=given.serving_dir,
        custom_config={"lineage": given.lineage, "code": code["Pusher"]},
    )

    return Pipeline(
        pipeline_name=NAME,
        pipeline_root=given.artifacts,
        components=[
            example_gen,
            schema_gen,
            statistics_gen,
            validator,
            validation_gate,
            transform,
            trainer,
            evaluator,
            predictor,
            serving_check,
            blessing_gate,
            pusher,
        ],
        enable_cache=True,
        beam_pipeline_args=beam_args(config),
    )


def beam_args(config: Config) -> list[str]:
    """Returns Beam's options; runner and mode are always named, for Beam's defaults move."""
    args = [f"--runner={config.beam.runner}"]
    if config.beam.runner == "DirectRunner":
        args += ["--direct_running_mode=in_memory", "--direct_num_workers=1"]
        # Nothing is shipped to workers of this runner. Without a word on their image, TFX would
        # build a source distribution of itself at each Beam node: 2 s every time.
        args += ["--sdk_container_image=none"]
    return [*args, *config.beam.args]


def _json(section: Section) -> str:
    return json.dumps(section.model_dump(mode="json"), sort_keys=True)
