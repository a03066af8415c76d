"""Keras models: `build` makes the network of a preset."""

from __future__ import annotations

import keras

from pipeline import presets
from pipeline.errors import ConfigError
from pipeline.models import cnn

_LAYERS = {
    "mnist-cnn": cnn.mnist,
    "mnist-cnn-small": cnn.mnist_small,
    "cifar10-cnn": cnn.cifar10,
    "image64-cnn": cnn.image64,
}


def build(name: str, *, image_size: int, channels: int, classes: int) -> keras.Model:
    """Returns a new network with random weights.

    It takes float32 [batch, image_size, image_size, channels] and gives the probabilities of the
    classes, float32 [batch, classes].

    Args:
      name: a key of `presets.PRESETS`.
      image_size: the side in pixels.
      channels: 1 or 3.
      classes: how many there are.

    Raises:
      ConfigError: an unknown name, too small an image, or fewer than two classes.
    """
    preset = presets.get(name)
    if image_size < preset.min_image_size:
        raise ConfigError(
            f"transform.image_size {image_size} is too small for train.preset {name!r}; expected "
            f"at least {preset.min_image_size}. Raise it, or leave it to be chosen from the data."
        )
    if classes < 2:
        raise ConfigError(
            f"A classifier needs at least 2 classes; there is {classes}. Add images of another."
        )
    pixels = keras.Input((image_size, image_size, channels), name="pixels", dtype="float32")
    hidden = _LAYERS[name](pixels)
    # Whatever the precision of the layers before, probabilities are float32.
    probabilities = keras.layers.Dense(
        classes, activation="softmax", name="probabilities", dtype="float32"
    )(hidden)
    return keras.Model(pixels, probabilities, name=name.replace("-", "_"))
