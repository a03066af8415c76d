"""The networks that transfer learning can start from: what each expects of its input.

Plain Python: the command line checks a backbone's name and its smallest image without TensorFlow.
The networks are those of keras.applications, built in `pipeline.models`, and one of ours for small
pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from pipeline.errors import ConfigError, did_you_mean

# What the ImageNet weights were trained behind, from pixels in 0-1:
#   bytes      0 to 255: the backbone itself begins with its scaling
#   symmetric  -1 to 1
#   mean_bgr   0 to 255 less the mean of ImageNet, blue first
#   standard   zero mean and unit variance by ImageNet's
#   unit       as they are
Scaling = Literal["bytes", "symmetric", "mean_bgr", "standard", "unit"]

# Larger pictures are shrunk to what most of ImageNet's networks were trained at.
MAX_CHOSEN_SIDE: Final = 224

IMAGENET: Final = "imagenet"


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One network without its classifier.

    Attributes:
      name: as keras.applications has it.
      scaling: of the pixels that it expects.
      min_side: pixels; Keras refuses less.
      imagenet: whether Keras has its ImageNet weights.
    """

    name: str
    scaling: Scaling
    min_side: int = 32
    imagenet: bool = True


# The families of keras.applications: names, scaling, smallest side.
_FAMILIES: Final[tuple[tuple[tuple[str, ...], Scaling, int], ...]] = (
    (("ResNet50", "ResNet101", "ResNet152"), "mean_bgr", 32),
    (("ResNet50V2", "ResNet101V2", "ResNet152V2"), "symmetric", 32),
    (("VGG16", "VGG19"), "mean_bgr", 32),
    (("DenseNet121", "DenseNet169", "DenseNet201"), "standard", 32),
    (("MobileNet", "MobileNetV2"), "symmetric", 32),
    (("MobileNetV3Small", "MobileNetV3Large"), "bytes", 32),
    (("InceptionV3", "InceptionResNetV2"), "symmetric", 75),
    (("Xception",), "symmetric", 71),
    (("NASNetMobile", "NASNetLarge"), "symmetric", 32),
    (tuple(f"EfficientNetB{size}" for size in range(8)), "bytes", 32),
    (
        tuple(f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L")),
        "bytes",
        32,
    ),
    (
        tuple(f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large", "XLarge")),
        "bytes",
        32,
    ),
)
_OWN: Final = Backbone(name="cifar10-fast", scaling="unit", min_side=16, imagenet=False)


def _all() -> Iterator[Backbone]:
    for names, scaling, min_side in _FAMILIES:
        for name in names:
            yield Backbone(name=name, scaling=scaling, min_side=min_side)
    yield _OWN


BACKBONES: Final[Mapping[str, Backbone]] = MappingProxyType(
    {backbone.name: backbone for backbone in _all()}
)


def get(name: str) -> Backbone:
    """Returns the backbone of this name.

    Raises:
      ConfigError: there is none; the nearest name is given.
    """
    if name not in BACKBONES:
        lowered = {known.lower(): known for known in BACKBONES}
        if name.lower() in lowered:
            hint = f" Did you mean {lowered[name.lower()]!r}?"
        else:
            hint = did_you_mean(name, BACKBONES)
        raise ConfigError(f"There is no train.backbone {name!r}.{hint}")
    return BACKBONES[name]


def choose_side(name: str, width: int, height: int) -> int:
    """Chooses the side for pictures of this usual size: theirs, up to 224, and not too small.

    Args:
      name: of the backbone; "" for a feature vector, whose smallest side isn't known.
      width: pixels.
      height: pixels.
    """
    smallest = get(name).min_side if name else _FAMILIES[0][2]
    return max(min(max(width, height), MAX_CHOSEN_SIDE), smallest)
