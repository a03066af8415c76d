"""Which of a model's layers a phase trains."""

from __future__ import annotations

import math
from collections.abc import Iterator

import keras

from pipeline import phases
from pipeline.errors import ConfigError
from pipeline.models import pretrained
from pipeline.models.feature_vector import FeatureVector


def unfreeze(model: keras.Model, what: str, *, keep_statistics: bool = False) -> None:
    """Sets which layers are trained; the heads and what stands before them always are.

    Args:
      model: of `models.build`.
      what: `none`, `all`, a share such as `20%` of the backbone's layers that have weights, from
        its top, or the name of its first layer to train.
      keep_statistics: batch normalizations stay frozen, whatever is trained: Keras then runs them
        as in inference, with the statistics of the data that the weights come from.

    Raises:
      ConfigError: there is no such layer, or nothing that could be frozen.
    """
    first = first_trained(model, what)
    backbone = pretrained.find(model)
    if backbone is None:
        return
    backbone.trainable = what != phases.NONE
    if isinstance(backbone, FeatureVector):
        return
    for layer in backbone.layers[:first]:
        layer.trainable = False
    if keep_statistics:
        for layer in normalizations(backbone):
            layer.trainable = False


def first_trained(model: keras.Model, what: str) -> int:
    """Returns the index of the first of the backbone's layers that `unfreeze` trains.

    Nothing is changed: so a later phase can be asked for before the first one begins.

    Raises:
      ConfigError: as `unfreeze`.
    """
    backbone = pretrained.find(model)
    if backbone is None and what != phases.ALL:
        raise ConfigError(
            f"train.phases unfreezes {what!r}, but this network has no backbone. Leave "
            "unfreeze out; or, in a function of your own, return a Keras model."
        )
    return 0 if what in (phases.ALL, phases.NONE) else _first(backbone, what)


def normalizations(network: keras.Model) -> Iterator[keras.layers.BatchNormalization]:
    """Yields a network's batch normalizations, those of the networks inside it too."""
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            yield from normalizations(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            yield layer


def _first(backbone: keras.Model, what: str) -> int:
    """Returns the index of the first layer that is trained."""
    share = phases.share(what)
    if share is not None:
        weighted = [index for index, layer in enumerate(backbone.layers) if layer.weights]
        return weighted[-max(1, math.ceil(share * len(weighted)))]
    names = [layer.name for layer in backbone.layers]
    if what not in names:
        raise phases.unknown_layer(what, names, "the backbone")
    return names.index(what)
