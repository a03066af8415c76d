"""Class weights and oversampling: what is asked for, and what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipeline import events
from pipeline.config import Train
from pipeline.errors import ConfigError
from pipeline.trainer import imbalance, sampling

CLASSES = ("cat", "dog", "owl")
COUNTS = np.array([60, 30, 10])


def weights_of(counts: np.ndarray = COUNTS, **train: object) -> np.ndarray:
    weights = imbalance.class_weights(Train(**train), CLASSES, counts)
    assert weights is not None
    assert weights.dtype == np.float32
    return weights


def test_balanced_weights_are_the_inverse_frequency(event_log: Path) -> None:
    weights = weights_of(class_weights="balanced")
    np.testing.assert_allclose(weights, 100 / (3 * COUNTS), rtol=1e-6)
    [(_, event)] = events.read(event_log)
    assert event["text"] == "Weights of the classes in the loss: cat 0.556, dog 1.11, owl 3.33."


def test_effective_number_of_images() -> None:
    weights = weights_of(class_weights="effective", effective_beta=0.99)
    by_hand = (1 - 0.99) / (1 - 0.99**COUNTS)
    np.testing.assert_allclose(weights, by_hand * 100 / (by_hand * COUNTS).sum(), rtol=1e-5)
    # Towards 1 they become the balanced ones, towards 0 all the same (Cui et al. 2019, section 3).
    near_one = weights_of(class_weights="effective", effective_beta=1 - 1e-9)
    np.testing.assert_allclose(near_one, weights_of(class_weights="balanced"), rtol=1e-5)
    near_zero = weights_of(class_weights="effective", effective_beta=1e-9)
    np.testing.assert_allclose(near_zero, 1, rtol=1e-6)


def test_given_weights() -> None:
    np.testing.assert_array_equal(weights_of(class_weights={"owl": 5}), [1, 1, 5])
    with pytest.raises(ConfigError, match="class 'owll', which the data.*mean 'owl'"):
        weights_of(class_weights={"owll": 5})
    assert imbalance.class_weights(Train(), CLASSES, COUNTS) is None


def test_a_class_without_images_does_no_harm() -> None:
    counts = np.array([60, 30, 0])
    np.testing.assert_allclose(weights_of(counts, class_weights="balanced"), [0.75, 1.5, 0])
    assert sampling.expected(counts, 1.0).tolist() == [45, 45, 0]


def test_weights_go_by_what_is_drawn() -> None:
    np.testing.assert_allclose(weights_of(class_weights="balanced", oversample=1.0), 1, rtol=1e-6)


def test_sample_weights_follow_ids_and_shares() -> None:
    weights = np.array([0.5, 1, 4], np.float32)
    ids = tf.constant([2, 0], tf.int64)
    np.testing.assert_array_equal(imbalance.sample_weights(ids, weights), [4, 0.5])
    shares = tf.constant([[0.5, 0, 0.5], [0, 1, 0]])
    np.testing.assert_array_equal(imbalance.sample_weights(shares, weights), [2.25, 1])


@pytest.mark.parametrize(
    ("oversample", "wanted"),
    [(0.0, [60, 30, 10]), (0.5, [46.3, 32.7, 18.9]), (1.0, [100 / 3, 100 / 3, 100 / 3])],
)
def test_the_exponent_moves_the_shares(oversample: float, wanted: list[float]) -> None:
    drawn = sampling.expected(COUNTS, oversample)
    assert drawn.sum() == pytest.approx(100)
    scaled = np.array(wanted) * 100 / sum(wanted)
    np.testing.assert_allclose(drawn, scaled, atol=0.1)


def test_rows_come_as_often_as_the_others_or_once_more() -> None:
    ids = np.repeat([0, 1, 2], COUNTS)
    rows = sampling.order(ids, 1.0, seed=3, epoch=0)
    assert np.bincount(ids[rows]).tolist() == [34, 33, 33]
    times = np.bincount(rows, minlength=100)
    assert set(times[:60]) == {0, 1}
    assert set(times[60:90]) == {1, 2}
    assert set(times[90:]) == {3, 4}
    again = sampling.order(ids, 1.0, seed=3, epoch=0)
    np.testing.assert_array_equal(rows, again)
    other = sampling.order(ids, 1.0, seed=3, epoch=1)
    assert set(rows[ids[rows] == 0]) != set(other[ids[other] == 0])


def test_without_oversampling_each_row_comes_once() -> None:
    ids = np.repeat([0, 1, 2], COUNTS)
    rows = sampling.order(ids, 0.0, seed=3, epoch=0)
    assert sorted(rows) == list(range(100))
    assert not np.array_equal(rows, sampling.order(ids, 0.0, seed=3, epoch=1))
