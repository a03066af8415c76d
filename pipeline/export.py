"""The exported model: one SavedModel from encoded bytes to an answer, and the facts beside it.

A plain tf.Module holds the Keras model and the transform graph, so that what is served is what was
trained on. In REST's row format every output needs the batch dimension: the class names are
repeated for each image. Each head beside the label adds outputs under its own name.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from pipeline import features, heads, model_json, models
from pipeline.blessing import calibration
from pipeline.blessing.calibration import Fitted
from pipeline.config import Train
from pipeline.errors import SafelightError
from pipeline.fingerprint import of_value
from pipeline.heads import LABEL, Head
from pipeline.records import Input
from pipeline.transform import serving_pixels

# TF Serving runs a warm-up record once before it answers; graphs are optimized by batch size.
_WARMUP_BATCHES: Final = (1, 8)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """model.json: what is needed to use the model and to build it again.

    `preset` is a name for people; `architecture` is what builds the network again. `heads` are
    those beside the label: name, kind, column and classes. `temperature` and `threshold` are what
    calibration found: both are of the label's head, and stand in the served graph, not in the
    weights.
    """

    classes: tuple[str, ...]
    image_size: int
    channels: int
    resize: str
    normalize: str
    preset: str
    parameters: int
    fingerprint: str
    architecture: dict[str, Any]
    heads: tuple[dict[str, Any], ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    temperature: float | None = None
    threshold: float | None = None
    format: int = model_json.FORMAT


class Serving(tf.Module):
    """The signatures; see docs/architecture.md for their inputs and outputs."""

    def __init__(
        self,
        model: keras.Model,
        source: Input,
        answers: Sequence[Head],
        calibrated: Fitted = Fitted(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        # Attributes, for their variables and tables to be saved along. Not the model itself: it
        # would bring its optimizer's variables, which are twice as many again.
        self.weights = [variable.value for variable in model.variables]
        self.feature_vector = models.loaded(model)
        self._network = functools.partial(model, training=False)
        self.transform_layer = source.layer
        self._source = source
        self._heads = tuple(answers)
        self._calibrated = calibrated
        self._names = {
            head.name: tf.constant(list(head.classes)) for head in answers if head.kind == "class"
        }

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, name=features.IMAGE)], autograph=False
    )
    def serve_images(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """Takes encoded images, string [batch]."""
        pixels = tf.ensure_shape(
            serving_pixels(self._source.apply, image), (None, *self._source.shape)
        )
        said = self._network(pixels)
        said = said if isinstance(said, Mapping) else {LABEL: said}
        return {
            name: value
            for head in self._heads
            for name, value in self._outputs(head, said[head.name]).items()
        }

    def _outputs(self, head: Head, said: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns a head's outputs by name."""
        if head.kind == "regression":
            return {head.name: tf.reshape(said, [-1])}
        names = self._names[head.name]
        if head.name == LABEL:
            said = self._tempered(said)
        best = tf.gather(names, tf.argmax(said, axis=1))
        score = tf.reduce_max(said, axis=1)
        limit = self._calibrated.threshold
        if head.name == LABEL and limit is not None:
            best = tf.where(score >= limit, best, features.UNKNOWN)
        return {
            head.name: best,
            head.score: score,
            head.names: tf.tile(names[tf.newaxis], [tf.shape(said)[0], 1]),
            head.probabilities: said,
        }

    def _tempered(self, said: tf.Tensor) -> tf.Tensor:
        """Returns the label's probabilities at the temperature that calibration found."""
        temperature = self._calibrated.temperature
        if temperature is None:
            return said
        return tf.nn.softmax(tf.math.log(tf.maximum(said, calibration.SMALLEST)) / temperature)

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, name="examples")], autograph=False
    )
    def serve_examples(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """Takes serialized tf.Examples, string [batch]; only their image is read."""
        spec = {features.IMAGE: self._source.spec[features.IMAGE]}
        answers: dict[str, tf.Tensor] = self.serve_images(
            tf.io.parse_example(examples, spec)[features.IMAGE]
        )
        return answers

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, name="examples")], autograph=False
    )
    def transform_features(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """Takes serialized tf.Examples with all heads' targets, string [batch], for TFMA."""
        # The image goes along: without it the graph would be fed an empty one, and refuse it.
        out = self._source.apply(tf.io.parse_example(examples, self._source.spec))
        return {head.target: out[head.target] for head in self._heads}


def export(
    model: keras.Model,
    source: Input,
    facts: Facts,
    images: Sequence[bytes],
    model_dir: Path,
) -> None:
    """Writes the SavedModel with its three signatures, and `assets.extra/`.

    Args:
      model: float32 [batch, side, side, channels] to probabilities, float32 [batch, classes]; or,
        with several heads, to a dict by their names, a regression head's values float32 [batch].
      source: the transform graph that it was trained behind, with the heads' targets.
      facts: what `model_facts` gives.
      images: real encoded images, for TF Serving's warm-up.
      model_dir: TFX's `serving_model_dir`.
    """
    calibrated = Fitted(temperature=facts.temperature, threshold=facts.threshold)
    serving = Serving(model, source, heads.from_facts(asdict(facts)), calibrated)
    tf.saved_model.save(
        serving,
        str(model_dir),
        signatures={
            features.SERVING_SIGNATURE: serving.serve_images,
            features.EXAMPLES_SIGNATURE: serving.serve_examples,
            features.TRANSFORM_SIGNATURE: serving.transform_features,
        },
    )
    extra = model_dir / model_json.ASSETS
    extra.mkdir(exist_ok=True)
    text = json.dumps(asdict(facts), indent=2, ensure_ascii=False)
    (extra / features.MODEL_FACTS).write_text(text + "\n", encoding="utf-8")
    # The same layers without the optimizer, whose variables are twice as many again.
    keras.Model(model.inputs, model.outputs).save_weights(extra / features.WEIGHTS)
    feature_vector = models.assets(model)
    if feature_vector is not None:  # copied along: the original may move
        shutil.copytree(feature_vector, extra / models.FEATURE_VECTOR, dirs_exist_ok=True)
    _write_warmup(extra / features.WARMUP, images)


def model_facts(
    model: keras.Model,
    *,
    train: Train,
    heads: Sequence[Head],
    resize: str,
    normalize: str,
    calibrated: Fitted = Fitted(),  # noqa: B008 - frozen
) -> Facts:
    """Returns the facts of a model as it stands.

    Args:
      model: trained.
      train: the configuration that built it.
      heads: all of them, the label's first, with their classes.
      resize: of the section transform.
      normalize: of the section transform.
      calibrated: what was fitted on the split calib.
    """
    _, image_size, _, channels = model.input_shape
    return Facts(
        classes=heads[0].classes,
        image_size=image_size,
        channels=channels,
        resize=resize,
        normalize=normalize,
        preset=train.preset or train.backbone or train.model or train.feature_vector,
        parameters=model.count_params(),
        fingerprint=_fingerprint(model, calibrated),
        architecture=models.architecture(train),
        heads=tuple(head.facts() for head in heads[1:]),
        versions={
            name: metadata.version(name) for name in ("tfx", "tensorflow", "keras", "safelight")
        },
        temperature=calibrated.temperature,
        threshold=calibrated.threshold,
    )


def _fingerprint(model: keras.Model, calibrated: Fitted) -> str:
    """Returns 16 hexadecimal digits for all that a model of this network answers by."""
    weights = weights_fingerprint(model)
    return weights if calibrated == Fitted() else of_value([weights, asdict(calibrated)])


def weights_fingerprint(model: keras.Model) -> str:
    """Returns 16 hexadecimal digits for all the weights: their shapes and their bytes."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(f"{weight.shape} {weight.dtype.str}\n".encode())
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()[:16]


def load_weights(model_dir: Path) -> keras.Model:
    """Builds an exported model's network anew, with its weights: for a warm start.

    Args:
      model_dir: an export, `model.json` and `model.weights.h5` in its `assets.extra/`.

    Raises:
      SafelightError: it isn't an export, or its weights are not those of its network.
    """
    facts = model_json.read(model_dir)
    architecture = facts.get("architecture") or models.architecture(Train(preset=facts["preset"]))
    model = models.rebuild(
        architecture,
        image_size=facts["image_size"],
        channels=facts["channels"],
        heads=heads.from_facts(facts),
        assets=model_dir / model_json.ASSETS,
    )
    path = model_dir / model_json.ASSETS / features.WEIGHTS
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        raise SafelightError(
            f"{path} does not hold the weights of {facts['preset']!r} for "
            f"{len(facts['classes'])} classes ({error}). Use another version of the model."
        ) from None
    return model


def _write_warmup(path: Path, images: Sequence[bytes]) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for size in _WARMUP_BATCHES:
            # TF Serving replays the request as it is; the model's name in it isn't looked at.
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = features.SERVING_SIGNATURE
            batch = [images[index % len(images)] for index in range(size)]
            request.inputs[features.IMAGE].CopyFrom(tf.make_tensor_proto(batch, tf.string))
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(log.SerializeToString())
