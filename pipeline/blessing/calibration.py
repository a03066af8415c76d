"""Temperature and threshold, fitted on the split calib when training is done.

Plain NumPy; docs/calibration.md explains the methods. SciPy is imported where it is needed: the
training process and the export load this module whether calibration is on or off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.config import Calibration
from pipeline.errors import ConfigError, DataRefused
from pipeline.features import UNKNOWN

# What a probability is raised to before its logarithm is taken: float32's smallest normal number.
SMALLEST: Final = float(np.finfo(np.float32).tiny)
_TEMPERATURES: Final = (0.05, 20.0)
_AT_AN_END: Final = 0.01
# The network's own probabilities: no temperature between the ends is the best.
UNTOLD: Final = 1.0
# Thresholds tried: the best 5 %, 10 %, … 100 % of the images by their confidence.
_CANDIDATES: Final = 20

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What calibration found, as it is built into the exported model; None where it is off.

    Attributes:
      temperature: what the logarithms of the label's probabilities are divided by.
      threshold: the probability below which the label is `unknown`.
    """

    temperature: float | None = None
    threshold: float | None = None


def check(options: Calibration, classes: Sequence[str], images: int) -> None:
    """Refuses, before anything is trained, what can't be calibrated.

    Args:
      options: the section; on.
      classes: the label's.
      images: in the split calib.

    Raises:
      DataRefused: a class is called `unknown`, which is what a model with a threshold says.
      ConfigError: calib is too small to show the target precision, however good the model is.
    """
    if options.target_precision is None:
        return
    refuse_unknown(classes)
    needed = images_needed(options.target_precision, options.confidence)
    if images < needed:
        raise ConfigError(
            f"calibration.target_precision={options.target_precision:g} can't be shown on the "
            f"{images:,} images of the split calib, even if all were right: expected at least "
            f"{needed:,} at calibration.confidence={options.confidence:g}. Add images, raise "
            "calibration.share, or ask for less."
        )


def refuse_unknown(classes: Sequence[str]) -> None:
    """Refuses data with a class of the name that stands for no answer.

    Raises:
      DataRefused: there is one.
    """
    if UNKNOWN in classes:
        raise DataRefused(
            f"The data has a class {UNKNOWN!r}, and with calibration.target_precision the model "
            f"answers {UNKNOWN!r} where it isn't sure: the two could not be told apart. Rename the "
            "class, or leave calibration.target_precision out."
        )


def images_needed(target: float, confidence: float) -> int:
    """Returns the fewest images on which `threshold` can show a precision of `target`."""
    return math.ceil(math.log((1 - confidence) / _CANDIDATES) / math.log(target))


def fit(
    probabilities: npt.NDArray[np.float32], truth: npt.NDArray[np.int64], options: Calibration
) -> Fitted:
    """Fits what the section asks for on the split calib.

    Args:
      probabilities: the network's own, float32 [images, classes].
      truth: class numbers, int64 [images].
      options: the section.
    """
    found = temperature(probabilities, truth) if options.method == "temperature" else None
    if options.target_precision is None:
        return Fitted(temperature=found)
    said = tempered(probabilities, found)
    right = said.argmax(axis=1) == truth
    limit = threshold(said.max(axis=1), right, options.target_precision, options.confidence)
    return Fitted(temperature=found, threshold=limit)


def temperature(probabilities: npt.NDArray[np.float32], truth: npt.NDArray[np.int64]) -> float:
    """Returns the temperature with the least cross-entropy, between 0.05 and 20; else `UNTOLD`.

    Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. Above 1
    it makes a model less sure, below 1 surer; which class is the most probable it never changes.
    The logarithms of the softmax are logits but for a constant, which a softmax takes out again.

    Args:
      probabilities: float32 [images, classes].
      truth: class numbers, int64 [images].
    """
    from scipy.optimize import minimize_scalar

    logs = _logs(probabilities)
    rows = np.arange(len(truth))

    def cross_entropy(log_temperature: float) -> float:
        scaled = logs / math.exp(log_temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        return float(np.mean(np.log(np.exp(scaled).sum(axis=1)) - scaled[rows, truth]))

    low, high = (math.log(end) for end in _TEMPERATURES)
    found = float(minimize_scalar(cross_entropy, bounds=(low, high), method="bounded").x)
    # Images that are all right would be best told with no doubt at all: they can't say how much
    # doubt other images deserve.
    return UNTOLD if min(found - low, high - found) < _AT_AN_END else math.exp(found)


def tempered(
    probabilities: npt.NDArray[np.floating[Any]], temperature: float | None
) -> npt.NDArray[np.float64]:
    """Returns softmax(log(probabilities) / temperature), float64 [images, classes].

    What the exported graph computes; without a temperature the probabilities themselves.
    """
    if temperature is None:
        return probabilities.astype(np.float64)
    logs = _logs(probabilities) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    scaled: Floats = powers / powers.sum(axis=1, keepdims=True)
    return scaled


def threshold(
    confidences: npt.NDArray[np.floating[Any]],
    right: npt.NDArray[np.bool_],
    target: float,
    confidence: float,
) -> float | None:
    """Returns the lowest threshold whose answers show the target precision; None if none does.

    Tried are 20 thresholds, those that answer 5 %, 10 %, … 100 % of the images. Each is held to the
    lower bound of its precision at 1 - (1 - confidence) / 20, so that all 20 bounds hold together
    (Bonferroni), and the best may be picked without its luck.

    Args:
      confidences: the most probable class's probability, [images].
      right: whether that class is the label's, bool [images].
      target: the precision.
      confidence: with which it is met.
    """
    from pipeline.blessing import bounds

    order = np.argsort(-confidences, kind="stable")
    ranked, hits = confidences[order], np.cumsum(right[order])
    level = 1 - (1 - confidence) / _CANDIDATES
    images = len(ranked)
    for step in range(_CANDIDATES, 0, -1):
        last = ranked[max(1, round(images * step / _CANDIDATES)) - 1]
        answered = int(np.searchsorted(-ranked, -last, side="right"))
        if bounds.lower_bound(int(hits[answered - 1]), answered, level) < target:
            continue
        if answered == images:
            return 0.0
        # Between two confidences: no rounding elsewhere moves one of these images across.
        between = float(np.float32((float(last) + float(ranked[answered])) / 2))
        return between if between > ranked[answered] else float(last)
    return None


def _logs(probabilities: npt.NDArray[np.floating[Any]]) -> Floats:
    logs: Floats = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST))
    return logs
