"""User code of benchmarks/stock_tfx.py, as TFX's own image examples had it.

Transform gives float pixels, and writes them out; Trainer reads them back.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
import tensorflow_transform as tft

from benchmarks.plain_keras import BATCH, SIZE, network

IMAGE, LABEL = "image", "label"
CLASSES = 10


def preprocessing_fn(inputs: dict[str, Any]) -> dict[str, Any]:
    """Decodes, resizes and scales each image; the label becomes its vocabulary id."""
    encoded = tf.sparse.to_dense(inputs[IMAGE])[:, 0]
    label = tf.sparse.to_dense(inputs[LABEL])[:, 0]
    pixels = tf.map_fn(
        lambda one: tf.image.resize(tf.io.decode_jpeg(one, channels=3), SIZE) / 255.0,
        encoded,
        fn_output_signature=tf.TensorSpec((*SIZE, 3), tf.float32),
    )
    return {"pixels": pixels, LABEL: tft.compute_and_apply_vocabulary(label)}


def run_fn(fn_args: Any) -> None:
    """Fits the network of the plain script on the materialized pixels."""
    transformed = tft.TFTransformOutput(fn_args.transform_output)
    spec = transformed.transformed_feature_spec()

    def batches(patterns: list[str]) -> tf.data.Dataset:
        files = [name for pattern in patterns for name in tf.io.gfile.glob(pattern)]
        return (
            tf.data.TFRecordDataset(files, compression_type="GZIP")
            .batch(BATCH)
            .map(lambda batch: tf.io.parse_example(batch, spec))
            .map(lambda row: (row["pixels"], tf.one_hot(row[LABEL], CLASSES)))
            .cache()
        )

    model = network(CLASSES)
    model.fit(
        batches(fn_args.train_files).shuffle(1000).prefetch(2),
        validation_data=batches(fn_args.eval_files),
        epochs=fn_args.custom_config["epochs"],
        verbose=0,
    )
    keras.Model.export(model, fn_args.serving_model_dir, verbose=False)
