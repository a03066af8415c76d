"""Presets: which one is chosen for which data, and what an unknown name is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import config, presets
from pipeline.config import Train
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


def complete(
    image_size: int = 32, channels: int = 3, normalize: str = "unit", **settings: Any
) -> Train:
    train = Train.model_validate(settings)
    return presets.complete(train, image_size=image_size, channels=channels, normalize=normalize)


def test_the_data_s_preset_and_its_epochs_fill_what_is_open() -> None:
    train = complete()
    assert (train.preset, train.epochs, train.phases) == ("cifar10-cnn", 10, ())
    assert complete(preset="mnist-cnn", epochs=2).epochs == 2
    assert complete(28, 1).preset == "mnist-cnn"
    again = presets.complete(train, image_size=32, channels=3, normalize="unit")
    assert again == train


def test_a_preset_s_own_settings_fill_what_is_open() -> None:
    tuned = presets.get("cifar10-fast").defaults
    train = complete(preset="cifar10-fast", label_smoothing=0.0)
    assert train.schedule == tuned["schedule"]
    assert train.learning_rate == tuned["learning_rate"]
    assert train.label_smoothing == 0
    assert [step.name for step in train.augment] == ["flip", "crop"]
    # A rate found for one optimizer is none for another.
    other = complete(preset="cifar10-fast", optimizer="adam")
    assert (other.learning_rate, other.weight_decay) == (0.001, 0.0)
    same = complete(preset="cifar10-fast", optimizer=str(tuned["optimizer"]))
    assert same.model_dump() == complete(preset="cifar10-fast").model_dump()


def test_adamw_decays() -> None:
    assert complete(optimizer="adamw").weight_decay == 0.004
    assert complete(optimizer="adamw", weight_decay=0.1).weight_decay == 0.1


def test_transfer_learning_has_two_phases() -> None:
    train = complete(backbone="MobileNetV2", weights="imagenet", learning_rate=0.01)
    assert train.preset is None
    head, fine = train.phases
    assert (head["unfreeze"], fine["unfreeze"]) == ("none", "20%")
    assert fine["learning_rate"] == pytest.approx(0.001)
    assert train.epochs == head["epochs"] + fine["epochs"] == 9
    assert [
        p["epochs"] for p in complete(backbone="VGG16", weights="imagenet", epochs=5).phases
    ] == [
        4,
        1,
    ]
    assert len(complete(backbone="VGG16", weights="imagenet", epochs=1).phases) == 1
    # Random weights: there is nothing to keep.
    assert complete(backbone="MobileNetV2").phases == ()
    given = complete(backbone="VGG16", weights="imagenet", phases=[{"epochs": 3}])
    assert (given.epochs, given.phases) == (3, ({"epochs": 3},))


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.weights.h5").touch()
    train = complete(backbone="VGG16", weights="mine.weights.h5")
    assert train.weights == str(tmp_path / "mine.weights.h5")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "InceptionV3", "image_size": 64}, "image_size 64.*'InceptionV3'.*least 75"),
        ({"preset": "cifar10-fast", "image_size": 14}, "image_size 14.*'cifar10-fast'.*least 16"),
        (
            {"backbone": "VGG16", "normalize": "standard"},
            "transform.normalize=standard can't go with train.backbone",
        ),
        ({"backbone": "VGG16", "weights": "imagnet"}, "train.weights 'imagnet' does not exist"),
        ({"backbone": "cifar10-fast", "weights": "imagenet"}, "there are none.*'cifar10-fast'"),
        ({"feature_vector": "nowhere"}, "'nowhere' is no SavedModel"),
        (
            {"preset": "mnist-cnn", "phases": [{"epochs": 1, "unfreeze": "none"}]},
            "unfreezes 'none', but train.preset 'mnist-cnn'",
        ),
        (
            {
                "feature_vector": "https://example.org/vector/1",
                "phases": [{"epochs": 1, "unfreeze": "20%"}],
            },
            "unfreezes '20%', but train.feature_vector",
        ),
    ],
)
def test_what_can_not_be_trained_is_refused_before_anything_runs(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        complete(**settings)


def test_a_backbone_is_given_larger_pictures() -> None:
    wide = Train(backbone="ResNet50")
    assert presets.choose_side(wide, 640, 480) == 224
    assert presets.choose_side(wide, 100, 80) == 100
    assert presets.choose_side(Train(backbone="Xception"), 20, 28) == 71
    assert presets.choose_side(Train(feature_vector="vector"), 640, 480) == 224
    assert presets.choose_side(Train(), 640, 480) == 64
