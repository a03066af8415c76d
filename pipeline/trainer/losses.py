"""What each head is fitted by and measured with; a target's rank says what it is.

A class head's targets are class numbers, [batch], or shares of all classes, [batch, classes],
where augmentation mixes images; a regression head's are numbers, [batch].
"""

from __future__ import annotations

from typing import Any, Final

import keras
from keras import ops

from pipeline import presets
from pipeline.config import Train
from pipeline.heads import LABEL, Head

_HUBER_DELTA: Final = 1.0


def loss(head: Head, train: Train) -> keras.losses.Loss:
    """Returns the loss of a head: one number an example, averaged over the batch."""
    if head.kind == "regression":
        return RegressionLoss(head.loss or "mse")
    named = head.loss
    if head.name == LABEL:
        named = "cross-entropy" if train.loss == "auto" else train.loss
    return ClassLoss(
        len(head.classes),
        smoothing=train.label_smoothing,
        gamma=train.focal_gamma if named == "focal" else None,
        one_hot=head.name == LABEL and presets.one_hot(train),
    )


def metric(head: Head) -> keras.metrics.Metric:
    """Returns `accuracy` for a class head, `mae` (mean absolute error) for a regression head."""
    if head.kind == "regression":
        return keras.metrics.MeanMetricWrapper(_absolute_error, name="mae")
    return keras.metrics.MeanMetricWrapper(_hits, name="accuracy")


class ClassLoss(keras.losses.Loss):
    """Cross-entropy or focal loss of probabilities, with label smoothing.

    Focal loss (Lin et al. 2017) weighs each class's term by (1 - p) ** gamma, p its probability;
    with shares each class's term is weighed so. Smoothing (Szegedy et al. 2016) spreads its share
    of the label evenly over all classes.
    """

    def __init__(
        self, classes: int, *, smoothing: float = 0.0, gamma: float | None = None, one_hot: bool
    ) -> None:
        """Takes None as `gamma` for cross-entropy; `one_hot` computes it on shares always."""
        super().__init__(name="focal" if gamma is not None else "cross_entropy")
        self._classes = classes
        self._smoothing = smoothing
        self._gamma = gamma
        self._one_hot = one_hot or smoothing > 0 or gamma is not None

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns float32 [batch] of targets and probabilities, float32 [batch, classes]."""
        mixed = _are_shares(y_true, y_pred)
        if not mixed and not self._one_hot:
            return keras.losses.sparse_categorical_crossentropy(ops.reshape(y_true, (-1,)), y_pred)
        shares = ops.cast(y_true, y_pred.dtype) if mixed else self._shares(y_true, y_pred.dtype)
        if self._smoothing:
            shares = shares * (1.0 - self._smoothing) + self._smoothing / self._classes
        if self._gamma is None:
            return keras.losses.categorical_crossentropy(shares, y_pred)
        tiny = keras.config.epsilon()
        sure = ops.clip(y_pred, tiny, 1.0 - tiny)
        return -ops.sum(shares * ops.power(1.0 - sure, self._gamma) * ops.log(sure), axis=-1)

    def _shares(self, numbers: Any, dtype: str) -> Any:
        whole = ops.cast(ops.reshape(numbers, (-1,)), "int32")
        return ops.one_hot(whole, self._classes, dtype=dtype)


class RegressionLoss(keras.losses.Loss):
    """Squared, absolute or Huber loss (delta 1) of each number.

    Keras's own average over the last axis, which here is the batch.
    """

    def __init__(self, kind: str) -> None:
        """Takes mse, mae or huber."""
        super().__init__(name=kind)
        self._kind = kind

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns float32 [batch] of two such."""
        off = _absolute_error(y_true, y_pred)
        if self._kind == "mae":
            return off
        if self._kind == "huber":
            near = ops.minimum(off, _HUBER_DELTA)
            return near * (off - 0.5 * near)
        return ops.square(off)


def _absolute_error(y_true: Any, y_pred: Any) -> Any:
    flat = ops.reshape(y_pred, (-1,))
    return ops.abs(flat - ops.cast(ops.reshape(y_true, (-1,)), flat.dtype))


def _hits(y_true: Any, y_pred: Any) -> Any:
    best = ops.argmax(y_pred, axis=-1)
    if _are_shares(y_true, y_pred):
        truth = ops.argmax(y_true, axis=-1)
    else:
        truth = ops.cast(ops.reshape(y_true, (-1,)), best.dtype)
    return ops.cast(ops.equal(truth, best), "float32")


def _are_shares(y_true: Any, y_pred: Any) -> bool:
    return len(y_true.shape) == 2 and y_true.shape[-1] == y_pred.shape[-1]
