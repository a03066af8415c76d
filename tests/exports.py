"""Small real exports and examples: SavedModels with the documented signatures, without training.

The model tells pictures of `tests/made.py` apart by their mean colour, through its own graph from
encoded bytes to probabilities, as an exported model does.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline import features
from tests import made

CLASSES = tuple(sorted(made.HUES))


class ColourModel(tf.Module):
    """Probabilities fall with the distance of a picture's mean colour to each class's own."""

    def __init__(
        self,
        classes: Sequence[str],
        sharpness: float = 8.0,
        swap_channels: bool = False,
        outputs: Sequence[str] | None = None,
        answers: Mapping[str, str] | None = None,
        max_pixels: int = 0,
        serving_only: bool = False,
    ) -> None:
        """Makes the model, or a sabotaged one.

        Args:
          classes: names, keys of `made.HUES`.
          sharpness: how sure the model is.
          swap_channels: red and blue are taken for each other (in `serving_default` alone, with
            `serving_only`).
          outputs: names to answer with, in place of `classes`.
          answers: {name: the name whose colour it takes for its own}.
          max_pixels: refuse larger images; 0 takes all.
          serving_only: see `swap_channels`.
        """
        super().__init__()
        hues = np.array([made.HUES[(answers or {}).get(name, name)] for name in classes])
        self.hues = tf.Variable(hues / 255.0, dtype=tf.float32)
        self.sharpness = tf.Variable(sharpness, dtype=tf.float32)
        self.names = tf.constant(list(outputs or classes))
        self.swap = swap_channels
        self.serving_only = serving_only
        self.max_pixels = max_pixels
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                list(classes), tf.range(len(classes), dtype=tf.int64)
            ),
            default_value=-1,
        )

    def _colour(self, encoded: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        if self.max_pixels:
            pixels = tf.shape(image)[0] * tf.shape(image)[1]
            tf.debugging.assert_less_equal(pixels, self.max_pixels)
        colour = tf.reduce_mean(tf.cast(image, tf.float32) / 255.0, axis=[0, 1])
        return tf.ensure_shape(colour, [3])

    def _answer(self, encoded: tf.Tensor, swap: bool) -> dict[str, tf.Tensor]:
        colour = tf.map_fn(
            self._colour, encoded, fn_output_signature=tf.TensorSpec([3], tf.float32)
        )
        if swap:
            colour = tf.reverse(colour, axis=[1])
        distance = tf.reduce_sum((colour[:, None] - self.hues[None]) ** 2, axis=2)
        probabilities = tf.nn.softmax(-self.sharpness * distance)
        best = tf.argmax(probabilities, axis=1)
        rows = tf.shape(encoded)[0]
        return {
            features.OUT_LABEL: tf.gather(self.names, best),
            features.OUT_SCORE: tf.reduce_max(probabilities, axis=1),
            features.OUT_CLASSES: tf.tile(self.names[None], [rows, 1]),
            features.OUT_PROBABILITIES: probabilities,
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=features.IMAGE)])
    def serve(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._answer(image, self.swap)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve_examples(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        spec = {features.IMAGE: tf.io.FixedLenFeature([], tf.string)}
        images = tf.io.parse_example(examples, spec)[features.IMAGE]
        return self._answer(images, self.swap and not self.serving_only)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def transform(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        spec = {features.LABEL: tf.io.FixedLenFeature([], tf.string)}
        label = tf.io.parse_example(examples, spec)[features.LABEL]
        return {features.LABEL_ID: self.table.lookup(label)}


def save_model(
    path: Path,
    classes: Sequence[str] = CLASSES,
    facts: Mapping[str, object] | None = None,
    **behaviour: object,
) -> Path:
    """Writes an export to `path` (what `Format-Serving/` holds) and returns `path`.

    Args:
      path: the SavedModel's directory.
      classes: names, keys of `made.HUES`.
      facts: more or other keys of model.json.
      behaviour: the arguments of ColourModel.
    """
    model = ColourModel(classes, **behaviour)  # type: ignore[arg-type]
    tf.saved_model.save(
        model,
        str(path),
        signatures={
            features.SERVING_SIGNATURE: model.serve,
            features.EXAMPLES_SIGNATURE: model.serve_examples,
            features.TRANSFORM_SIGNATURE: model.transform,
        },
    )
    written = repr([model.hues.numpy().tolist(), float(model.sharpness), list(classes), behaviour])
    told = {
        "format": 1,
        "classes": list(classes),
        "image_size": 32,
        "channels": 3,
        "preset": "colour",
        "fingerprint": hashlib.sha256(written.encode()).hexdigest()[:16],
        **(facts or {}),
    }
    (path / "assets.extra").mkdir(parents=True, exist_ok=True)
    (path / "assets.extra" / features.MODEL_FACTS).write_text(json.dumps(told))
    return path


def encoded(label: str, number: int, suffix: str = "png") -> bytes:
    """Returns the file of `made.picture(label, number)`."""
    buffer = io.BytesIO()
    made.picture(label, number).save(buffer, {"jpg": "JPEG"}.get(suffix, suffix.upper()))
    return buffer.getvalue()


def write_examples(
    root: Path,
    counts: Mapping[str, int],
    split: str = features.TEST,
    first: int = 0,
    shards: int = 2,
) -> Path:
    """Writes `root/Split-<split>/` with counts[label] pictures a class, and returns `root`."""
    folder = root / f"Split-{split}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        _example(label, number, split)
        for label, count in counts.items()
        for number in range(first, first + count)
    ]
    for shard in range(shards):
        name = folder / f"data_tfrecord-{shard:05d}-of-{shards:05d}"
        with tf.io.TFRecordWriter(str(name)) as writer:
            for row in rows[shard::shards]:
                writer.write(row)
    return root


def _example(label: str, number: int, split: str) -> bytes:
    content = encoded(label, number)
    values: dict[str, list[object]] = {
        features.IMAGE: [content],
        features.LABEL: [label.encode()],
        features.ID: [f"{split}/{label}/{number:05d}.png".encode()],
        features.SHA256: [hashlib.sha256(content).hexdigest().encode()],
        features.FORMAT: [b"png"],
        "height": [32],
        "width": [32],
        "channels": [3],
        "byte_size": [len(content)],
        "aspect_ratio": [1.0],
        "brightness": [0.5],
        "contrast": [0.1],
        "sharpness": [0.1],
        "channel_mean": [0.5, 0.5, 0.5],
        "channel_std": [0.1, 0.1, 0.1],
    }
    return tf.train.Example(
        features=tf.train.Features(feature={key: _feature(v) for key, v in values.items()})
    ).SerializeToString(deterministic=True)


def _feature(values: Sequence[object]) -> tf.train.Feature:
    if isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if isinstance(values[0], int):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def artifact(kind: type, path: Path, **properties: str) -> Any:
    """Returns a TFX artifact of this type at `path`."""
    made_artifact = kind()
    made_artifact.uri = str(path)
    for name, value in properties.items():
        setattr(made_artifact, name, value)
    return made_artifact
