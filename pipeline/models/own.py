"""A network of the user's own: `train.model = "module:function"`."""

from __future__ import annotations

import keras

from pipeline import own_model
from pipeline.errors import ConfigError, SafelightError


def features(pixels: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Calls the function with the input and returns its features.

    A function that returns a Keras model may have its layers frozen and unfrozen by phases; of one
    that returns features all layers are trained.

    Args:
      pixels: float32 [batch, side, side, channels].
      name: `module:function`.

    Returns:
      [batch, features] or [batch, height, width, features].

    Raises:
      ConfigError: the function is not to be found, failed, or returned something else.
    """
    function = own_model.load(name)
    try:
        found = function(pixels)
        if isinstance(found, keras.Model):
            found = found(pixels)
    except SafelightError:
        raise
    except Exception as error:
        raise ConfigError(
            f"train.model {name!r} failed with {type(error).__name__}: {error}. It is called with "
            f"a Keras tensor of the shape {pixels.shape}; the traceback is in the run's log."
        ) from error
    if not keras.utils.is_keras_tensor(found) or len(found.shape) not in (2, 4):
        received = getattr(found, "shape", None) or type(found).__name__
        raise ConfigError(
            f"train.model {name!r} returned {received}; expected features, a Keras tensor "
            "[batch, features] or [batch, height, width, features], or a Keras model that gives "
            "them."
        )
    return found
