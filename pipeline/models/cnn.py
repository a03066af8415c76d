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
    return layers.Dense(512, activation="relu")(x)


def image64(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """Conv32, pool, Conv64, pool, Dense128: [batch, side, side, channels] to [batch, 128]."""
    x = mnist(pixels)
    return layers.Dense(128, activation="relu")(x)


def fashion(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """Convolutions of 32, 32, 64, 64, 48: [batch, side, side, channels] to [batch, 48]."""
    x = pixels
    for filters in (32, 64):
        x = _convolved(x, filters)
        x = _convolved(x, filters)
        x = layers.MaxPooling2D()(x)
    return layers.GlobalAveragePooling2D()(_convolved(x, 48))


def cifar10_fast(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """`cifar10_fast_map`, averaged: [batch, side, side, channels] to [batch, 256]."""
    return layers.GlobalAveragePooling2D()(cifar10_fast_map(pixels))


def cifar10_fast_map(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """A short residual network: [batch, side, side, channels] to [batch, side/8, side/8, 256].

    Pooling stands before normalization, and the residuals (He et al. 2016) where maps are small:
    on a CPU what touches every pixel of a large map costs more than the convolutions. The widest
    ones come behind the last pooling, where a filter costs a quarter of what it does before.
    """
    x = _convolved(pixels, 32, halved=True)
    x = _convolved(x, 64, halved=True)
    x = _convolved(x, 128)
    x = layers.Add()([x, _convolved(x, 128)])
    x = _convolved(layers.MaxPooling2D()(x), 256)
    return layers.Add()([x, _convolved(x, 256)])


def _convolved(x: keras.KerasTensor, filters: int, halved: bool = False) -> keras.KerasTensor:
    """Convolution, pooling to half the side if asked for, batch normalization, ReLU."""
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
    if halved:
        x = layers.MaxPooling2D()(x)
    # Few epochs of few steps: the moving statistics have to follow within a hundred steps.
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.Activation("relu")(x)
