"""How far and how sure: distances between samples and contradicted labels, in plain numbers."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.retrain import distance, labels


def cloud(mean: float, classes: list[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns features and classes: each class lies somewhere else, `mean` moves all of them."""
    draw = np.random.default_rng(seed)
    numbers = np.array(classes)
    places = np.random.default_rng(9).normal(0, 4, (3, 8))
    values = places[numbers] + draw.normal(mean, 1, (len(numbers), 8))
    return values.astype(np.float32), numbers


EVEN = [0, 1, 2] * 60


def moved(new: tuple[np.ndarray, np.ndarray], known_size: int = 180) -> distance.Moved:
    known = cloud(0, EVEN[:known_size], seed=1)
    return distance.moved(*known, *new, seed=0)


def test_the_same_source_stays_within_chance():
    for seed in range(2, 5):
        found = moved(cloud(0, EVEN, seed))
        assert found.distance < found.chance


def test_other_content_goes_beyond_it():
    found = moved(cloud(0.7, EVEN, seed=2))
    assert found.distance > 2 * found.chance


def test_another_mix_of_the_classes_is_no_other_content():
    mixed = cloud(0, [0] * 130 + [1] * 40 + [2] * 10, seed=2)
    found = moved(mixed)
    assert found.distance < 1.2 * found.chance
    # Whereas a class that was never there is.
    draw = np.random.default_rng(0)
    strange = draw.normal(20, 1, (60, 8)).astype(np.float32), np.full(60, 1)
    found = moved(strange)
    assert found.distance > 2 * found.chance


def test_few_images_widen_what_chance_shows():
    few = moved(cloud(0, EVEN[:12], seed=3), known_size=24)
    many = moved(cloud(0, EVEN, seed=3))
    assert few.chance > 1.5 * many.chance
    with pytest.raises(ValueError, match="can't be compared"):
        moved(cloud(0, EVEN, seed=3), known_size=3)


NAMES = ("cat", "dog", "owl")


def answers(names: list[str], sure: float = 0.9) -> np.ndarray:
    """Returns answers for these classes, each with that probability."""
    found = np.full((len(names), 3), (1 - sure) / 2, np.float32)
    found[np.arange(len(names)), [NAMES.index(name) for name in names]] = sure
    return found


def test_labels_are_contradicted_where_the_champion_is_sure():
    own = ["cat", "dog", "owl"] * 20
    known = answers(own), own
    right = labels.contradicted(NAMES, known, (answers(own), own))
    assert (right.contradicted, right.labelled, right.usual_images) == (0, 60, 60)
    assert right.usual < 0.02
    shifted = [*own[1:], own[0]]
    wrong = labels.contradicted(NAMES, known, (answers(own), shifted))
    assert wrong.contradicted == 60
    # Unsure of all of them, as it is of strange images, it contradicts nobody.
    unsure = labels.contradicted(NAMES, known, (answers(own, 0.5), shifted))
    assert unsure.contradicted == 0


def test_classes_that_it_does_not_know_are_left_out():
    own = ["cat", "dog"] * 10
    found = labels.contradicted(
        NAMES, (answers(own), own), (answers(["cat"] * 5), ["newt"] * 4 + ["cat"])
    )
    assert (found.labelled, found.contradicted) == (1, 0)
    none = labels.contradicted(NAMES, (answers(own), own), (answers(["cat"]), ["newt"]))
    assert (none.labelled, none.usual) == (0, 0.0)


def test_what_it_always_contradicts_is_usual_by_class():
    said = ["cat"] * 30 + ["dog"] * 15 + ["cat"] * 15
    own = ["cat"] * 30 + ["dog"] * 30  # half of the dogs look like cats to it
    known = answers(said), own
    dogs = labels.contradicted(NAMES, known, (answers(["dog"] * 5 + ["cat"] * 5), ["dog"] * 10))
    assert dogs.contradicted == 5
    assert dogs.usual == pytest.approx(0.5, abs=0.05)
