"""A Keras model as the attribution methods see it: a class's score, and its gradients.

The score is what stands before the softmax (the logit): a probability near 1 has no slope left to
attribute. The feature map for Grad-CAM is found while an image goes through the network, layer by
layer as they are called, so also inside of a nested backbone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline.errors import SafelightError
from pipeline.models.feature_vector import FeatureVector

Floats = npt.NDArray[np.float32]

# The layer that gives the label's probabilities (pipeline/models).
_ANSWER: Final = "probabilities"
# A smaller map can't say where anything is.
_LEAST_SIDE: Final = 4
_CONVOLUTIONS: Final = (
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
    FeatureVector,  # whatever is inside, it gives a map of features
)


@dataclass(frozen=True)
class FeatureMap:
    """What Grad-CAM needs of one image.

    Attributes:
      layer: the name of the layer that gave the map.
      values: float32 [1, height, width, features].
      gradients: of the score, of the same shape.
    """

    layer: str
    values: Floats
    gradients: Floats


class Network:
    """One model's scores of the label's classes."""

    def __init__(self, model: keras.Model) -> None:
        """Takes a model of `models.build` or `models.rebuild`.

        Raises:
          SafelightError: it has no layer `probabilities`.
        """
        names = [layer.name for layer in model.layers]
        if _ANSWER not in names:
            raise SafelightError(
                f"The model has no layer {_ANSWER!r}, whose score could be explained; it has "
                f"{', '.join(names)}. Expected a model that Safelight trained."
            )
        answer = model.get_layer(_ANSWER)
        self._before = keras.Model(model.input, answer.input)
        self._kernel = tf.convert_to_tensor(answer.kernel)
        self._bias = tf.convert_to_tensor(answer.bias)
        self._gradients = tf.function(self._slopes, autograph=False, reduce_retracing=True)
        self.shape: tuple[int, int, int] = tuple(model.input_shape[1:])

    def scores(self, pixels: Any) -> tf.Tensor:
        """Returns logits, float32 [batch, classes].

        Args:
          pixels: float32 [batch, side, side, channels].
        """
        features = tf.cast(self._before(pixels, training=False), tf.float32)
        return tf.matmul(features, self._kernel) + self._bias

    def gradients(self, pixels: Floats, target: int) -> Floats:
        """Returns a class's score's gradients, float32 of the shape of `pixels`.

        Args:
          pixels: float32 [batch, side, side, channels].
          target: the class's number.
        """
        found = self._gradients(tf.constant(pixels, tf.float32), tf.constant(target))
        return np.asarray(found)

    def _slopes(self, pixels: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(pixels)
            score = tf.gather(self.scores(pixels), target, axis=1)
        return tape.gradient(score, pixels)

    def feature_map(self, pixels: Floats, target: int) -> FeatureMap | None:
        """Returns the last feature map behind a convolution that still shows where things are.

        Args:
          pixels: float32 [1, side, side, channels].
          target: the class's number.

        Returns:
          None where the network has no such map, of at least 4 x 4 places.
        """
        given = tf.constant(pixels, tf.float32)
        with tf.GradientTape() as tape, _recorded(self._before) as calls:
            tape.watch(given)
            score = self.scores(given)[0, target]
        found = _last_map(calls)
        if found is None:
            return None
        layer, values = found
        slopes = tape.gradient(score, values)
        if slopes is None:
            return None
        return FeatureMap(layer, np.asarray(values, np.float32), np.asarray(slopes, np.float32))


def _last_map(calls: Sequence[tuple[keras.layers.Layer, Any]]) -> tuple[str, tf.Tensor] | None:
    found, convolved = None, False
    for layer, value in calls:
        convolved = convolved or isinstance(layer, _CONVOLUTIONS)
        shape = getattr(value, "shape", ())
        if convolved and len(shape) == 4 and min(shape[1:3]) >= _LEAST_SIDE:
            found = (layer.name, value)
    return found


@contextmanager
def _recorded(model: keras.Model) -> Iterator[list[tuple[keras.layers.Layer, Any]]]:
    """Yields a list that gets each layer and its result as they are called.

    Keras 3 has no hooks. An attribute of the instance goes before the method of its class, until it
    is deleted again.
    """
    calls: list[tuple[keras.layers.Layer, Any]] = []
    layers = list({id(layer): layer for layer in _innermost(model)}.values())
    for layer in layers:
        layer.call = _telling(layer, layer.call, calls)
    try:
        yield calls
    finally:
        for layer in layers:
            del layer.call


def _telling(layer: keras.layers.Layer, call: Any, calls: list[Any]) -> Any:
    def told(*arguments: Any, **options: Any) -> Any:
        result = call(*arguments, **options)
        calls.append((layer, result))
        return result

    return told


def _innermost(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _innermost(layer)
        elif not isinstance(layer, keras.layers.InputLayer):
            yield layer
