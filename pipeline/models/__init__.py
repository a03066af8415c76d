"""Keras models: `build` makes the network that the section train names, `rebuild` makes it again.

    pixels -> features -> dropout -> heads

Features come from a preset's layers (`cnn`), a backbone (`pretrained`), a SavedModel
(`feature_vector`), or a function of the user's (`own`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
from keras import layers

from pipeline import presets
from pipeline.config import Train
from pipeline.errors import ConfigError, first_line
from pipeline.heads import LABEL, Head
from pipeline.models import cnn, feature_vector, own, pretrained, weights

# Where an export keeps its SavedModel backbone, below its assets.
FEATURE_VECTOR: Final = "feature_vector"

_LAYERS = {
    "mnist-cnn": cnn.mnist,
    "mnist-cnn-small": cnn.mnist_small,
    "cifar10-cnn": cnn.cifar10,
    "image64-cnn": cnn.image64,
    "fashion-cnn": cnn.fashion,
    "cifar10-fast": cnn.cifar10_fast,
}


def architecture(train: Train) -> dict[str, Any]:
    """Returns what `rebuild` needs of a completed section train, as JSON."""
    return {
        "preset": train.preset,
        "model": train.model,
        "backbone": train.backbone,
        "feature_vector": train.feature_vector,
        "pooling": train.pooling,
        "head_width": train.head_width,
        "dropout": train.dropout,
    }


def build(train: Train, *, image_size: int, channels: int, heads: Sequence[Head]) -> keras.Model:
    """Returns a new network: random weights, but for a backbone that starts from train.weights.

    It takes float32 [batch, image_size, image_size, channels], in 0-1 or standardized. With one
    head it gives that head's answer, with several a dict of them by the heads' names: of a class
    head the probabilities, float32 [batch, classes], of a regression head float32 [batch].

    Args:
      train: the configuration, completed.
      image_size: the side in pixels.
      channels: 1 or 3.
      heads: of `heads.of`, the label's first.

    Raises:
      ConfigError: the network can't be built so, or its weights are not those of the backbone.
      SafelightError: ImageNet's weights, or a feature vector, could not be fetched.
    """
    model = rebuild(
        architecture(train), image_size=image_size, channels=channels, heads=heads, assets=None
    )
    if train.weights:
        weights.load(pretrained.find(model), train.backbone, train.weights)
    return model


def rebuild(
    architecture: Mapping[str, Any],
    *,
    image_size: int,
    channels: int,
    heads: Sequence[Head],
    assets: Path | None,
) -> keras.Model:
    """Returns the network that `architecture` was taken of, with random weights.

    Args:
      architecture: of `architecture`.
      image_size: the side in pixels.
      channels: 1 or 3.
      heads: the label's first.
      assets: the export's directory of assets, which a feature vector's SavedModel was copied to;
        None takes it from where train.feature_vector says.

    Raises:
      ConfigError: the network can't be built so.
    """
    for head in heads:
        if head.kind == "class" and len(head.classes) < 2:
            what = "A classifier" if head.name == LABEL else f"The head {head.name!r}"
            raise ConfigError(
                f"{what} needs at least 2 classes; there is {len(head.classes)}. Add images of "
                "another."
            )
    pixels = keras.Input((image_size, image_size, channels), name="pixels", dtype="float32")
    features = _features(architecture, pixels, assets)
    dropout = _dropout(architecture)
    if dropout:
        features = layers.Dropout(dropout)(features)
    answers = {head.name: _answer(head, features) for head in heads}
    outputs = answers if len(heads) > 1 else answers[heads[0].name]
    try:
        return keras.Model(pixels, outputs, name=_model_name(architecture))
    except ValueError as error:
        if not architecture["model"]:
            raise
        raise ConfigError(
            f"train.model {architecture['model']!r} makes no network with the heads: "
            f"{first_line(error)} Its features have to come from the Keras tensor that it is "
            "called with, and none of its layers may be called pixels, pooled, probabilities or "
            "like another."
        ) from error


def assets(model: keras.Model) -> Path | None:
    """Returns the directory of the SavedModel that an export has to bring along, if any.

    It goes to `feature_vector/` in the directory that `rebuild` is given as `assets`.
    """
    backbone = pretrained.find(model)
    return Path(backbone.directory) if isinstance(backbone, feature_vector.FeatureVector) else None


def loaded(model: keras.Model) -> Any:
    """Returns the SavedModel that a network stands on, which may have tables; None without one."""
    backbone = pretrained.find(model)
    return backbone.loaded if isinstance(backbone, feature_vector.FeatureVector) else None


def set_weights(model: keras.Model, values: Sequence[np.ndarray[Any, Any]]) -> None:
    """Gives a model its weights, in Keras's order, from a network of the same architecture.

    Normalization layers compute with constants that are made of their weights: where a network
    has such a layer (EfficientNet), setting the weights alone would leave the old ones.
    """
    model.set_weights(values)
    weights.settle(model)


def _features(
    architecture: Mapping[str, Any], pixels: keras.KerasTensor, assets: Path | None
) -> keras.KerasTensor:
    """Returns float32 [batch, features]."""
    if architecture["backbone"]:
        found = pretrained.features(pixels, architecture["backbone"])
    elif architecture["feature_vector"]:
        where = architecture["feature_vector"]
        if assets is not None and (assets / FEATURE_VECTOR).is_dir():
            where = str(assets / FEATURE_VECTOR)
        found = feature_vector.features(pixels, where)
    elif architecture["model"]:
        return _pooled(own.features(pixels, architecture["model"]), architecture["pooling"])
    else:
        return _of_preset(architecture["preset"], pixels)
    found = _pooled(found, architecture["pooling"])
    if architecture["head_width"]:
        found = layers.Dense(architecture["head_width"], activation="relu", name="head")(found)
    return found


def _of_preset(name: str, pixels: keras.KerasTensor) -> keras.KerasTensor:
    preset = presets.get(name)
    if pixels.shape[1] < preset.min_image_size:
        raise ConfigError(
            f"transform.image_size {pixels.shape[1]} is too small for train.preset {name!r}; "
            f"expected at least {preset.min_image_size}. Raise it, or leave it to be chosen from "
            "the data."
        )
    return _LAYERS[name](pixels)


def _dropout(architecture: Mapping[str, Any]) -> float:
    if architecture["dropout"] is not None:
        return float(architecture["dropout"])
    return presets.get(architecture["preset"]).dropout if architecture["preset"] else 0.0


def _pooled(found: keras.KerasTensor, pooling: str) -> keras.KerasTensor:
    if len(found.shape) == 2:
        return found
    pool = layers.GlobalMaxPooling2D if pooling == "max" else layers.GlobalAveragePooling2D
    return pool(name="pooled")(found)


def _answer(head: Head, features: keras.KerasTensor) -> keras.KerasTensor:
    # Other layers are called "head", "pooled" or "dense", and so may a head of train.heads be.
    name = "probabilities" if head.name == LABEL else f"{head.name}_head"
    # Whatever the precision of the layers before, answers are float32.
    if head.kind == "regression":
        number = layers.Dense(1, name=name, dtype="float32")(features)
        return keras.ops.squeeze(number, axis=-1)
    return layers.Dense(len(head.classes), activation="softmax", name=name, dtype="float32")(
        features
    )


def _model_name(architecture: Mapping[str, Any]) -> str:
    named = architecture["preset"] or architecture["backbone"]
    return named.replace("-", "_") if named else "network"
