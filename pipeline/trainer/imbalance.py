"""How much each class counts in the loss: train.class_weights.

The weights go by what training draws: with train.oversample=1 all classes are drawn equally often,
and balanced weights are all 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline import events
from pipeline.config import Train
from pipeline.config.weights import check_classes
from pipeline.errors import bounded
from pipeline.trainer import sampling


def class_weights(
    train: Train, classes: Sequence[str], counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32] | None:
    """Returns the weight of each class, float32 [classes]; None where they are all the same.

    `balanced`: n / (k * n_c), for n images of k classes. `effective`: by the inverse of the
    effective number of images, (1 - beta ** n_c) / (1 - beta) (Cui et al. 2019). Both are scaled so
    that the images' weights average 1, which leaves the learning rate its meaning; the paper's
    classes' weights average 1. Given weights are taken as they are; a class not named has 1.

    Args:
      train: the configuration.
      classes: in the order of their ids.
      counts: images of each class in train, int64 [classes].

    Raises:
      ConfigError: a weight is given for a class that there isn't.
    """
    chosen = train.class_weights
    if chosen == "none":
        return None
    check_classes(train, classes)
    if isinstance(chosen, Mapping):
        weights = np.array([chosen.get(name, 1.0) for name in classes], np.float64)
    else:
        drawn = sampling.expected(counts, train.oversample)
        weights = np.zeros(len(drawn))  # of a class without images: it is never needed
        some = drawn > 0
        weights[some] = 1 / (
            drawn[some] if chosen == "balanced" else _effective(drawn[some], train.effective_beta)
        )
        weights *= drawn.sum() / (weights * drawn).sum()
    told = [f"{name} {weight:.3g}" for name, weight in zip(classes, weights, strict=True)]
    events.note(f"Weights of the classes in the loss: {bounded(told, limit=10)}.")
    return weights.astype(np.float32)


def _effective(drawn: npt.NDArray[np.float64], beta: float) -> npt.NDArray[np.float64]:
    """Returns (1 - beta ** n) / (1 - beta), also for a beta next to 1."""
    number: npt.NDArray[np.float64] = np.expm1(drawn * math.log(beta)) / (beta - 1)
    return number


def sample_weights(targets: tf.Tensor, weights: npt.NDArray[np.float32]) -> tf.Tensor:
    """Returns the weight of each image, float32 [batch].

    Args:
      targets: class ids (int64 [batch]), or shares (float32 [batch, classes]), whose weight is that
        of their classes by their shares.
      weights: float32 [classes].
    """
    if targets.shape.rank == 2:
        return tf.linalg.matvec(targets, tf.constant(weights))
    return tf.gather(tf.constant(weights), targets)
