"""The names that ingest, validation, Transform, Trainer and the serving signatures share."""

from __future__ import annotations

from typing import Final

# The feature of a tf.Example and the input of the serving signature have one name: TFMA feeds a
# signature with a single string input by name.
IMAGE: Final = "image"
LABEL: Final = "label"
ID: Final = "id"  # path relative to the data's root, as bytes: names need not be valid UTF-8
SHA256: Final = "sha256"  # of the decoded pixels (hexadecimal)
GROUP: Final = "group"

# Facts about an image, recorded when ingest decodes it; what StatisticsGen and the schema see.
INT_FACTS: Final = ("height", "width", "channels", "byte_size")
FLOAT_FACTS: Final = ("aspect_ratio", "brightness", "contrast", "sharpness")
CHANNEL_FACTS: Final = ("channel_mean", "channel_std")  # one float a channel, of values in [0, 1]
FORMAT: Final = "format"

# Features of a tf.Example that a manifest's own columns become: `<prefix><column>`.
TARGET: Final = "target_"  # float, a number
CLASS: Final = "class_"  # bytes, a class of a further head
SLICE: Final = "slice_"  # bytes, what evaluation slices by

# What the transform graph gives.
PIXELS: Final = "pixels"  # float32 [height, width, channels]
LABEL_ID: Final = "label_id"  # int64, an index into the classes; -1 for a class not known

# Splits: `train` fits, `eval` chooses, `test` blesses; `calib`, carved from train where calibration
# is on, calibrates.
TRAIN: Final = "train"
CALIB: Final = "calib"
EVAL: Final = "eval"
TEST: Final = "test"
SPLITS: Final = (TRAIN, EVAL, TEST)
# By their distance from training: of equal images in several, the last of these keeps its own.
SPLITS_WITH_CALIB: Final = (TRAIN, CALIB, EVAL, TEST)

# Signatures of the exported model, and the outputs of `serving_default`. A class head beside the
# label answers as `<name>`, `<name>_score`, `<name>_classes` and `<name>_probabilities`, a
# regression head as `<name>` (float32 [batch]).
SERVING_SIGNATURE: Final = "serving_default"  # encoded images, bytes [batch]
EXAMPLES_SIGNATURE: Final = "serving_examples"  # serialized tf.Examples, bytes [batch]
TRANSFORM_SIGNATURE: Final = "transform_features"  # what TFMA reads the label through
OUT_LABEL: Final = "label"  # string [batch]
OUT_SCORE: Final = "score"  # float32 [batch], the probability of `label`
OUT_CLASSES: Final = "classes"  # string [batch, classes]
OUT_PROBABILITIES: Final = "probabilities"  # float32 [batch, classes]
# What `label` says below the threshold of model.json; the other outputs stay as they are.
UNKNOWN: Final = "unknown"

# Files beside the SavedModel in `assets.extra/`.
MODEL_FACTS: Final = "model.json"
WEIGHTS: Final = "model.weights.h5"
WARMUP: Final = "tf_serving_warmup_requests"
