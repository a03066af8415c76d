"""TFX's Tuner, whose search runs in a process that owns the devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfx import types
from tfx.components.trainer import fn_args_utils
from tfx.components.tuner import executor as tuner_executor
from tfx.components.tuner.component import Tuner
from tfx.components.util import udf_utils
from tfx.dsl.components.base import executor_spec
from tfx.proto import trainer_pb2
from tfx.types import artifact_utils
from tfx.types import standard_component_specs as specs

from pipeline import search
from pipeline.features import EVAL, TRAIN

TUNER_FN = "pipeline.trainer.tune.tuner_fn"
NODE_ID = "Tuner"


class Executor(tuner_executor.Executor):
    """Hands the search to `tuner_fn`; TFX's own would build a tuner in this very process."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Searches.

        Args:
          input_dict: `examples`, `transform_graph` and `schema`.
          output_dict: `best_hyperparameters` gets TFX's best_hyperparameters.txt, keras-tuner's
            configuration as JSON, and `tuner_results` tuner_results.json: a row a trial, as
            `pipeline.search.Row` documents it, beside the trials' TensorBoard logs.
          exec_properties: `custom_config` with `train`, `tune`, `transform`, `checkpoints` and
            `code`.

        Raises:
          SafelightError: what the search failed with; one failed trial is no reason.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        fn_args = fn_args_utils.get_common_fn_args(input_dict, exec_properties, self._get_tmp_dir())
        best = artifact_utils.get_single_uri(output_dict[specs.BEST_HYPERPARAMETERS_KEY])
        results = artifact_utils.get_single_uri(output_dict[specs.TUNER_RESULTS_KEY])
        tuner_fn = udf_utils.get_fn(exec_properties, specs.TUNER_FN_KEY)
        tuner_fn(fn_args, best=Path(best) / search.BEST_FILE, results=Path(results))


class SearchTuner(Tuner):
    """TFX's Tuner with our executor; make it with `search_tuner`."""

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)


def search_tuner(
    examples: types.BaseChannel,
    transform_graph: types.BaseChannel,
    schema: types.BaseChannel,
    custom_config: dict[str, Any],
) -> SearchTuner:
    """Returns the node `Tuner`.

    Args:
      examples: with the splits train and eval.
      transform_graph: Transform's.
      schema: ImageSchemaGen's, for the classes.
      custom_config: the sections `train`, `tune` and `transform`, `checkpoints` (a directory), and
        `code`, the fingerprint of the sources.
    """
    node = SearchTuner(
        examples=examples,
        transform_graph=transform_graph,
        schema=schema,
        tuner_fn=TUNER_FN,
        train_args=trainer_pb2.TrainArgs(splits=[TRAIN]),
        eval_args=trainer_pb2.EvalArgs(splits=[EVAL]),
        custom_config=custom_config,
    )
    return node.with_id(NODE_ID)
