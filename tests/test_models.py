"""The networks: their layers, sizes and outputs, and what can't be built."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from pipeline import models, presets
from pipeline.errors import ConfigError


def build(name: str, classes: int = 10, **changes: int) -> keras.Model:
    preset = presets.get(name)
    size = {"image_size": preset.image_size, "channels": preset.channels, **changes}
    return models.build(name, classes=classes, **size)


def layers_of(model: keras.Model) -> list[str]:
    """Returns the kinds of the layers with their widths or rates, as in Conv2D32."""
    names = []
    for layer in model.layers[1:]:
        setting = layer.get_config()
        size = setting.get("filters") or setting.get("units") or setting.get("rate") or ""
        names.append(f"{type(layer).__name__}{size}")
    return names


def test_s1_is_the_mnist_network() -> None:
    model = build("mnist-cnn")
    assert layers_of(model) == [
        "Conv2D32",
        "MaxPooling2D",
        "Conv2D64",
        "MaxPooling2D",
        "Flatten",
        "Dense10",
    ]
    assert model.count_params() == 34_826  # (9+1)32 + (288+1)64 + (5*5*64+1)10


def test_the_small_one_has_one_convolution() -> None:
    assert layers_of(build("mnist-cnn-small")) == ["Conv2D32", "MaxPooling2D", "Flatten", "Dense10"]


def test_s2_is_the_cifar10_network() -> None:
    model = build("cifar10-cnn")
    block = ["Conv2D{0}", "Conv2D{0}", "MaxPooling2D", "Dropout0.25"]
    assert layers_of(model) == [
        *(layer.format(32) for layer in block),
        *(layer.format(64) for layer in block),
        "Flatten",
        "Dense512",
        "Dropout0.5",
        "Dense10",
    ]
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert {layer.padding for layer in convolutions} == {"same"}
    assert presets.get("cifar10-cnn").loss == "categorical_crossentropy"


def test_s3_is_the_general_network() -> None:
    assert layers_of(build("image64-cnn", classes=3)) == [
        "Conv2D32",
        "MaxPooling2D",
        "Conv2D64",
        "MaxPooling2D",
        "Flatten",
        "Dense128",
        "Dense3",
    ]


@pytest.mark.parametrize("name", presets.PRESETS)
@pytest.mark.parametrize(("image_size", "channels"), [(12, 1), (12, 3), (37, 3)])
def test_each_takes_any_size_and_gives_probabilities(
    name: str, image_size: int, channels: int
) -> None:
    model = build(name, classes=2, image_size=image_size, channels=channels)
    pixels = np.random.default_rng(1).random((3, image_size, image_size, channels), np.float32)
    probabilities = np.asarray(model(pixels))
    assert probabilities.shape == (3, 2)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_what_can_not_be_built_is_said() -> None:
    with pytest.raises(ConfigError, match="image_size 11 is too small.*at least 12"):
        build("mnist-cnn", image_size=11)
    with pytest.raises(ConfigError, match="at least 2 classes; there is 1"):
        build("mnist-cnn", classes=1)
    with pytest.raises(ConfigError, match="no train.preset 'vgg'"):
        models.build("vgg", image_size=28, channels=1, classes=10)
