"""Transform, whose `preprocessing_fn` knows the schema's classes, the label's and the heads'."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tfx import types
from tfx.components.transform import executor as transform_executor
from tfx.components.transform import labels
from tfx.components.transform.component import Transform
from tfx.dsl.components.base import executor_spec
from tfx.proto import transform_pb2

from pipeline import heads
from pipeline.features import TRAIN
from schemas import image_schema

PREPROCESSING_FN = "pipeline.transform.preprocessing_fn"
NODE_ID = "Transform"


class Executor(transform_executor.Executor):
    """TFX's own, which hands the classes to `preprocessing_fn`.

    They are data: they stand in the schema, an input artifact, and not in `custom_config`, which is
    fixed before the pipeline runs.
    """

    def _GetPreprocessingFn(
        self, inputs: Mapping[str, Any], unused_outputs: Mapping[str, Any]
    ) -> Callable[..., Any]:
        bound = super()._GetPreprocessingFn(inputs, unused_outputs)
        schema = Path(inputs[labels.SCHEMA_PATH_LABEL])
        # What the base class has bound `preprocessing_fn` to.
        configured = bound.keywords["custom_config"].get("heads", ())
        return functools.partial(
            bound,
            classes=image_schema.read_classes(schema),
            heads=heads.beside(configured, image_schema.head_classes(schema)),
        )


class ImageTransform(Transform):
    """TFX's Transform with the executor above."""

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)


def image_transform(
    examples: types.BaseChannel, schema: types.BaseChannel, custom_config: Mapping[str, Any]
) -> ImageTransform:
    """Returns the node `Transform`, which analyzes train and writes the graph alone.

    Pixels are never materialized: writing 3,072 floats for an image of 32 x 32 took 70 s for
    60,000 of them, where the graph applied in tf.data takes a few seconds. Nor are statistics
    of the transformed data taken, which nobody reads.

    Args:
      examples: with the split train.
      schema: ImageSchemaGen's.
      custom_config: `transform`, the resolved config.Transform; `heads`, as heads.data_options
        gives them, where there are any; and `code`, the fingerprint of the sources, which is part
        of the cache key.
    """
    node = ImageTransform(
        examples=examples,
        schema=schema,
        preprocessing_fn=PREPROCESSING_FN,
        # With nothing to transform, only the split that is analyzed is read.
        splits_config=transform_pb2.SplitsConfig(analyze=[TRAIN], transform=[]),
        materialize=False,
        disable_analyzer_cache=True,
        disable_statistics=True,
        custom_config=dict(custom_config),
    )
    return node.with_id(NODE_ID)
