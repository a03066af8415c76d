"""The small convolutional networks, from pixels to what stands before the softmax."""

from __future__ import annotations

import keras
from keras import layers


def mnist(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """Conv32, pool, Conv64, pool, flatten: [batch, side, side, channels] to [batch, features]."""
    x = layers.Conv2D(32, 3, activation="relu")(pixels)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(64, 3, activation="relu")(x)
    x = layers.MaxPooling2D()(x)
    return layers.Flatten()(x)


def mnist_small(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """Conv32, pool, flatten: [batch, side, side, channels] to [batch, features]."""
    x = layers.Conv2D(32, 3, activation="relu")(pixels)
    x = layers.MaxPooling2D()(x)
    return layers.Flatten()(x)


def cifar10(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """Two blocks of two convolutions, Dense512: [batch, side, side, channels] to [batch, 512]."""
    x = pixels
    for filters in (32, 64):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x)
        x = layers.Dropout(0.25)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(512, activation="relu")(x)
    return layers.Dropout(0.5)(x)


def image64(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """Conv32, pool, Conv64, pool, Dense128: [batch, side, side, channels] to [batch, 128]."""
    x = mnist(pixels)
    return layers.Dense(128, activation="relu")(x)
