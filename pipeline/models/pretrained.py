"""Backbones: keras.applications' networks without their classifier, behind their own scaling."""

from __future__ import annotations

from typing import Any, Final

import keras
from keras import layers

from pipeline import backbones
from pipeline.errors import ConfigError
from pipeline.models import cnn
from pipeline.models.feature_vector import FeatureVector

# ImageNet's mean and deviation of red, green, blue, as the weights were trained with.
_MEAN_BYTES: Final = (123.68, 116.779, 103.939)
_MEAN_UNIT: Final = (0.485, 0.456, 0.406)
_STD_UNIT: Final = (0.229, 0.224, 0.225)


def features(pixels: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Returns a backbone's last feature map, [batch, height, width, features], of random weights.

    Args:
      pixels: float32 [batch, side, side, 1 or 3] in 0-1; grey is repeated to three channels.
      name: a key of `backbones.BACKBONES`.

    Raises:
      ConfigError: an unknown name, or too small an image.
    """
    backbone = backbones.get(name)
    side = pixels.shape[1]
    if side < backbone.min_side:
        raise ConfigError(
            f"transform.image_size {side} is too small for train.backbone {name!r}; expected at "
            f"least {backbone.min_side}. Raise it, or leave it to be chosen from the data."
        )
    return make(name, side)(scale(coloured(pixels), backbone.scaling))


def make(name: str, side: int) -> keras.Model:
    """Returns a backbone of random weights that takes [batch, side, side, 3], scaled."""
    if name not in dir(keras.applications):
        pixels = keras.Input((side, side, 3))
        return keras.Model(pixels, cnn.cifar10_fast_map(pixels), name="cifar10_fast")
    make_network = getattr(keras.applications, name)
    return make_network(include_top=False, weights=None, input_shape=(side, side, 3))


def find(model: keras.Model) -> keras.Model | FeatureVector | None:
    """Returns the backbone, feature vector or own network inside of a model; None in a preset."""
    for layer in model.layers:
        if isinstance(layer, (keras.Model, FeatureVector)):
            return layer
    return None


def coloured(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """Repeats grey to three channels."""
    return pixels if pixels.shape[-1] == 3 else layers.Concatenate()([pixels] * 3)


def scale(pixels: keras.KerasTensor, scaling: backbones.Scaling) -> keras.KerasTensor:
    """Returns pixels in 0-1 as a backbone expects them; always computed in float32."""
    options: dict[str, Any] = {"dtype": "float32", "name": "scaling"}
    if scaling == "bytes":
        return layers.Rescaling(255.0, **options)(pixels)
    if scaling == "symmetric":
        return layers.Rescaling(2.0, offset=-1.0, **options)(pixels)
    if scaling == "standard":
        variance = [deviation**2 for deviation in _STD_UNIT]
        return layers.Normalization(mean=_MEAN_UNIT, variance=variance, **options)(pixels)
    if scaling == "mean_bgr":
        mean = [value / 255 for value in _MEAN_BYTES]
        variance = [(1 / 255) ** 2] * 3
        centred = layers.Normalization(mean=mean, variance=variance, **options)(pixels)
        return keras.ops.flip(centred, axis=-1)
    return pixels
