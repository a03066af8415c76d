"""The weights that a backbone starts from: ImageNet's, a file's, or those of an exported model.

A file that holds something else is named, with what was expected and what it holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np

from pipeline.backbones import IMAGENET
from pipeline.errors import ConfigError, SafelightError, first_line

# Deviations of ImageNet that EfficientNet's files hold where Keras's layer expects variances.
_DEVIATIONS: Final = (0.229, 0.224, 0.225)


def load(backbone: keras.Model, name: str, where: str) -> None:
    """Gives a backbone its weights.

    Args:
      backbone: of `pretrained.make`.
      name: of the backbone.
      where: `imagenet`, a file (.h5, .weights.h5, .keras), or an exported model's directory.

    Raises:
      ConfigError: there is no such file, or it holds another network's weights.
      SafelightError: ImageNet's weights could not be fetched.
    """
    if where == IMAGENET:
        backbone.set_weights(_imagenet(name))
    elif Path(where).is_dir():
        _take(backbone, _exported(Path(where)), name, where)
    elif not Path(where).is_file():
        raise ConfigError(
            f"train.weights {where!r} does not exist; expected `imagenet`, a file, or the "
            "directory of a model that Safelight exported."
        )
    elif where.endswith(".keras"):
        _take(backbone, _whole_model(where), name, where)
    else:
        _load_file(backbone, name, where)
    _square_deviations(backbone)
    settle(backbone)


def _imagenet(name: str) -> list[np.ndarray[Any, Any]]:
    """Returns ImageNet's weights as Keras's own loader gives them."""
    try:
        network = getattr(keras.applications, name)(include_top=False, weights=IMAGENET)
    except Exception as error:  # noqa: BLE001 - the network's errors are of many kinds
        raise SafelightError(
            f"The ImageNet weights of train.backbone {name!r} could not be fetched: "
            f"{first_line(error)} Fetch their file (without the top) where there is a network, "
            "and give it as train.weights."
        ) from None
    weights: list[np.ndarray[Any, Any]] = network.get_weights()
    return weights


def _load_file(backbone: keras.Model, name: str, where: str) -> None:
    if not where.endswith(".h5"):
        raise ConfigError(
            f"train.weights {where!r} is of no known kind; expected a name that ends in .h5, "
            ".weights.h5 or .keras."
        )
    try:
        backbone.load_weights(where)
    except Exception as error:  # noqa: BLE001 - h5py's and Keras's errors are of many kinds
        raise ConfigError(_refusal(backbone, name, where, first_line(error))) from None


def _whole_model(where: str) -> keras.Model:
    try:
        return keras.saving.load_model(where, compile=False)
    except Exception as error:  # noqa: BLE001 - Keras's errors are of many kinds
        raise ConfigError(
            f"train.weights {where!r} can't be read as a Keras model: {first_line(error)} A "
            "file of another Keras version may be; save its weights as .weights.h5 there."
        ) from None


def _exported(directory: Path) -> keras.Model:
    from pipeline import export  # it builds on this package

    return export.load_weights(directory)


def _take(backbone: keras.Model, source: keras.Model, name: str, where: str) -> None:
    """Copies the weights of the network inside of `source` that has the backbone's shapes."""
    wanted = _shapes(backbone)
    for candidate in _networks(source):
        if _shapes(candidate) == wanted:
            backbone.set_weights(candidate.get_weights())
            return
    networks = ", ".join(
        f"{network.name} ({network.count_params():,} parameters)" for network in _networks(source)
    )
    raise ConfigError(_refusal(backbone, name, where, f"It holds {networks}."))


def _networks(model: keras.Model) -> Iterator[keras.Model]:
    yield model
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _networks(layer)


def _shapes(model: keras.Model) -> Sequence[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in model.weights]


def _refusal(backbone: keras.Model, name: str, where: str, found: str) -> str:
    return (
        f"train.weights {where!r} does not hold the weights of train.backbone {name!r}; expected "
        f"those of its network without the top: {len(backbone.weights)} arrays, "
        f"{backbone.count_params():,} parameters. {found} Give the file of {name}, or the "
        "backbone that the file belongs to."
    )


def settle(model: keras.Model) -> None:
    """Lets normalization layers compute with the weights that they have been given."""
    for network in _networks(model):
        for layer in network.layers:
            if isinstance(layer, keras.layers.Normalization):
                layer.finalize_state()


def _square_deviations(backbone: keras.Model) -> None:
    """Makes variances of the deviations in EfficientNet's ImageNet weights.

    Asked for these weights by name, Keras builds one more layer that makes up for it. Squaring
    comes to the same, and leaves one network whatever its weights.
    """
    for layer in backbone.layers:
        if not isinstance(layer, keras.layers.Normalization) or not layer.weights:
            continue
        mean, variance, count = layer.get_weights()
        if variance.shape == (3,) and np.allclose(variance, _DEVIATIONS, rtol=1e-3):
            layer.set_weights([mean, np.square(variance), count])
