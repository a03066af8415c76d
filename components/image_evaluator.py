"""TFX's Evaluator, which measures and validates, and blesses nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import tensorflow_model_analysis as tfma
from tfx import types
from tfx.components.evaluator import executor as evaluator_executor
from tfx.components.evaluator.component import Evaluator
from tfx.dsl.components.base import executor_spec
from tfx.types import standard_component_specs as specs
from tfx.types.standard_artifacts import ModelBlessing

from pipeline.evaluator import evaluate
from pipeline.features import TEST

NODE_ID = "Evaluator"


class Executor(evaluator_executor.Executor):
    """TFX's own, which keeps its hands off the blessing.

    With thresholds in the EvalConfig it would mark its output `blessing` by TFMA's validation,
    which compares point estimates. Whoever looks for the newest blessed model would find that
    one beside the final gate's.
    """

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Measures; the arguments are those of TFX's executor."""
        with tempfile.TemporaryDirectory() as folder:
            unread = ModelBlessing()
            unread.uri = folder
            super().Do(input_dict, {**output_dict, specs.BLESSING_KEY: [unread]}, exec_properties)
        for artifact in output_dict.get(specs.BLESSING_KEY, ()):
            Path(artifact.uri).mkdir(parents=True, exist_ok=True)


class ImageEvaluator(Evaluator):
    """TFX's Evaluator with the executor above; make it with `image_evaluator`."""

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)


def image_evaluator(
    examples: types.BaseChannel, model: types.BaseChannel, eval_config: tfma.EvalConfig
) -> ImageEvaluator:
    """Returns the node `Evaluator`, which judges the split test.

    Args:
      examples: with the split test.
      model: an export.
      eval_config: what `evaluate.eval_config` gives, with the fingerprint of the sources in it.
    """
    node = ImageEvaluator(
        examples=examples,
        model=model,
        eval_config=eval_config,
        example_splits=[TEST],
        module_path=evaluate.__name__,
    )
    return node.with_id(NODE_ID)
