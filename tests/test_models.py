"""The networks: their layers, sizes and outputs, and what can't be built."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipeline import models, presets
from pipeline.config import Train
from pipeline.errors import ConfigError
from pipeline.heads import Head

SEVERITY = Head(name="severity", kind="regression", loss="mse")
GRADE = Head(name="grade", kind="class", classes=("a", "b", "c"), loss="cross-entropy")


def label(classes: int) -> Head:
    return Head(name="label", kind="class", classes=tuple(map(str, range(classes))))


def build(name: str, classes: int = 10, more: Sequence[Head] = (), **changes: int) -> keras.Model:
    preset = presets.get(name)
    size = {"image_size": preset.image_size, "channels": preset.channels, **changes}
    return models.build(Train(preset=name), heads=(label(classes), *more), **size)


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


def test_the_fashion_network_has_fewer_than_100_000_parameters() -> None:
    assert build("fashion-cnn").count_params() < 100_000


@pytest.mark.parametrize("name", presets.PRESETS)
@pytest.mark.parametrize(("side", "channels"), [(None, 1), (37, 3)])
def test_each_takes_any_size_and_gives_probabilities(
    name: str, side: int | None, channels: int
) -> None:
    side = side or presets.get(name).min_image_size
    model = build(name, classes=2, image_size=side, channels=channels)
    pixels = np.random.default_rng(1).random((3, side, side, channels), np.float32)
    probabilities = np.asarray(model(pixels))
    assert probabilities.shape == (3, 2)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_several_heads_answer_by_name() -> None:
    model = build("mnist-cnn-small", classes=2, more=(GRADE, SEVERITY))
    answers = model(np.zeros((5, 28, 28, 1), np.float32))
    assert list(answers) == ["label", "grade", "severity"]
    shapes = {name: tuple(answer.shape) for name, answer in answers.items()}
    assert shapes == {"label": (5, 2), "grade": (5, 3), "severity": (5,)}
    assert {np.asarray(answer).dtype for answer in answers.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["head", "pooled", "pixels", "cifar10_fast", "dropout"])
def test_a_head_may_be_called_as_one_of_the_networks_layers(name: str) -> None:
    keras.utils.clear_session()  # its layers get the names that they have in a process of their own
    train = Train(backbone="cifar10-fast", dropout=0.1)
    kinds: list[Any] = ["class", "regression"]
    for kind in kinds:
        more = Head(name=name, kind=kind, classes=("a", "b"))
        model = models.build(train, image_size=16, channels=3, heads=(label(2), more))
        assert list(model(np.zeros((1, 16, 16, 3), np.float32))) == ["label", name]


def test_the_same_network_is_built_from_its_architecture() -> None:
    train = Train(preset="cifar10-cnn", dropout=0.1)
    described = json.loads(json.dumps(models.architecture(train)))
    heads = (label(4), SEVERITY)
    one = models.build(train, image_size=16, channels=3, heads=heads)
    other = models.rebuild(described, image_size=16, channels=3, heads=heads, assets=None)
    assert layers_of(one) == layers_of(other)
    assert "Dropout0.1" in layers_of(one)
    other.set_weights(one.get_weights())
    pixels = np.random.default_rng(2).random((2, 16, 16, 3), np.float32)
    for name, answer in one(pixels).items():
        np.testing.assert_array_equal(answer, other(pixels)[name])
    assert models.assets(one) is None


def test_what_can_not_be_built_is_said() -> None:
    with pytest.raises(ConfigError, match="image_size 11 is too small.*at least 12"):
        build("mnist-cnn", image_size=11)
    with pytest.raises(ConfigError, match="at least 2 classes; there is 1"):
        build("mnist-cnn", classes=1)
    with pytest.raises(ConfigError, match="The head 'grade' needs at least 2 classes"):
        build("mnist-cnn", more=(Head(name="grade", kind="class", classes=("only",)),))


OWN = """
import keras

def features(pixels):
    return keras.layers.Flatten()(keras.layers.Conv2D(4, 3)(pixels))

def network(pixels):
    inside = keras.Input(pixels.shape[1:])
    x = keras.layers.Conv2D(4, 3, name="first")(inside)
    return keras.Model(inside, keras.layers.Conv2D(6, 3, name="second")(x))

def nothing(pixels):
    return "features"

def elsewhere(pixels):
    return keras.layers.Flatten()(keras.Input(pixels.shape[1:]))

def taken(pixels):
    return keras.layers.Dense(3, name="probabilities")(keras.layers.Flatten()(pixels))

def wrong(pixels):
    return keras.layers.Dense(3)(undefined)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds a function of a module in the current directory."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)

    def make(function: str) -> keras.Model:
        train = Train(model=f"{name}:{function}")
        return models.build(train, image_size=16, channels=1, heads=(label(3),))

    return make


def test_an_own_network_gives_features_or_a_model(own: Any) -> None:
    pixels = np.zeros((2, 16, 16, 1), np.float32)
    assert layers_of(own("features"))[-2:] == ["Flatten", "Dense3"]
    model = own("network")
    assert layers_of(model) == ["Functional", "GlobalAveragePooling2D", "Dense3"]
    assert model(pixels).shape == (2, 3)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "returned str; expected features"),
        ("wrong", "failed with NameError: name 'undefined'.*None, 16, 16, 1"),
        ("elsewhere", "elsewhere' makes no network with the heads.*come from the Keras tensor"),
        ("taken", 'makes no network.*"probabilities" is used 2 times.*none of its layers may be'),
        ("feature", "no function 'feature'.*Did you mean 'features'"),
    ],
)
def test_an_own_network_that_is_none_is_refused(own: Any, function: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        own(function)
