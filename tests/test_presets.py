"""Presets: which one is chosen for which data, and what an unknown name is told."""

from __future__ import annotations

import pytest

from pipeline import config, presets
from pipeline.errors import ConfigError


def test_the_configuration_takes_each_of_them() -> None:
    assert all(config.Train(preset=name).preset == name for name in presets.PRESETS)
    assert all(name == preset.name for name, preset in presets.PRESETS.items())


@pytest.mark.parametrize(
    ("image_size", "channels", "expected"),
    [
        (28, 1, "mnist-cnn"),
        (32, 3, "cifar10-cnn"),
        (64, 3, "image64-cnn"),
        (28, 3, "image64-cnn"),
        (32, 1, "image64-cnn"),
        (200, 1, "image64-cnn"),
    ],
)
def test_the_preset_made_for_an_input_is_chosen(
    image_size: int, channels: int, expected: str
) -> None:
    assert presets.choose(image_size, channels) == expected


@pytest.mark.parametrize(
    ("width", "height", "channels", "expected"),
    [
        (28, 28, 1, (28, 1, "mnist-cnn")),
        (32, 32, 3, (32, 3, "cifar10-cnn")),
        (64, 64, 3, (64, 3, "image64-cnn")),
        (640, 480, 3, (64, 3, "image64-cnn")),
        (40, 30, 3, (40, 3, "image64-cnn")),
        (20, 28, 1, (28, 1, "mnist-cnn")),
        (4, 6, 1, (12, 1, "image64-cnn")),
    ],
)
def test_small_data_keeps_its_size_and_large_data_is_shrunk(
    width: int, height: int, channels: int, expected: tuple[int, int, str]
) -> None:
    assert presets.choose_input(width, height, channels) == expected


def test_an_unknown_preset_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="'mnist-ccn'.*Did you mean 'mnist-cnn'"):
        presets.get("mnist-ccn")
