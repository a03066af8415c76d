"""Confidence bounds: against published figures, against simulation, and at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from pipeline.blessing import bounds


def test_clopper_pearson_inverts_the_binomial_test():
    low = bounds.lower_bound(81, 100, 0.95)
    high = bounds.upper_bound(81, 100, 0.95)
    assert binom.sf(80, 100, low) == pytest.approx(0.05, abs=1e-9)
    assert binom.cdf(81, 100, high) == pytest.approx(0.05, abs=1e-9)
    assert low < 0.81 < high


def test_rule_of_three():
    assert bounds.upper_bound(0, 100, 0.95) == pytest.approx(1 - 0.05**0.01)
    assert bounds.lower_bound(100, 100, 0.95) == pytest.approx(0.05**0.01)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_edges(confidence):
    assert bounds.lower_bound(0, 10, confidence) == 0
    assert bounds.upper_bound(10, 10, confidence) == 1
    assert bounds.lower_bound(0, 0, confidence) == 0
    assert bounds.upper_bound(0, 0, confidence) == 1


def test_more_images_tell_more():
    lows = [bounds.lower_bound(9 * n, 10 * n, 0.95) for n in (1, 10, 100, 1000)]
    assert lows == sorted(lows) and lows[-1] > 0.89


@pytest.mark.parametrize(("successes", "trials"), [(-1, 10), (11, 10)])
def test_impossible_shares(successes, trials):
    with pytest.raises(ValueError, match="impossible"):
        bounds.lower_bound(successes, trials, 0.95)
    with pytest.raises(ValueError, match="impossible"):
        bounds.upper_bound(successes, trials, 0.95)


def test_tango_inverts_its_score_test():
    first, second, trials = 3, 9, 44
    low, high = bounds.difference_bounds(first, second, trials, 0.975)
    for difference, z in ((low, 1.959964), (high, -1.959964)):
        # The likeliest share under the hypothesis, by search instead of by formula.
        shares = np.linspace(max(0, -difference) + 1e-9, (1 - difference) / 2 - 1e-9, 400_001)
        agree = 1 - 2 * shares - difference
        likelihood = (
            first * np.log(shares + difference)
            + second * np.log(shares)
            + (trials - first - second) * np.log(agree)
        )
        share = shares[np.argmax(likelihood)]
        variance = trials * (2 * share + difference * (1 - difference))
        score = (first - second - trials * difference) / np.sqrt(variance)
        assert score == pytest.approx(z, abs=1e-3)


def test_models_that_never_differ():
    z2 = 1.6448536269514722**2
    low, high = bounds.difference_bounds(0, 0, 1000, 0.95)
    assert high == pytest.approx(z2 / (1000 + z2), abs=1e-9)
    assert low == pytest.approx(-high, abs=1e-9)


def test_difference_is_antisymmetric():
    low, high = bounds.difference_bounds(30, 12, 500, 0.95)
    other_low, other_high = bounds.difference_bounds(12, 30, 500, 0.95)
    assert (low, high) == pytest.approx((-other_high, -other_low), abs=1e-9)
    assert low < 18 / 500 < high


def test_always_different():
    low, high = bounds.difference_bounds(100, 0, 100, 0.95)
    assert high == pytest.approx(1) and 0.9 < low < 1


def test_impossible_pairs():
    with pytest.raises(ValueError, match="impossible"):
        bounds.difference_bounds(6, 5, 10, 0.95)
    with pytest.raises(ValueError, match="impossible"):
        bounds.difference_bounds(0, 0, 0, 0.95)


def test_bounds_hold_as_often_as_they_say():
    rng = np.random.default_rng(5)
    trials, p_first, p_second = 400, 0.06, 0.04
    draws = rng.multinomial(trials, [p_first, p_second, 1 - p_first - p_second], size=1500)
    found = [bounds.difference_bounds(int(a), int(b), trials, 0.95) for a, b, _ in draws]
    truth = p_first - p_second
    assert np.mean([low <= truth for low, _ in found]) == pytest.approx(0.95, abs=0.02)
    assert np.mean([high >= truth for _, high in found]) == pytest.approx(0.95, abs=0.02)


def test_three_verdicts():
    assert bounds.compare(-0.009, 0.02, 0.01) == "no worse"
    assert bounds.compare(-0.05, -0.02, 0.01) == "worse"
    assert bounds.compare(-0.02, 0.01, 0.01) == "undecided"


@pytest.mark.parametrize(
    ("right", "images", "floor"), [(31, 50, 0.5), (280, 280, 0.99), (995, 1000, 0.99), (1, 2, 0.4)]
)
def test_a_bound_that_is_too_low_needs_more_images_than_there_are(right, images, floor):
    assert bounds.lower_bound(right, images, 0.95) < floor
    needed = bounds.images_needed(right / images, floor, 0.95)
    assert needed is not None and needed > images
    # As many, with the same share of them right, are about enough.
    assert bounds.lower_bound(math.ceil(right / images * needed), needed, 0.95) >= floor


def test_a_share_just_above_the_floor_would_take_more_images_than_anybody_has():
    assert bounds.images_needed(0.9 + 1e-15, 0.9, 0.95) is None
    with pytest.raises(ValueError, match="not above"):
        bounds.images_needed(0.9, 0.9, 0.95)


def test_a_means_bounds_are_students():
    # From the t distribution's table: 2.132 for 95 % and 4 degrees of freedom.
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    lower, upper = bounds.mean_bounds(values, 0.95)
    half = 2.1318 * math.sqrt(2.5) / math.sqrt(5)
    assert (lower, upper) == (pytest.approx(3 - half, abs=1e-3), pytest.approx(3 + half, abs=1e-3))


def test_a_means_bounds_hold_as_often_as_they_say():
    # Absolute errors of a normal model, as skewed as such errors are.
    rng = np.random.default_rng(5)
    errors = np.abs(rng.normal(0, 1, (2000, 60)))
    truth = math.sqrt(2 / math.pi)
    held = np.mean([bounds.mean_bounds(row, 0.95)[1] >= truth for row in errors])
    assert 0.93 <= held <= 0.97


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")]])
def test_nothing_is_told_of_a_mean_without_values(values):
    assert bounds.mean_bounds(np.array(values), 0.95) == (-math.inf, math.inf)


@pytest.mark.parametrize("truth", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("images", [10, 60, 300])
def test_the_bounds_of_shares_err_as_rarely_as_they_say(images, truth):
    # Images that are right or wrong as a whole; one of eight versions right with its own chance.
    rng = np.random.default_rng(8)
    whole = (rng.random((1000, images)) < truth).astype(float)
    parts = rng.binomial(8, rng.beta(truth, 1 - truth, (1000, images))) / 8
    for drawn in (whole, parts):
        found = [bounds.bounded_mean(row, 0, 1, 0.95) for row in drawn]
        assert np.mean([lower > truth for lower, _ in found]) <= 0.075
        assert np.mean([upper < truth for _, upper in found]) <= 0.075


def test_all_right_shows_about_what_clopper_and_pearson_say():
    for images in (1, 30, 300):
        lower, upper = bounds.bounded_mean(np.ones(images), 0, 1, 0.95)
        assert lower == pytest.approx(bounds.lower_bound(images, images, 0.95), abs=0.06)
        assert upper == 1


def test_many_values_have_students_bounds():
    shares = np.random.default_rng(3).binomial(15, 0.7, 2000) / 15
    near = bounds.bounded_mean(shares, 0, 1, 0.95)
    assert near == pytest.approx(bounds.mean_bounds(shares, 0.95), abs=1e-3)
