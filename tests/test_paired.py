"""Two models on the same images: against published figures, SciPy, simulation, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.blessing import bootstrap, bounds, class_checks, paired
from pipeline.blessing.bootstrap import Difference
from pipeline.blessing.measured import Measured
from pipeline.evaluator.predictions import Predictions


def test_mcnemars_mid_p_of_the_published_example():
    # Fagerland, Lydersen and Laake (2013), airway hyper-responsiveness: 1 and 7 of 21 differ.
    assert paired.mcnemar(1, 7) == pytest.approx(0.0391, abs=1e-4)
    assert paired.mcnemar(7, 1) == paired.mcnemar(1, 7)


def test_mcnemar_at_the_edges():
    assert paired.mcnemar(0, 0) == 1
    assert paired.mcnemar(5, 5) == 1
    assert paired.mcnemar(0, 4) == pytest.approx(2 * 0.5**4 - 0.5**4)
    with pytest.raises(ValueError, match="impossible"):
        paired.mcnemar(-1, 2)


def test_mcnemar_keeps_its_level():
    rng = np.random.default_rng(2)
    ours = rng.binomial(30, 0.5, 3000)
    alarms = np.mean([paired.mcnemar(int(n), 30 - int(n)) <= 0.05 for n in ours])
    assert 0.03 <= alarms <= 0.06


def pair(images: int, classes: int, seed: int, ours: float = 0.8, theirs: float = 0.75):
    """Truths and two models' answers, right as often as said, int64 [images] each."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, images)
    answers = []
    for share in (ours, theirs):
        wrong = rng.uniform(size=images) > share
        answers.append(np.where(wrong, rng.integers(0, classes, images), truth))
    return truth, answers[0], answers[1]


def recalls(truth, ours, theirs) -> float:
    """The gain of macro recall, image by image."""
    means = [
        np.mean([np.mean(said[truth == name] == name) for name in np.unique(truth)])
        for said in (ours, theirs)
    ]
    return float(means[0] - means[1])


def test_the_bootstrap_is_scipys():
    truth, ours, theirs = pair(150, 4, seed=1)
    mine = bootstrap.counted(truth, ours, theirs, 4, 0.95, 4000)["macro_recall"]
    result = stats.bootstrap(
        (truth, ours, theirs),
        recalls,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        confidence_level=0.9,
        method="BCa",
        random_state=np.random.default_rng(0),
    )
    assert mine.difference == pytest.approx(recalls(truth, ours, theirs))
    assert mine.error == pytest.approx(result.standard_error, rel=0.06)
    # The luck of the resamples moves either end by about a tenth of the standard error.
    near = 0.3 * mine.error
    assert mine.lower == pytest.approx(result.confidence_interval.low, abs=near)
    assert mine.upper == pytest.approx(result.confidence_interval.high, abs=near)


def test_the_bootstrap_of_a_mean_is_scipys():
    rng = np.random.default_rng(4)
    ours, theirs = rng.exponential(1.0, 200), rng.exponential(1.2, 200)
    mine = bootstrap.mean_loss(ours, theirs, 0.95, 4000)
    result = stats.bootstrap(
        (theirs - ours,),
        np.mean,
        n_resamples=4000,
        confidence_level=0.9,
        method="BCa",
        random_state=np.random.default_rng(0),
    )
    assert mine.difference == pytest.approx(theirs.mean() - ours.mean())
    assert mine.lower == pytest.approx(result.confidence_interval.low, abs=0.02)
    assert mine.upper == pytest.approx(result.confidence_interval.high, abs=0.02)


def test_the_same_seed_gives_the_same_bounds():
    given = pair(300, 5, seed=3)
    assert bootstrap.counted(*given, 5, 0.95, 500) == bootstrap.counted(*given, 5, 0.95, 500)
    assert bootstrap.counted(*given, 5, 0.95, 500) != bootstrap.counted(*given, 5, 0.95, 500, 1)


