"""The steps of train.augment: each a name and its options, checked as they are read.

A policy is a list, and its order is the order of the steps: names, or tables of a name and its
options. What the steps do to pixels is in `pipeline.trainer.augment`; docs/training-input.md says
what each costs.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator

from pipeline.config.base import Section
from pipeline.errors import did_you_mean

Fill = Literal["reflect", "constant", "nearest", "wrap"]


class Step(Section):
    """One step of an augmentation policy."""

    mixes_labels: ClassVar[bool] = False

    name: str


class Flip(Step):
    """Mirrors half of the images; with `both`, half of them each way."""

    name: Literal["flip"] = "flip"
    mode: Literal["horizontal", "vertical", "both"] = "horizontal"


class _Filling(Step):
    """A step that moves pixels about, and fills what it uncovers.

    fill_mode: `reflect` mirrors the picture at its edge, `wrap` repeats it, `nearest` repeats its
      edge, `constant` takes fill_value (0 is black, 1 is white).
    """

    fill_mode: Fill = "reflect"
    fill_value: float = Field(0.0, ge=0, le=1)
    interpolation: Literal["bilinear", "nearest"] = "bilinear"


class Rotation(_Filling):
    """Turns about the middle, by up to `factor` of a full turn either way."""

    name: Literal["rotation"] = "rotation"
    factor: float = Field(0.05, ge=0, le=0.5)


class Translation(_Filling):
    """Shifts up and down by up to `height`, left and right by up to `width` of the side."""

    name: Literal["translation"] = "translation"
    height: float = Field(0.1, ge=0, le=1)
    width: float = Field(0.1, ge=0, le=1)


class Shear(_Filling):
    """Slants rows by up to `x`, columns by up to `y` of a pixel for each pixel."""

    name: Literal["shear"] = "shear"
    x: float = Field(0.1, ge=0, le=1)
    y: float = Field(0.1, ge=0, le=1)


class Zoom(_Filling):
    """Shows from 1 - factor to 1 + factor of the side; with `stretch`, each direction its own."""

    name: Literal["zoom"] = "zoom"
    factor: float = Field(0.1, ge=0, lt=1)
    stretch: bool = False


class Crop(_Filling):
    """Cuts a square from somewhere and brings it back to the picture's size.

    padding: share of the side added at each edge before cutting. The default is 4 of 32 pixels.
    smallest: the cut square's side is at least this share of the picture's.
    """

    name: Literal["crop"] = "crop"
    padding: float = Field(0.125, ge=0, le=0.5)
    smallest: float = Field(1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _moves(self) -> Crop:
        if not self.padding and self.smallest == 1:
            raise ValueError("padding 0 with smallest 1 cuts nothing; change one of them")
        return self


class ColorJitter(Step):
    """Changes brightness, contrast and saturation by up to these shares, the hue by up to this
    share of the colour circle. Grey images have no saturation and no hue to change.
    """

    name: Literal["color_jitter"] = "color_jitter"
    brightness: float = Field(0.2, ge=0, le=1)
    contrast: float = Field(0.2, ge=0, le=1)
    saturation: float = Field(0.2, ge=0, le=1)
    hue: float = Field(0.05, ge=0, le=0.5)


class Brightness(Step):
    """Adds up to `factor` of the range from black to white, or takes it away."""

    name: Literal["brightness"] = "brightness"
    factor: float = Field(0.2, ge=0, le=1)


class Contrast(Step):
    """Multiplies the distance from the image's mean by 1 - factor to 1 + factor."""

    name: Literal["contrast"] = "contrast"
    factor: float = Field(0.2, ge=0, le=1)


class Erasing(Step):
    """Covers a rectangle in a share of the images (Zhong et al. 2020).

    probability: share of the images.
    smallest, largest: shares of the picture's area between which the rectangle's is drawn.
    fill_value: 0 black to 1 white; not given: noise.
    """

    name: Literal["erasing"] = "erasing"
    probability: float = Field(0.5, ge=0, le=1)
    smallest: float = Field(0.02, gt=0, le=1)
    largest: float = Field(0.33, gt=0, le=1)
    fill_value: float | None = Field(None, ge=0, le=1)

    @model_validator(mode="after")
    def _in_order(self) -> Erasing:
        if self.smallest > self.largest:
            raise ValueError(f"smallest {self.smallest:g} is above largest {self.largest:g}")
        return self


class RandAugment(_Filling):
    """`ops` operations, drawn for each image from 14, at one strength (Cubuk et al. 2020)."""

    name: Literal["rand_augment"] = "rand_augment"
    ops: int = Field(2, ge=1, le=8)
    strength: float = Field(0.5, gt=0, le=1)


class AugMix(_Filling):
    """Blends `chains` of up to `depth` operations with the image (Hendrycks et al. 2020)."""

    name: Literal["aug_mix"] = "aug_mix"
    chains: int = Field(3, ge=1, le=8)
    depth: int = Field(3, ge=1, le=8)
    strength: float = Field(0.3, gt=0, le=1)
    alpha: float = Field(1.0, gt=0, le=100)


class MixUp(Step):
    """Blends each image and its label with another of the batch (Zhang et al. 2018).

    alpha: the blend's share is drawn from Beta(alpha, alpha).
    probability: share of the images that are blended at all.
    """

    mixes_labels: ClassVar[bool] = True

    name: Literal["mixup"] = "mixup"
    alpha: float = Field(0.2, gt=0, le=100)
    probability: float = Field(1.0, gt=0, le=1)


class CutMix(Step):
    """Pastes a rectangle of another image of the batch; the label follows the areas (Yun et al.
    2019).

    alpha: the share that stays is drawn from Beta(alpha, alpha).
    probability: share of the images that get a rectangle at all.
    """

    mixes_labels: ClassVar[bool] = True

    name: Literal["cut_mix"] = "cut_mix"
    alpha: float = Field(1.0, gt=0, le=1)
    probability: float = Field(1.0, gt=0, le=1)


STEPS: Final[dict[str, type[Step]]] = {
    kind.model_fields["name"].default: kind
    for kind in (
        *(Flip, Rotation, Translation, Shear, Zoom, Crop),
        *(ColorJitter, Brightness, Contrast, Erasing),
        *(RandAugment, AugMix, MixUp, CutMix),
    )
}


def read(value: Any) -> Step:
    """Returns the step of a name, or of a table of a name and options.

    Raises:
      ValueError: it is neither, or there is no such name or option (the nearest is given), or an
        option's value is refused.
    """
    if isinstance(value, Step):
        return value
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise ValueError(
            f"expected the name of an augmentation, or a table with its name and options, as in "
            f'{{name="rotation", factor=0.1}}; got {value!r}'
        )
    name = table["name"]
    if name not in STEPS:
        raise ValueError(f"there is no augmentation {name!r}.{did_you_mean(name, STEPS)}")
    known = [option for option in STEPS[name].model_fields if option != "name"]
    for option in table.keys() - {"name", *known}:
        raise ValueError(
            f"augmentation {name!r} has no option {option!r}.{did_you_mean(str(option), known)}"
        )
    try:
        return STEPS[name].model_validate(table)
    except ValidationError as error:
        raise ValueError(f"augmentation {name!r}: {_problems(error)}") from None


def _problems(error: ValidationError) -> str:
    found = []
    for problem in error.errors():
        message = problem["msg"].removeprefix("Value error, ")
        option = ".".join(str(part) for part in problem["loc"])
        found.append(f"{option} = {problem['input']!r}: {message}" if option else message)
    return "; ".join(found)


Augmentation = Annotated[SerializeAsAny[Step], BeforeValidator(read)]
