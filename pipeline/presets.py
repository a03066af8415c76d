"""The networks by name: what each is, what it reaches, what it costs, and which data it suits.

Plain Python: the command line prints this without TensorFlow. The layers are in `pipeline.models`.
`complete` gives a configuration what it leaves open, whatever its network, and refuses what can't
be trained before anything runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from pipeline import backbones, phases
from pipeline.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from pipeline.config import Train

Loss = Literal["sparse_categorical_crossentropy", "categorical_crossentropy"]

# Two unpadded 3x3 convolutions with a pooling behind each leave one pixel of ten. Twelve leaves
# the same single pixel, and is a size that pictures have.
MIN_SIDE: Final = 12

# Data up to this side keeps its size; larger pictures are shrunk to it.
MAX_CHOSEN_SIDE: Final = 64

# Keys of train that may name a file or a directory.
PATHS: Final = ("weights", "feature_vector")

# Epochs of a network that has none of its own, and of transfer learning's two phases.
_EPOCHS: Final = 10
_HEAD_EPOCHS: Final = 6
_FINE_EPOCHS: Final = 3
_FINE_SHARE: Final = "20%"
_FINE_RATE: Final = 0.1

# Keras's own default; AdamW without any decay is Adam.
_ADAMW_DECAY: Final = 0.004


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One network, without its input size and number of classes.

    `image_size` and `channels` are the ones that it was designed for; it takes any side from
    `min_image_size` on, grey or colour, and any number of classes from two on. `dropout` stands
    before the heads. `defaults` are keys of train that it was tuned with, for those left open.
    """

    name: str
    doc: str
    epochs: int
    image_size: int
    channels: Literal[1, 3]
    loss: Loss
    min_image_size: int = MIN_SIDE
    dropout: float = 0.0
    defaults: Mapping[str, Any] = field(default_factory=dict)


_MNIST: Final = Preset(
    name="mnist-cnn",
    doc="Conv32-Pool-Conv64-Pool-Flatten-Dense with softmax, for small grey pictures such as "
    "handwritten digits: 94.7 to 96.2 % on 1,000 test digits after 5 epochs on 3,500, in three "
    "splits. 35,000 parameters at 28x28x1 and 10 classes.",
    epochs=5,
    image_size=28,
    channels=1,
    loss="sparse_categorical_crossentropy",
)
_MNIST_SMALL: Final = Preset(
    name="mnist-cnn-small",
    doc="mnist-cnn with its first convolution only: about half of its processor time, and two "
    "points less accurate (91.1 against 93.3 % of 1,000 test digits, in one split). 54,000 "
    "parameters at 28x28x1 and 10 classes.",
    epochs=5,
    image_size=28,
    channels=1,
    loss="sparse_categorical_crossentropy",
)
_CIFAR10: Final = Preset(
    name="cifar10-cnn",
    doc="Two blocks of two padded convolutions (32, then 64 filters), pooling and dropout 0.25; "
    "Dense512 and dropout 0.5; softmax on one-hot labels. For small colour pictures: 74.9 % of "
    "CIFAR-10's test images after 10 epochs, which take 14 minutes on 2 cores. 2.2 million "
    "parameters at 32x32x3 and 10 classes.",
    epochs=10,
    image_size=32,
    channels=3,
    loss="categorical_crossentropy",
    dropout=0.5,
)
_IMAGE64: Final = Preset(
    name="image64-cnn",
    doc="Conv32-Pool-Conv64-Pool-Dense128 with softmax, for pictures of any kind shrunk to 64x64. "
    "72.2 % of CIFAR-10's cats and dogs, enlarged to it, after 10 epochs: 7 minutes on 2 cores. "
    "1.6 million parameters at 64x64x3 and 10 classes.",
    epochs=10,
    image_size=64,
    channels=3,
    loss="sparse_categorical_crossentropy",
)
_FASHION: Final = Preset(
    name="fashion-cnn",
    doc="Two padded convolutions of 32, two of 64 and one of 48 filters, each with batch "
    "normalization, pooling between, global average pooling, dropout 0.2; AdamW with a one-cycle "
    "rate, label smoothing, flips and small shifts. For small grey pictures: 92.8 % of "
    "Fashion-MNIST's test images after 15 epochs, which took 38 minutes on 2 busy cores. 94,000 "
    "parameters at 28x28x1 and 10 classes.",
    epochs=15,
    image_size=28,
    channels=1,
    loss="categorical_crossentropy",
    dropout=0.2,
    defaults={
        "optimizer": "adamw",
        "learning_rate": 0.004,
        "weight_decay": 0.02,
        "schedule": "one-cycle",
        "label_smoothing": 0.05,
        "patience": 0,
        "augment": ["flip", {"name": "translation", "height": 0.07, "width": 0.07}],
    },
)
_CIFAR10_FAST: Final = Preset(
    name="cifar10-fast",
    doc="A short residual network of 32, 64, 128 and 256 filters with batch normalization, for "
    "small colour pictures; AdamW with a one-cycle rate, label smoothing, flips and crops. 84.1 % "
    "of CIFAR-10's test images after 8 epochs, in 0.93 of the time that cifar10-cnn takes for its "
    "10. 1.1 million parameters at 32x32x3 and 10 classes.",
    epochs=8,
    image_size=32,
    channels=3,
    loss="categorical_crossentropy",
    min_image_size=16,
    defaults={
        "optimizer": "adamw",
        "learning_rate": 0.012,
        "weight_decay": 0.05,
        "schedule": "one-cycle",
        "label_smoothing": 0.1,
        "patience": 0,
        "augment": ["flip", {"name": "crop", "padding": 0.0625}],
    },
)

PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        preset.name: preset
        for preset in (_MNIST, _MNIST_SMALL, _CIFAR10, _IMAGE64, _FASHION, _CIFAR10_FAST)
    }
)


def get(name: str) -> Preset:
    """Returns the preset of this name.

    Raises:
      ConfigError: there is none; the nearest name is given.
    """
    if name not in PRESETS:
        raise ConfigError(f"There is no train.preset {name!r}.{did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def choose(image_size: int, channels: int) -> str:
    """Returns the name of the preset designed for this input, or the general one."""
    for preset in (_MNIST, _CIFAR10):
        if (preset.image_size, preset.channels) == (image_size, channels):
            return preset.name
    return _IMAGE64.name


def choose_input(width: int, height: int, channels: int) -> tuple[int, int, str]:
    """Chooses the network's input for data of this usual size: the side, the channels, the preset.

    Pictures up to 64 pixels keep their size (the longer side of one that is not square); larger
    ones are shrunk to 64, and those below 12, which no preset takes, are enlarged to 12. Grey
    stays grey.

    Args:
      width: pixels.
      height: pixels.
      channels: 1 (grey) or 3 (RGB).
    """
    side = min(max(width, height, MIN_SIDE), MAX_CHOSEN_SIDE)
    return side, channels, choose(side, channels)


def choose_side(train: Train, width: int, height: int) -> int:
    """Chooses the side that train's network is given pictures of this usual size at, in pixels."""
    if train.backbone or train.feature_vector:
        return backbones.choose_side(train.backbone, width, height)
    return choose_input(width, height, 3)[0]


def one_hot(train: Train) -> bool:
    """Says whether the network's loss is computed on one-hot labels."""
    return train.preset is not None and get(train.preset).loss == "categorical_crossentropy"


def network_name(train: Train) -> str:
    """Returns what people are told that train's network is."""
    return train.preset or train.backbone or train.feature_vector or train.model


def complete(
    train: Train, *, image_size: int, channels: int, normalize: str, choose_preset: bool = True
) -> Train:
    """Returns the section with what it leaves open chosen: network, epochs, phases, and the rest.

    Args:
      train: the section as it was given; what somebody set stays.
      image_size: the side in pixels, chosen already.
      channels: 1 or 3.
      normalize: transform.normalize.
      choose_preset: whether the data decides on a network where none is named.

    Raises:
      ConfigError: the network can't be trained so.
    """
    chosen: dict[str, Any] = {}
    if choose_preset and not network_name(train):
        chosen["preset"] = choose(image_size, channels)
    name = train.preset or chosen.get("preset")
    if name:
        chosen |= _tuned(train, get(name))
    if train.optimizer == "adamw" and "weight_decay" not in train.model_fields_set:
        chosen.setdefault("weight_decay", _ADAMW_DECAY)
    chosen |= _length(train, name)
    chosen |= {key: absolute(getattr(train, key)) for key in PATHS}
    completed = type(train).model_validate({**train.model_dump(), **chosen})
    _check(completed, image_size, normalize)
    return completed


def absolute(value: str) -> str:
    """Returns a value of one of `PATHS` as the training process needs it, which starts elsewhere.

    What is no file or directory here stays: `imagenet`, a handle, "".
    """
    return str(Path(value).absolute()) if value and Path(value).exists() else value


def _tuned(train: Train, preset: Preset) -> dict[str, Any]:
    given = train.model_fields_set
    tuned = {key: value for key, value in preset.defaults.items() if key not in given}
    own = preset.defaults.get("optimizer", train.optimizer)
    if train.optimizer != own and "optimizer" in given:
        # A rate and a decay belong to the optimizer that they were found for.
        tuned = {k: v for k, v in tuned.items() if k not in ("learning_rate", "weight_decay")}
    return tuned


def _length(train: Train, preset: str | None) -> dict[str, Any]:
    """Returns epochs and phases."""
    if train.phases:
        return {"epochs": sum(phase["epochs"] for phase in train.phases)}
    if not (train.weights or train.feature_vector):
        return {"epochs": train.epochs or (get(preset).epochs if preset else _EPOCHS)}
    total = train.epochs or _HEAD_EPOCHS + _FINE_EPOCHS
    fine = total * _FINE_EPOCHS // (_HEAD_EPOCHS + _FINE_EPOCHS)
    plan: list[dict[str, Any]] = [{"epochs": total - fine, "unfreeze": phases.NONE}]
    if fine:
        # A SavedModel has no layers to take a share of.
        share = phases.ALL if train.feature_vector else _FINE_SHARE
        rate = train.learning_rate * _FINE_RATE
        plan.append({"epochs": fine, "unfreeze": share, "learning_rate": rate})
    return {"epochs": total, "phases": plan}


def _check(train: Train, image_size: int, normalize: str) -> None:
    kind, name, smallest = "preset", train.preset, 0
    if train.backbone:
        kind, name, smallest = "backbone", train.backbone, backbones.get(train.backbone).min_side
    elif train.preset:
        smallest = get(train.preset).min_image_size
    if image_size < smallest:
        raise ConfigError(
            f"transform.image_size {image_size} is too small for train.{kind} {name!r}; expected "
            f"at least {smallest}. Raise it, or leave it to be chosen from the data."
        )
    if normalize != "unit" and (train.backbone or train.feature_vector):
        raise ConfigError(
            f"transform.normalize={normalize} can't go with train."
            f"{'backbone' if train.backbone else 'feature_vector'}, which scales pixels in 0-1 "
            "itself as it was trained. Leave transform.normalize at unit."
        )
    _check_start(train)
    _check_phases(train)


def _check_start(train: Train) -> None:
    if train.weights == backbones.IMAGENET and not backbones.get(train.backbone).imagenet:
        raise ConfigError(
            f"train.weights=imagenet: there are none for train.backbone {train.backbone!r}. Give "
            "a file, or leave it empty for random weights."
        )
    if train.weights not in ("", backbones.IMAGENET) and not Path(train.weights).exists():
        raise ConfigError(
            f"train.weights {train.weights!r} does not exist; expected `imagenet`, a file (.h5, "
            f".weights.h5 or .keras), or the directory of a model that Safelight exported."
        )
    handle = train.feature_vector
    if handle and "://" not in handle and not (Path(handle) / "saved_model.pb").is_file():
        raise ConfigError(
            f"train.feature_vector {handle!r} is no SavedModel: {handle}/saved_model.pb is "
            "missing. Give the directory of one, or a handle such as https://tfhub.dev/…"
        )


def _check_phases(train: Train) -> None:
    if train.phases and train.preset:
        odd = next((p for p in phases.plan(train) if p.unfreeze != phases.ALL), None)
        if odd is not None:
            raise ConfigError(
                f"train.phases unfreezes {odd.unfreeze!r}, but train.preset {train.preset!r} has "
                "nothing that was trained before. Leave unfreeze out, or give train.backbone."
            )
    for phase in phases.plan(train):
        if train.feature_vector and phase.unfreeze not in (phases.ALL, phases.NONE):
            raise ConfigError(
                f"train.phases unfreezes {phase.unfreeze!r}, but train.feature_vector is a "
                "SavedModel, whose layers have no names here; expected none or all."
            )
