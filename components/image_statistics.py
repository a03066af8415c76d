"""TFX's StatisticsGen, which does without Beam where Beam would be nothing but this process.

On one worker in memory, building, pickling and unpickling the graph of each split takes nearly all
of the time. TFDV's own generators count the same there, fed batch by batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from tensorflow_data_validation import StatsOptions
from tfx import types
from tfx.components.statistics_gen import executor as statistics_executor
from tfx.components.util import tfxio_utils
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import artifact_utils, standard_artifacts
from tfx.types import standard_component_specs as specs
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx_bsl.public.tfxio import RecordBatchesOptions

from pipeline.evaluator import predictions
from pipeline.validation import statistics

NODE_ID = "StatisticsGen"


class ImageStatisticsSpec(ComponentSpec):
    """The parameters, input and output of ImageStatistics: names as StatisticsGen has them."""

    PARAMETERS = {
        specs.STATS_OPTIONS_JSON_KEY: ExecutionParameter(type=str),
        "code": ExecutionParameter(type=str),
    }
    INPUTS = {specs.EXAMPLES_KEY: ChannelParameter(type=standard_artifacts.Examples)}
    OUTPUTS = {
        specs.STATISTICS_KEY: ChannelParameter(type=standard_artifacts.ExampleStatistics),
    }


class Executor(statistics_executor.Executor):
    """TFX's own for every other runner; the files are the same."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Counts each split of `examples`.

        Args:
          input_dict: `examples`.
          output_dict: `statistics`: FeatureStats.pb for each split.
          exec_properties: `stats_options_json`, TFDV's StatsOptions with a schema of all that is to
            be counted, and `code`, the fingerprint of the sources, for the cache alone.
        """
        if not in_process(self._beam_pipeline_args):
            super().Do(input_dict, output_dict, exec_properties)
            return
        self._log_startup(input_dict, output_dict, exec_properties)
        examples = artifact_utils.get_single_instance(input_dict[specs.EXAMPLES_KEY])
        counted = artifact_utils.get_single_instance(output_dict[specs.STATISTICS_KEY])
        options = StatsOptions.from_json(exec_properties[specs.STATS_OPTIONS_JSON_KEY])
        counted.split_names = examples.split_names
        counted.span = examples.span
        for split in artifact_utils.decode_split_names(examples.split_names):
            source = tfxio_utils.get_split_tfxio(
                examples=[examples],
                split=split,
                telemetry_descriptors=[NODE_ID],
                schema=options.schema,
            )
            # Records are read with their images, which may be photographs.
            count = predictions.at_once(predictions.split_files(examples.uri, split))
            batches = source.RecordBatches(
                RecordBatchesOptions(batch_size=count, num_epochs=1, shuffle=False)
            )
            found = statistics.count(batches, options)
            folder = Path(artifact_utils.get_split_uri([counted], split))
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / statistics_executor.DEFAULT_FILE_NAME
            path.write_bytes(found.SerializeToString())


# What DirectRunner is in the end. By its own name, for since Beam 2.68 DirectRunner first looks for
# Prism: it downloads a program at each pipeline, and runs that.
IN_MEMORY_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


def in_process(beam_args: list[str]) -> bool:
    """Says whether Beam with these options runs in this process, one bundle after the other."""
    options = PipelineOptions(beam_args)
    direct = options.view_as(DirectOptions)
    return (
        options.view_as(StandardOptions).runner in ("DirectRunner", IN_MEMORY_RUNNER)
        and direct.direct_running_mode == "in_memory"
        and direct.direct_num_workers == 1
    )


class ImageStatistics(base_beam_component.BaseBeamComponent):
    """Reads `examples`, and writes `statistics` of each split."""

    SPEC_CLASS = ImageStatisticsSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(self, examples: types.BaseChannel, stats_options: StatsOptions, code: str) -> None:
        """Constructs the node, which is called StatisticsGen.

        Args:
          examples: whose splits are counted.
          stats_options: with a schema; only its features are read.
          code: the fingerprint of the sources; part of the cache key.
        """
        super().__init__(
            spec=ImageStatisticsSpec(
                examples=examples,
                stats_options_json=stats_options.to_json(),
                code=code,
                statistics=types.Channel(type=standard_artifacts.ExampleStatistics),
            )
        )
        self.with_id(NODE_ID)
