"""The same images through stock TFX components in their documented pattern, stage by stage.

    python -m benchmarks.stock_tfx DATA [--epochs 1]

DATA has train/<class>/ and test/<class>/ with JPEGs. Stock TFX has no ExampleGen for folders: the
TFRecords it wants are written first, and timed as a row of their own. Then ImportExampleGen,
StatisticsGen, SchemaGen, ExampleValidator, Transform (which writes float pixels) and Trainer, all
with their defaults; `python -m benchmarks.speed` has Safelight's times on the same data. Evaluator
and Pusher are left out: they cost what they cost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "0"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
from rich.console import Console
from rich.table import Table
from tfx.components.example_gen.import_example_gen.component import ImportExampleGen
from tfx.components.example_validator.component import ExampleValidator
from tfx.components.schema_gen.component import SchemaGen
from tfx.components.statistics_gen.component import StatisticsGen
from tfx.components.trainer.component import Trainer
from tfx.components.transform.component import Transform
from tfx.dsl.compiler import compiler, constants
from tfx.orchestration import metadata
from tfx.orchestration.local import runner_utils
from tfx.orchestration.pipeline import Pipeline
from tfx.orchestration.portable import launcher, runtime_parameter_utils
from tfx.proto import example_gen_pb2, trainer_pb2

from benchmarks import stock_module


def write_records(data: Path, folder: Path) -> None:
    """Writes train/ and eval/ (the test folder), two shuffled shards each."""
    for split, source in (("train", "train"), ("eval", "test")):
        paths = sorted((data / source).glob("*/*"))
        random.Random(17).shuffle(paths)
        (folder / split).mkdir(parents=True)
        for shard in range(2):
            target = str(folder / split / f"images-{shard}.tfrecord")
            with tf.io.TFRecordWriter(target) as writer:
                for path in paths[shard::2]:
                    writer.write(_example(path))


def _example(path: Path) -> bytes:
    def feature(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    features = {
        stock_module.IMAGE: feature(path.read_bytes()),
        stock_module.LABEL: feature(path.parent.name.encode()),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    serialized: bytes = example.SerializeToString()
    return serialized


def graph(records: Path, folder: Path, epochs: int) -> Pipeline:
    """Returns the components as TFX's guides chain them."""
    splits = [
        example_gen_pb2.Input.Split(name=name, pattern=f"{name}/*") for name in ("train", "eval")
    ]
    examples = ImportExampleGen(
        input_base=str(records), input_config=example_gen_pb2.Input(splits=splits)
    )
    statistics = StatisticsGen(examples=examples.outputs["examples"])
    schema = SchemaGen(statistics=statistics.outputs["statistics"], infer_feature_shape=False)
    validator = ExampleValidator(
        statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"]
    )
    transform = Transform(
        examples=examples.outputs["examples"],
        schema=schema.outputs["schema"],
        preprocessing_fn="benchmarks.stock_module.preprocessing_fn",
    )
    trainer = Trainer(
        examples=transform.outputs["transformed_examples"],
        transform_graph=transform.outputs["transform_graph"],
        schema=schema.outputs["schema"],
        run_fn="benchmarks.stock_module.run_fn",
        train_args=trainer_pb2.TrainArgs(splits=["train"]),
        eval_args=trainer_pb2.EvalArgs(splits=["eval"]),
        custom_config={"epochs": epochs},
    )
    return Pipeline(
        pipeline_name="stock",
        pipeline_root=str(folder / "artifacts"),
        components=[examples, statistics, schema, validator, transform, trainer],
        metadata_connection_config=metadata.sqlite_metadata_connection_config(
            str(folder / "metadata.sqlite")
        ),
        beam_pipeline_args=["--runner=DirectRunner", "--direct_running_mode=in_memory"],
    )


def run(pipeline: Pipeline) -> dict[str, float]:
    """Runs node by node, as LocalDagRunner does; returns seconds by node."""
    ir = compiler.Compiler().compile(pipeline)
    runtime_parameter_utils.substitute_runtime_parameter(
        ir, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: "benchmark"}
    )
    deployment = runner_utils.extract_local_deployment_config(ir)
    seconds = {}
    for node in ir.nodes:
        name = node.pipeline_node.node_info.id
        began = time.monotonic()
        launcher.Launcher(
            pipeline_node=node.pipeline_node,
            mlmd_connection=metadata.Metadata(pipeline.metadata_connection_config),
            pipeline_info=ir.pipeline_info,
            pipeline_runtime_spec=ir.runtime_spec,
            executor_spec=runner_utils.extract_executor_spec(deployment, name),
            custom_driver_spec=runner_utils.extract_custom_driver_spec(deployment, name),
        ).launch()
        seconds[name] = time.monotonic() - began
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stock-tfx-") as name:
        folder = Path(name)
        began = time.monotonic()
        write_records(arguments.data, folder / "records")
        seconds = {"(writing TFRecords)": time.monotonic() - began}
        seconds |= run(graph(folder / "records", folder, arguments.epochs))
    table = Table("stage", "seconds", title=f"Stock TFX components, {arguments.epochs} epoch(s)")
    table.columns[1].justify = "right"
    for stage, took in seconds.items():
        table.add_row(stage, f"{took:.1f}")
    others = sum(took for stage, took in seconds.items() if stage != "Trainer")
    table.add_row("all but Trainer", f"{others:.1f}")
    Console(width=100).print(table)
    print(json.dumps({stage: round(took, 1) for stage, took in seconds.items()}))


if __name__ == "__main__":
    main()
