"""A TF Hub / SavedModel feature vector as a Keras layer that can be trained or frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import keras
import tensorflow as tf
from keras import layers

from pipeline.errors import ConfigError, SafelightError, first_line

# What a SavedModel's function is called: itself (TF Hub), what keras.Model.export writes, and the
# signatures of older ones.
_SIGNATURES: Final = ("serving_default", "default", "image_feature_vector")


def features(pixels: keras.KerasTensor, where: str) -> keras.KerasTensor:
    """Returns a SavedModel's answer, [batch, features] or a feature map.

    Args:
      pixels: float32 [batch, side, side, 1 or 3] in 0-1, as TF Hub's image modules expect it; grey
        is repeated to three channels.
      where: a local directory, or a handle that tensorflow_hub resolves.

    Raises:
      ConfigError: it is no SavedModel, or doesn't take such images.
      SafelightError: the handle could not be fetched.
    """
    if pixels.shape[-1] == 1:
        pixels = layers.Concatenate()([pixels] * 3)
    found = FeatureVector(_fetched(where), name="feature_vector")(pixels)
    if len(found.shape) not in (2, 4):
        raise ConfigError(
            f"train.feature_vector {where!r} gives the shape {tuple(found.shape)}; expected "
            "features, [batch, features] or [batch, height, width, features]."
        )
    return found


class FeatureVector(keras.layers.Layer):
    """A SavedModel's function and its variables, always in float32 and as in inference.

    `trainable` says whether its trainable variables are trained; statistics of batch normalization
    stay as they are.
    """

    def __init__(self, path: str, **options: Any) -> None:
        """Loads the SavedModel at `path`; `options` are a Keras layer's.

        Raises:
          ConfigError: it can't be loaded, or has no function that takes images.
        """
        super().__init__(**{**options, "dtype": "float32"})
        self.directory = path
        try:
            self.loaded = tf.saved_model.load(path)
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise ConfigError(
                f"train.feature_vector {path!r} can't be loaded: {first_line(error)} Expected "
                "the directory of a TensorFlow SavedModel."
            ) from None
        self._function: Callable[[tf.Tensor], Any] | None = None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Finds the function for images of this shape, and takes over its variables."""
        spec = tf.TensorSpec(input_shape, tf.float32)
        function, concrete = _traced(self.loaded, spec, self.directory)
        self._function = function
        # Keras's variables around the SavedModel's own, not copies of them.
        self._shared = [_shared(variable) for variable in _ordered(self.loaded, concrete.variables)]
        self.built = True

    def call(self, pixels: tf.Tensor) -> tf.Tensor:
        """Returns the features of float32 [batch, side, side, 3]."""
        assert self._function is not None
        found = self._function(pixels)
        if isinstance(found, dict):
            found = found["default"] if "default" in found else next(iter(found.values()))
        return found

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of the features of such images."""
        if not self.built:
            self.build(input_shape)
        _, concrete = _traced(self.loaded, tf.TensorSpec(input_shape, tf.float32), self.directory)
        [found, *_] = tf.nest.flatten(concrete.structured_outputs)
        shape = tuple(found.shape.as_list())
        return (None, *shape[1:])

    def get_config(self) -> dict[str, Any]:
        """Returns what the layer was made of."""
        return {**super().get_config(), "path": self.directory}


def _ordered(loaded: Any, variables: Iterable[tf.Variable]) -> list[tf.Variable]:
    """Returns variables as the SavedModel lists them.

    A traced function has them in the order of their addresses, another each time: weights that are
    kept by their order would come back in others of the same shape.
    """
    listed = tf.train.TrackableView(loaded).descendants()
    place = {id(one): number for number, one in enumerate(listed)}
    return sorted(variables, key=lambda variable: place[id(variable)])


def _shared(variable: tf.Variable) -> keras.Variable:
    return keras.Variable(
        initializer=variable,
        trainable=variable.trainable,
        dtype=variable.dtype.name,
        shape=variable.shape,
        name=variable.name.replace("/", "_").replace(":", "_"),
    )


def _traced(loaded: Any, spec: tf.TensorSpec, path: str) -> tuple[Callable[..., Any], Any]:
    """Returns the function for such images, and its concrete function."""
    said = []
    for function in _candidates(loaded):
        for options in ({"training": False}, {}):
            try:
                concrete = _concrete(function, spec, options)
            except (TypeError, ValueError) as error:
                said.append(first_line(error))
                continue
            return (lambda pixels, f=function, o=options: f(pixels, **o)), concrete
    raise ConfigError(
        f"train.feature_vector {path!r} takes no float32 images of the shape "
        f"{tuple(spec.shape.as_list())} ({said[-1] if said else 'it has no function'}). Set "
        "transform.image_size to what it was made for; it has to give features, not classes."
    )


def _concrete(function: Any, spec: tf.TensorSpec, options: dict[str, bool]) -> Any:
    if hasattr(function, "structured_input_signature"):  # a signature: by name, and fixed
        if options:
            raise TypeError("a signature takes no training")
        _, named = function.structured_input_signature
        [expected] = named.values()
        if not expected.shape.is_compatible_with(spec.shape):
            raise ValueError(f"it takes {tuple(expected.shape.as_list())}.")
        return function
    return function.get_concrete_function(spec, **options)


def _candidates(loaded: Any) -> Iterator[Any]:
    if callable(loaded):
        yield loaded.__call__
    if hasattr(loaded, "serve"):
        yield loaded.serve
    signatures = getattr(loaded, "signatures", {})
    for name in _SIGNATURES:
        if name in signatures:
            yield signatures[name]


def _fetched(where: str) -> str:
    if Path(where).is_dir():
        return where
    if "://" not in where:
        raise ConfigError(
            f"train.feature_vector {where!r} is no directory here. Give that of a SavedModel, or "
            "a handle such as https://tfhub.dev/…"
        )
    try:
        import tensorflow_hub  # its import takes a second, and looks at TensorFlow's version

        return str(tensorflow_hub.resolve(where))
    except Exception as error:  # noqa: BLE001 - the network's errors are of many kinds
        raise SafelightError(
            f"train.feature_vector {where!r} could not be fetched: {first_line(error)} Fetch it "
            "where there is a network, unpack it, and give its directory."
        ) from None
