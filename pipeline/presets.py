"""The networks by name: what each is, what it reaches, what it costs, and which data it suits.

Plain Python: the command line prints this without TensorFlow. The layers are in `pipeline.models`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from pipeline.errors import ConfigError, did_you_mean

Loss = Literal["sparse_categorical_crossentropy", "categorical_crossentropy"]

# Two unpadded 3x3 convolutions with a pooling behind each leave one pixel of ten. Twelve leaves
# the same single pixel, and is a size that pictures have.
MIN_SIDE: Final = 12

# Data up to this side keeps its size; larger pictures are shrunk to it.
MAX_CHOSEN_SIDE: Final = 64


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One network, without its input size and number of classes.

    `image_size` and `channels` are the ones that it was designed for; it takes any side from
    `min_image_size` on, grey or colour, and any number of classes from two on.
    """

    name: str
    doc: str
    epochs: int
    image_size: int
    channels: Literal[1, 3]
    loss: Loss
    min_image_size: int = MIN_SIDE


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
    "Dense512 and dropout 0.5; softmax on one-hot labels. For small colour pictures. 2.2 million "
    "parameters at 32x32x3 and 10 classes.",
    epochs=10,
    image_size=32,
    channels=3,
    loss="categorical_crossentropy",
)
_IMAGE64: Final = Preset(
    name="image64-cnn",
    doc="Conv32-Pool-Conv64-Pool-Dense128 with softmax, for pictures of any kind shrunk to 64x64. "
    "1.6 million parameters at 64x64x3 and 10 classes.",
    epochs=10,
    image_size=64,
    channels=3,
    loss="sparse_categorical_crossentropy",
)

PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {preset.name: preset for preset in (_MNIST, _MNIST_SMALL, _CIFAR10, _IMAGE64)}
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
