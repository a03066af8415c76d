"""VariantMaker: smaller forms of a blessed model, each judged by itself."""

import json
from pathlib import Path

from tfx.components.evaluator import constants
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing, Schema, TransformGraph
from tfx.utils import path_utils

from components.artifacts import Predictions, Variants
from pipeline.config import Train, Transform
from pipeline.config import Variants as Options
from pipeline.errors import SafelightError
from pipeline.evaluator import predictions as answers
from pipeline.variants import make

_NOT_BLESSED = "The model is not blessed: no variants were made of it."


@component
def VariantMaker(
    examples: InputArtifact[Examples],
    model: InputArtifact[Model],
    transform_graph: InputArtifact[TransformGraph],
    schema: InputArtifact[Schema],
    predictions: InputArtifact[Predictions],
    blessing: InputArtifact[ModelBlessing],
    variants: OutputArtifact[Variants],
    options: Parameter[str],
    code: Parameter[str],
) -> None:
    """Writes variants.json, and a folder for each variant.

    Args:
      examples: with the splits train, eval and test.
      model: an export.
      transform_graph: what it was trained behind.
      schema: with its classes.
      predictions: its answers about `test`.
      blessing: of the final gate; without it nothing is made.
      variants: what was made, and what was found of it.
      options: JSON: the sections `variants`, `train` and `transform`, and `confidence`.
      code: fingerprint of the sources, for the cache key.

    Raises:
      SafelightError: an input is damaged. A variant that can't be made is no error.
    """
    folder = Path(variants.uri)
    folder.mkdir(parents=True, exist_ok=True)
    found = {"images": 0, "variants": {}, "message": _NOT_BLESSED}
    if blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY) == 1:
        given = json.loads(options)
        answered = answers.read(Path(predictions.uri))
        if answered is None or not answered.ids:
            raise SafelightError(f"There are no predictions at {predictions.uri}. Run again.")
        work = make.Work(
            options=Options.model_validate(given["variants"]),
            train=Train.model_validate(given["train"]),
            transform=Transform.model_validate(given["transform"]),
            confidence=given["confidence"],
            export=Path(path_utils.serving_model_path(model.uri)),
            examples=Path(examples.uri),
            transform_graph=Path(transform_graph.uri),
            schema=Path(schema.uri) / "schema.pbtxt",
            answered=answered,
            target=folder,
            code=code,
        )
        found = make.make(work)
    (folder / make.FILE).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