def test_a_model_against_itself():
    truth, ours, _ = pair(200, 3, seed=6)
    for found in bootstrap.counted(truth, ours, ours, 3, 0.95, 300).values():
        assert (found.difference, found.lower, found.upper) == (0, 0, 0)
    losses = np.linspace(0, 1, 50)
    found = bootstrap.mean_loss(losses, losses, 0.95, 300)
    assert (found.difference, found.lower, found.upper) == (0, 0, 0)


def test_bounds_hold_as_often_as_they_say():
    # Two models of equal recall, whose answers are independent: the true gain is 0.
    held = dict.fromkeys(bootstrap.COUNTED, 0)
    for seed in range(120):
        given = pair(300, 3, seed=seed, ours=0.8, theirs=0.8)
        for name, found in bootstrap.counted(*given, 3, 0.9, 300).items():
            held[name] += found.lower <= 0
    assert all(0.82 <= count / 120 <= 0.98 for count in held.values()), held


def predictions(truth, said, classes=("a", "b", "c"), sure: float = 0.9) -> Predictions:
    rest = (1 - sure) / (len(classes) - 1)
    rows = np.full((len(said), len(classes)), rest, np.float32)
    rows[np.arange(len(said)), said] = sure
    return Predictions(
        model="f",
        version=None,
        classes=classes,
        ids=[str(number).encode() for number in range(len(said))],
        labels=[classes[name] for name in truth],
        predicted=[classes[name] for name in said],
        probabilities=rows,
    )


def test_metrics_are_the_verdicts_own():
    truth, ours, theirs = pair(400, 3, seed=8, ours=0.9, theirs=0.7)
    model, champion = predictions(truth, ours), predictions(truth, theirs)
    found = paired.metrics(model, champion, 0.95, 300)
    matrix = np.zeros((3, 3), np.int64)
    np.add.at(matrix, (truth, ours), 1)
    told = Measured(400, float(np.mean(truth == ours)), 1.0, 0.0, {})
    names = class_checks.metrics(told, class_checks.per_class(matrix, model.classes))
    for name in ("accuracy", "macro_recall", "macro_f1", "worst_class_recall"):
        assert found[name].value == pytest.approx(names[name])
        assert found[name].lower < found[name].upper
    expected = np.where(truth == ours, -np.log(0.9), -np.log(0.05)).mean()
    assert found["cross_entropy"].value == pytest.approx(expected, rel=1e-5)
    # Ours is right more often: its loss fell, and that is a gain.
    assert found["cross_entropy"].difference > 0


def test_a_champion_that_knows_fewer_classes():
    truth = np.array([0, 1, 2] * 40)
    model = predictions(truth, truth)
    champion = predictions(np.minimum(truth, 1), np.minimum(truth, 1), ("a", "b"))
    found = paired.metrics(model, champion, 0.95, 300)
    assert found["accuracy"].champion == pytest.approx(2 / 3)
    assert found["worst_class_recall"].champion == 0
    # What it does not know has a probability of nothing.
    unknown = -np.log(1e-7) / 3
    assert found["cross_entropy"].champion == pytest.approx(unknown - 2 / 3 * np.log(0.9), rel=1e-4)


def test_probabilities_that_are_none_cost_as_much_as_nothing():
    truth = np.array([0, 1, 2])
    model = predictions(truth, truth)
    model.probabilities[0] = np.nan
    assert paired.losses(model, model.labels)[0] == pytest.approx(-np.log(1e-7))


def test_four_verdicts():
    assert paired.verdict(0.001, 0.02, 0.01) == "better"
    assert paired.verdict(0.001, 0.02, 0.01, sure=False) == "no worse"
    assert paired.verdict(-0.009, 0.02, 0.01) == "no worse"
    assert paired.verdict(-0.05, -0.02, 0.01) == "worse"
    assert paired.verdict(-0.02, 0.01, 0.01) == "undecided"


