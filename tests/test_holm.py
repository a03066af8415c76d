"""Several tests at once: Holm's procedure by hand, by simulation, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binom, binomtest

from pipeline.blessing import holm, recall, size
from pipeline.blessing.class_checks import Floors
from pipeline.config import Evaluate


def test_by_hand():
    # 0.005 x 4, 0.01 x 3, 0.03 x 2; 0.04 x 1 is less than what came before.
    assert holm.adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm.rejected([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]


def test_it_stops_at_the_first_that_stands():
    # The third alone would pass 0.05 x 1, but the second, smaller one did not.
    assert holm.rejected([0.001, 0.03, 0.04], 0.05) == [True, False, False]


def test_edges():
    assert holm.adjusted([]) == []
    assert holm.adjusted([0.2]) == [0.2]
    assert holm.adjusted([0.7, 0.9, 0.0]) == [1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm.adjusted([0.5, 1.2])
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm.adjusted([float("nan")])


def test_binomial_p_values_are_scipys():
    for right, images, floor in ((3, 20, 0.5), (0, 7, 0.1), (20, 20, 0.9), (450, 1000, 0.47)):
        expected = binomtest(right, images, floor, alternative="less").pvalue
        assert holm.below(right, images, floor) == pytest.approx(expected, rel=1e-9)
    assert holm.below(0, 0, 0.5) == 1
    with pytest.raises(ValueError, match="impossible"):
        holm.below(3, 2, 0.5)


def test_healthy_classes_are_seldom_blamed():
    # 40 classes whose recall is the floor itself. Each alone would be blamed in up to 5 %.
    rng = np.random.default_rng(3)
    right = rng.binomial(60, 0.7, size=(1000, 40))
    p_values = binom.cdf(right, 60, 0.7)
    assert np.mean((p_values <= 0.05).any(axis=1)) > 0.7
    blamed = [any(holm.rejected(row, 0.05)) for row in p_values.tolist()]
    assert np.mean(blamed) <= 0.06


def matrix(*recalls: tuple[int, int]) -> np.ndarray:
    """A confusion matrix of classes with (right, support) each; mistakes go to the next class."""
    counts = np.zeros((len(recalls), len(recalls)), np.int64)
    for number, (right, support) in enumerate(recalls):
        counts[number, number] = right
        counts[number, (number + 1) % len(recalls)] = support - right
    return counts


@pytest.mark.parametrize(("right", "passed"), [(35, False), (44, True)])
def test_the_floor_of_recall_is_held_by_all_classes_together(right, passed):
    # Alone, 44 of 100 would be shown to lie below 0.53; as one of twenty it isn't.
    options = Evaluate(min_class_recall=0.53)
    counts = matrix((right, 100), *[(95, 100)] * 19)
    p_values = recall.corrected({"label": counts}, options)
    names = [f"c{number}" for number in range(20)]
    check = recall.check(counts, names, Floors.asked(options), p_values)
    assert check.passed is passed
    assert (check.bound < 0.53) is not passed
    assert check.value == right / 100 and "c0" in check.message
    assert "for 20 classes together" in check.message
    assert holm.below(44, 100, 0.53) < 0.05
    low, high = check.interval
    assert low < check.value < high <= check.bound


def test_two_heads_are_one_family():
    options = Evaluate(min_class_recall=0.5, heads={"grade": {"min_class_recall": 0.6}})
    heads = {"label": matrix((90, 100), (30, 100)), "grade": matrix((45, 100), (99, 100))}
    found = recall.corrected(heads, options)
    single = [holm.below(90, 100, 0.5), holm.below(30, 100, 0.5)]
    single += [holm.below(45, 100, 0.6), holm.below(99, 100, 0.6)]
    assert [*found["label"], *found["grade"]] == pytest.approx(holm.adjusted(single))
    checks = {
        head: recall.check(counts, ["x", "y"], Floors.asked(options, head), found)
        for head, counts in heads.items()
    }
    assert not checks["label"].passed and "y" in checks["label"].message
    # The second step: three are left, and 45 of 100 lies below 0.6 even so.
    assert not checks["grade"].passed
    assert checks["grade"].bound == pytest.approx(binom_bound(45, 100, 0.05 / 3), abs=1e-6)


def binom_bound(right: int, images: int, chance: float) -> float:
    """The share at which so few right have just this chance, by search."""
    return float(brentq(lambda share: binom.cdf(right, images, share) - chance, 0.01, 0.99))


def test_no_class_with_images():
    options = Evaluate()
    counts = matrix((0, 0), (0, 0))
    p_values = recall.corrected({"label": counts}, options)
    check = recall.check(counts, ["x", "y"], Floors.asked(options), p_values)
    assert not check.passed and "No class has a test image" in check.message


def hopeless(sizes: dict[str, int], **options) -> list[str]:
    return [row[-1] for row in size.hopeless(sizes, Evaluate(**options))]


def test_a_test_too_small_for_its_floor_is_told_before_training():
    sizes = {"a": 60, "b": 60}
    assert hopeless(sizes) == []
    assert hopeless(sizes, min_accuracy=0.97) == []
    [message] = hopeless(sizes, min_accuracy=0.98)
    # 0.95 ** (1 / 149) is the first above 0.98.
    assert "No model can pass" in message and "at least 149 images" in message
    assert hopeless({"a": 74, "b": 75}, min_accuracy=0.98) == []
    [message] = hopeless(sizes, min_accuracy=1.0)
    assert "no number of images shows that" in message
    [message] = hopeless(sizes, heads={"grade": {"min_accuracy": 0.99}})
    assert "evaluate.heads.grade.min_accuracy" in message


def test_the_default_floor_can_be_too_much_for_a_handful():
    [message] = hopeless({"a": 2, "b": 2})
    assert "floor is 55.00%" in message


def test_a_floor_that_a_class_is_too_small_to_miss():
    [message] = hopeless({"a": 100, "c": 100, "b": 3}, min_class_recall=0.5)
    assert "'b' has 3" in message and "at least 5 of each class" in message
    assert hopeless({"a": 100, "c": 100, "b": 5}, min_class_recall=0.5) == []
    # The default floor asks for nothing that somebody set.
    assert hopeless({"a": 100, "c": 100, "b": 3}) == []
