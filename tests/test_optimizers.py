"""Optimizers, schedules and losses against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from pipeline import phases
from pipeline.config import Train
from pipeline.heads import Head
from pipeline.trainer import losses, optimizers, schedules

STEPS = 10  # of an epoch

LABEL = Head(name="label", kind="class", classes=("a", "b", "c"))


def settings(**changes: Any) -> Train:
    return Train.model_validate({"epochs": 4, "learning_rate": 0.1, **changes})


def rates(*, at: list[int], **changes: Any) -> list[float]:
    """Returns the schedule's rates at these steps."""
    train = settings(**changes)
    schedule = schedules.make(train, phases.plan(train)[0], STEPS)
    assert not isinstance(schedule, float)
    return [float(schedule(step)) for step in at]


def make(variables: list[keras.Variable], **changes: Any) -> keras.optimizers.Optimizer:
    train = settings(**changes)
    optimizer = optimizers.make(train, phases.plan(train)[0], STEPS, variables)
    optimizer.build(variables)
    return optimizer


def weights() -> list[keras.Variable]:
    kernel = keras.Variable(np.full((2, 2), 2.0, np.float32), name="kernel")
    return [kernel, keras.Variable(np.full((2,), 2.0, np.float32), name="bias")]


def test_a_rate_that_never_moves_is_a_number() -> None:
    train = settings()
    assert schedules.make(train, phases.plan(train)[0], STEPS) == 0.1


def test_the_schedules() -> None:
    assert rates(schedule="step", step_epochs=2, at=[0, 19, 20, 39]) == pytest.approx(
        [0.1, 0.1, 0.01, 0.01]
    )
    cosine = rates(schedule="cosine", at=[0, 20, 40])
    assert cosine == pytest.approx([0.1, 0.05, 0.0], abs=1e-7)
    floored = rates(schedule="cosine", min_learning_rate=0.02, at=[0, 20, 40])
    assert floored == pytest.approx([0.1, 0.06, 0.02])
    cycle = rates(schedule="one-cycle", at=[0, 11, 12, 40])
    assert cycle == pytest.approx([0.1 * (0.04 + 0.96 / 12), 0.1, 0.1, 1e-5], rel=1e-5)


def test_the_rate_warms_up() -> None:
    rising = rates(warmup_epochs=1, at=[0, 4, 9, 10, 39])
    assert rising == pytest.approx([0.01, 0.05, 0.1, 0.1, 0.1])
    cosine = rates(schedule="cosine", warmup_epochs=1, at=[4, 10, 25, 40])
    assert cosine == pytest.approx([0.05, 0.1, 0.05, 0.0], abs=1e-7)


def test_the_plateau_schedule_is_told_its_factor() -> None:
    optimizer = make(weights(), schedule="plateau")
    assert float(optimizer.learning_rate) == pytest.approx(0.1)
    schedules.set_plateau(optimizer, 0.5)
    assert float(optimizer.learning_rate) == pytest.approx(0.05)
    scaled = keras.optimizers.LossScaleOptimizer(make(weights(), schedule="plateau"))
    schedules.set_plateau(scaled, 0.5)
    assert float(scaled.learning_rate) == pytest.approx(0.05)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_rate_told_is_that_of_the_step_behind(scaled: bool) -> None:
    variables = weights()
    optimizer = make(variables, schedule="step", step_epochs=1)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=1.0)
        optimizer.build(variables)
    for _ in range(STEPS):
        optimizer.apply([np.ones_like(variable) for variable in variables], variables)
    assert float(optimizer.learning_rate) == pytest.approx(0.01)  # of the next epoch's first step
    assert schedules.last_rate(optimizer) == pytest.approx(0.1)
    assert schedules.last_rate(make(weights())) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop", "lion"])
def test_decay_spares_biases_whichever_the_optimizer(name: str) -> None:
    kernel, bias = variables = weights()
    optimizer = make(variables, optimizer=name, weight_decay=0.5)
    optimizer.apply([np.zeros((2, 2), np.float32), np.zeros((2,), np.float32)])
    np.testing.assert_allclose(kernel, np.full((2, 2), 2.0 * (1 - 0.1 * 0.5)), rtol=1e-6)
    np.testing.assert_allclose(bias, np.full((2,), 2.0), rtol=1e-6)


def test_sgd_moves_by_rate_and_momentum() -> None:
    [kernel, _] = variables = weights()
    optimizer = make(variables, optimizer="sgd", momentum=0.5, nesterov=False)
    for _ in range(2):
        optimizer.apply([np.ones((2, 2), np.float32), np.zeros((2,), np.float32)])
    np.testing.assert_allclose(kernel, np.full((2, 2), 2 - 0.1 - 0.15), rtol=1e-6)