DEFAULTS = {"better": "push", "no worse": "push", "worse": "block", "undecided": "estimate"}


def test_what_becomes_of_a_verdict_is_configured():
    assert paired.passes("no worse", -0.005, 0.01, DEFAULTS)
    assert not paired.passes("worse", -0.05, 0.01, DEFAULTS)
    assert paired.passes("undecided", -0.01, 0.01, DEFAULTS)
    assert not paired.passes("undecided", -0.011, 0.01, DEFAULTS)
    assert not paired.passes("undecided", 0.01, 0.01, {**DEFAULTS, "undecided": "block"})
    assert paired.passes("undecided", -0.05, 0.01, {**DEFAULTS, "undecided": "push"})
    assert not paired.passes("no worse", 0.0, 0.01, {**DEFAULTS, "no worse": "block"})


def answers(only_ours: int, only_theirs: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images either model has right, bool [images]."""
    ours, theirs = np.ones(images, bool), np.ones(images, bool)
    theirs[:only_ours] = False
    ours[only_ours : only_ours + only_theirs] = False
    return ours, theirs


def test_so_many_more_images_do_tell():
    found = paired.accuracy(*answers(12, 10, 500), 0.95)
    assert paired.verdict(found.lower, found.upper, 0.01) == "undecided"
    more = paired.images_needed(found, 500, 0.01, 0.95)
    assert more is not None
    # Drawn at the same shares, four of five samples of that size decide.
    rng = np.random.default_rng(9)
    total = 500 + more
    draws = rng.multinomial(total, [12 / 500, 10 / 500, 478 / 500], size=400)
    lows = [bounds.difference_bounds(int(a), int(b), total, 0.95)[0] for a, b, _ in draws]
    assert np.mean(np.array(lows) >= -0.01) == pytest.approx(0.8, abs=0.06)


def test_at_the_very_margin_no_number_of_images_tells():
    found = paired.accuracy(*answers(5, 10, 500), 0.95)
    assert found.difference == -0.01
    assert paired.images_needed(found, 500, 0.01, 0.95) is None
    far = Difference(0.9, 0.95, -0.05, -0.2, 0.1, 0.08)
    assert paired.images_needed(far, 100, 0.01, 0.95) == 2374


@pytest.mark.parametrize("on_undecided", ["push", "estimate", "block"])
def test_power_is_what_simulation_says(on_undecided):
    images, disagreement, margin, loss = 2000, 0.06, 0.01, 0.02
    rng = np.random.default_rng(11)
    shares = [(disagreement - loss) / 2, (disagreement + loss) / 2, 1 - disagreement]
    blocked = 0
    for ours, theirs, _ in rng.multinomial(images, shares, size=600):
        lower, upper = bounds.difference_bounds(int(ours), int(theirs), images, 0.95)
        said = paired.verdict(lower, upper, margin)
        decisions = {**DEFAULTS, "undecided": on_undecided}
        blocked += not paired.passes(said, (ours - theirs) / images, margin, decisions)
    expected = paired.power(images, disagreement, margin, loss, 0.95, on_undecided)
    assert blocked / 600 == pytest.approx(expected, abs=0.06)


def test_power_grows_with_the_images_and_the_loss():
    grown = [paired.power(images, 0.06, 0.01, 0.03, 0.95) for images in (200, 1000, 5000)]
    assert grown == sorted(grown) and grown[-1] > 0.99
    assert paired.power(1000, 0.06, 0.01, 0.01, 0.95) == pytest.approx(0.5)
    assert paired.power(1000, 0.06, 0.01, -0.02, 0.95) < 0.01
    with pytest.raises(ValueError, match="impossible"):
        paired.power(1000, 0.01, 0.01, 0.05, 0.95)
    with pytest.raises(ValueError, match="impossible"):
        paired.power(0, 0.1, 0.01, 0.05, 0.95)
