"""The systems S1 to S10, each through the whole of `safelight run` on real digits, to an accuracy.

A floor lies below what a run reaches by more than chance makes of it: it catches what is broken.
What was reached is printed (`pytest -s`) and kept as the test's property `reached` (`--junit-xml`).
S7 (several heads) is tests/e2e/test_heads.py, the search of S10 tests/e2e/test_search.py, and that
every backbone of S4 and S5 builds, learns, exports and serves is tests/test_backbones.py.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.commands import demo
from tests.e2e.command import safelight

pytestmark = pytest.mark.slow

# The digits with few images in the data of S9.
RARE = ("3", "5", "8")


@dataclass(frozen=True)
class System:
    """A system's settings, and what its metric may not fall below."""

    settings: tuple[str, ...]
    floor: float
    metric: str = "accuracy"


SYSTEMS = {
    "S1": System(("train.preset=mnist-cnn",), 0.92),
    "S1-small": System(("train.preset=mnist-cnn-small",), 0.86),
    "S2": System(
        (
            *("train.preset=cifar10-cnn", "transform.image_size=32", "transform.channels=3"),
            *("train.epochs=3", "ingest.max_images=2000"),
        ),
        0.85,
    ),
    "S3": System(
        (
            *("train.preset=image64-cnn", "transform.image_size=64", "transform.channels=3"),
            *("train.epochs=3", "ingest.max_images=2000"),
        ),
        0.8,
    ),
    "S5": System(
        (
            *("train.backbone=MobileNet", "transform.image_size=32", "transform.channels=3"),
            *("train.epochs=6", "ingest.max_images=3000"),
        ),
        0.7,
    ),
    "S8": System(
        (
            "train.preset=mnist-cnn",
            'train.augment=[{name="rotation", factor=0.03, fill_mode="nearest"}, "translation", '
            '"shear", "zoom", {name="crop", padding=0.1}, "color_jitter", '
            '{name="rand_augment", strength=0.2}, {name="mixup", probability=0.5}, '
            '{name="cut_mix", probability=0.3}]',
            *("train.epochs=6", "ingest.max_images=3000"),
        ),
        0.75,
    ),
    "S10": System(
        (
            *("train.preset=mnist-cnn", "train.optimizer=sgd", "train.learning_rate=0.03"),
            *("train.schedule=cosine", "train.warmup_epochs=1", "train.weight_decay=0.0005"),
            *("train.dropout=0.3", "train.label_smoothing=0.05", "train.patience=3"),
            *("train.clip_norm=5.0", "train.ema=0.98", "train.epochs=6"),
        ),
        0.9,
    ),
}
IMBALANCED = {
    "weights": "train.class_weights=balanced",
    "effective": "train.class_weights=effective",
    "oversample": "train.oversample=1",
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The 5,000 digits as class folders."""
    return demo.write_digits(tmp_path_factory.mktemp("systems") / "digits")


def some(digits: Path, folder: Path, names: str, counts: dict[str, int] | None = None) -> Path:
    """Copies the folders of these digits, of some only so many images; returns `folder`."""
    for name in names:
        files = sorted((digits / name).iterdir())
        (folder / name).mkdir(parents=True)
        for path in files[: (counts or {}).get(name)]:
            shutil.copy(path, folder / name)
    return folder


def reached(record_property, data: Path, workdir: Path, metric: str, *settings: str) -> float:
    """Runs on `data`, and returns a metric on test; whether it is blessed does not matter here."""
    options = [word for setting in settings for word in ("--set", setting)]
    ended = safelight("run", data, "--workdir", workdir, *options, "--json", timeout=1800)
    assert ended.code in (0, 3), ended.stderr
    found: float = ended.result["metrics"][metric]
    record_property("reached", f"{metric} {found:.4f}")
    print(f"\n{metric} {found:.4f} with {' '.join(settings)}")
    return found


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_reaches_its_floor(name, digits, tmp_path, record_property):
    system = SYSTEMS[name]
    found = reached(record_property, digits, tmp_path / "work", system.metric, *system.settings)
    assert found >= system.floor


@pytest.fixture(scope="module")
def pretrained(digits, tmp_path_factory):
    """A backbone that was trained on the digits 0 to 4: the directory of the pushed model."""
    root = tmp_path_factory.mktemp("pretrained")
    ended = safelight(
        *("run", some(digits, root / "data", "01234"), "--workdir", root / "work"),
        *("--set", "train.backbone=cifar10-fast", "--set", "transform.image_size=32"),
        *("--set", "train.epochs=5", "--json"),
    )
    assert ended.code == 0, ended.stderr
    return Path(ended.result["pushed_to"])


def test_s4_transfer_learning_in_two_phases(digits, pretrained, tmp_path, record_property):
    data = some(digits, tmp_path / "data", "56789", dict.fromkeys("56789", 200))
    settings = (
        *("train.backbone=cifar10-fast", f"train.weights={pretrained}", "train.head_width=128"),
        "train.phases=[{epochs=4, unfreeze='none'}, "
        "{epochs=4, unfreeze='20%', learning_rate=0.0003}]",
        "transform.image_size=32",
    )
    assert reached(record_property, data, tmp_path / "work", "accuracy", *settings) >= 0.85


def test_s6_a_feature_vector_from_a_local_directory(digits, tmp_path, record_property):
    import keras

    keras.utils.set_random_seed(5)
    inside = keras.Input((28, 28, 3))
    hidden = keras.layers.Conv2D(32, 3, activation="relu")(inside)
    hidden = keras.layers.MaxPooling2D()(hidden)
    outside = keras.layers.Flatten()(keras.layers.Conv2D(32, 3, activation="relu")(hidden))
    network = keras.Model(inside, outside)
    network.export(str(tmp_path / "vector"), verbose=False)
    settings = (
        *(f"train.feature_vector={tmp_path / 'vector'}", "transform.image_size=28"),
        *("transform.channels=3", "train.epochs=6", "ingest.max_images=3000"),
    )
    assert reached(record_property, digits, tmp_path / "work", "accuracy", *settings) >= 0.85


@pytest.mark.parametrize("name", IMBALANCED)
def test_s9_rare_classes_are_found(name, digits, tmp_path, record_property):
    counts = {name: 60 if name in RARE else 400 for name in "0123456789"}
    data = some(digits, tmp_path / "data", "0123456789", counts)
    settings = ("train.preset=mnist-cnn", "train.epochs=6", IMBALANCED[name])
    assert reached(record_property, data, tmp_path / "work", "macro_recall", *settings) >= 0.8
