"""Warm starts between real exports and real networks."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from pipeline import export, heads, models
from pipeline.config import Train
from pipeline.records import Input
from pipeline.trainer import warm
from tests import graphs
from tests.test_export import IMAGES, SIZE

TRAIN = Train(preset="mnist-cnn-small")


def build(train: Train, classes: tuple[str, ...], seed: int, side: int = SIZE):
    keras.utils.set_random_seed(seed)
    answers = heads.of(train, classes)
    return models.build(train, image_size=side, channels=3, heads=answers), answers


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, answers = build(TRAIN, graphs.CLASSES, seed=1)
    path = tmp_path_factory.mktemp("serving") / "7"
    facts = export.model_facts(model, train=TRAIN, heads=answers, resize="pad", normalize="unit")
    export.export(model, Input(graphs.transform_graph(SIZE, 3), SIZE, 3), facts, IMAGES[:1], path)
    return path


def pixels() -> np.ndarray:
    return np.random.default_rng(0).random((5, SIZE, SIZE, 3), np.float32)


def test_the_same_network_goes_on_with_the_same_answers(champion):
    model, answers = build(TRAIN, graphs.CLASSES, seed=2)
    said = warm.start(model, TRAIN, answers, champion)
    assert said == "Warm start from the weights of version 7."
    before = export.load_weights(champion)
    np.testing.assert_array_equal(model.predict(pixels()), before.predict(pixels()))


def test_new_classes_grow_the_head_and_leave_the_others_as_they_were(champion):
    classes = (*graphs.CLASSES, "zebra")
    model, answers = build(TRAIN, classes, seed=2)
    assert "and 1 new classes" in warm.start(model, TRAIN, answers, champion)
    now, before = model.predict(pixels()), export.load_weights(champion).predict(pixels())
    # Without the newcomer's share, the old classes' odds are the same.
    known = now[:, : len(graphs.CLASSES)]
    np.testing.assert_allclose(known / known.sum(axis=1, keepdims=True), before, rtol=1e-4)


@pytest.mark.parametrize(
    ("train", "classes", "side", "why"),
    [
        (Train(preset="mnist-cnn"), graphs.CLASSES, SIZE, "its network is another"),
        (TRAIN, graphs.CLASSES, SIZE + 8, "its images are 16x16x3"),
        (TRAIN, graphs.CLASSES[::-1], SIZE, "not the first of the new ones"),
        (TRAIN, graphs.CLASSES[:-1], SIZE, "not the first of the new ones"),
    ],
)
def test_what_does_not_fit_starts_cold_and_says_why(champion, train, classes, side, why):
    model, answers = build(train, classes, seed=2, side=side)
    fresh = model.get_weights()
    said = warm.start(model, train, answers, champion)
    assert said.startswith("Cold start") and why in said
    for old, new in zip(fresh, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_champion_that_is_gone_starts_cold(tmp_path):
    model, answers = build(TRAIN, graphs.CLASSES, seed=2)
    assert "Cold start" in warm.start(model, TRAIN, answers, tmp_path / "9")