def test_gradients_are_clipped_together() -> None:
    [kernel, _] = variables = weights()
    optimizer = make(variables, optimizer="sgd", momentum=0.0, nesterov=False, clip_norm=1.0)
    optimizer.apply([np.full((2, 2), 4.0, np.float32), np.full((2,), 0.0, np.float32)])
    moved = 2.0 - np.asarray(kernel)  # a norm of 8, clipped to 1, times the rate
    assert np.linalg.norm(moved) == pytest.approx(0.1, rel=1e-5)


def test_two_half_batches_are_one_update_and_one_step_of_the_average() -> None:
    grads = [np.random.default_rng(seed).random((4, 2, 2)).astype(np.float32) for seed in (1, 2)]
    whole, halves = weights(), weights()
    options: dict[str, Any] = {"ema": 0.9, "clip_norm": 0.7, "weight_decay": 0.1}
    one = make(whole, **options)
    two = make(halves, accumulate=2, **options)
    none, none_at_all = np.zeros((2,), np.float32), np.zeros((2, 2), np.float32)
    for first, second in zip(*grads, strict=True):
        one.apply([(first + second) / 2, none])
        two.apply([first, none])
        two.apply([second, none])
    np.testing.assert_allclose(whole[0], halves[0], rtol=1e-5)
    # Keras averages behind each batch: what an update moved is in the average with the next.
    two.apply([none_at_all, none])
    one.finalize_variable_values(whole)
    two.finalize_variable_values(halves)
    np.testing.assert_allclose(whole[0], halves[0], rtol=1e-5)


PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], np.float32)
NUMBERS = np.array([0, 1], np.int64)
SHARES = np.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]], np.float32)


def loss_of(targets: Any, **changes: Any) -> float:
    return float(losses.loss(LABEL, settings(**changes))(targets, PROBABILITIES))


def test_cross_entropy_of_numbers_and_of_shares() -> None:
    logs = -np.log(PROBABILITIES)
    assert loss_of(NUMBERS) == pytest.approx((logs[0, 0] + logs[1, 1]) / 2, rel=1e-5)
    assert loss_of(NUMBERS, preset="cifar10-cnn") == pytest.approx(loss_of(NUMBERS), rel=1e-5)
    mixed = (logs[0, 0] + 0.5 * logs[1, 1] + 0.5 * logs[1, 2]) / 2
    assert loss_of(SHARES) == pytest.approx(mixed, rel=1e-5)


def test_smoothing_spreads_the_label() -> None:
    logs = -np.log(PROBABILITIES)
    expected = 0.7 * (logs[0, 0] + logs[1, 1]) / 2 + 0.3 * logs.mean()
    assert loss_of(NUMBERS, label_smoothing=0.3) == pytest.approx(expected, rel=1e-5)


def test_focal_loss_holds_easy_images_back() -> None:
    logs = -np.log(PROBABILITIES)
    expected = (0.3**2 * logs[0, 0] + 0.7**2 * logs[1, 1]) / 2
    assert loss_of(NUMBERS, loss="focal") == pytest.approx(expected, rel=1e-5)
    plain = loss_of(SHARES)
    assert loss_of(SHARES, loss="focal", focal_gamma=0) == pytest.approx(plain, rel=1e-5)
    soft = (0.3**2 * logs[0, 0] + 0.5 * 0.7**2 * logs[1, 1] + 0.5 * 0.4**2 * logs[1, 2]) / 2
    assert loss_of(SHARES, loss="focal") == pytest.approx(soft, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "expected"), [("mse", (0.25 + 4) / 2), ("mae", 1.25), ("huber", (0.125 + 1.5) / 2)]
)
def test_regression_losses(kind: Any, expected: float) -> None:
    loss = losses.loss(Head(name="size", kind="regression", loss=kind), settings())
    numbers, truth = np.array([1.5, 5.0], np.float32), np.array([1.0, 3.0], np.float32)
    assert float(loss(truth, numbers)) == pytest.approx(expected)
    weighted = loss(truth, numbers, sample_weight=np.array([2.0, 0.0], np.float32))
    assert float(weighted) == pytest.approx(float(loss(truth[:1], numbers[:1])))


def test_metrics_count_examples_not_batches() -> None:
    accuracy = losses.metric(LABEL)
    accuracy.update_state(NUMBERS, PROBABILITIES)  # right, wrong
    accuracy.update_state(SHARES[:1], PROBABILITIES[:1])  # right, as shares
    assert float(accuracy.result()) == pytest.approx(2 / 3)
    mae = losses.metric(Head(name="size", kind="regression", loss="mse"))
    mae.update_state(np.array([1.0, 2.0], np.float32), np.array([2.0, 2.0], np.float32))
    mae.update_state(np.array([1.0], np.float32), np.array([3.0], np.float32))
    assert mae.name == "mae"
    assert float(mae.result()) == pytest.approx(1.0)
