"""Temperature, threshold and calibration error: the arithmetic, the split, and a real model."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import export, features, model_json
from pipeline.blessing import calibration, reliability
from pipeline.config import Calibration, validated
from pipeline.errors import ConfigError, DataRefused
from pipeline.evaluator import predictions
from pipeline.ingest.splits import Rule, group_key
from pipeline.trainer import train, train_child
from tests import graphs, jobs


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def drawn(images: int, sharper: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities that are too sure by this factor, and labels of the true ones."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (images, 5))
    truth = (rng.random((images, 1)) > softmax(logits).cumsum(axis=1)).sum(axis=1)
    return softmax(logits * sharper).astype(np.float32), np.minimum(truth, 4)


@pytest.mark.parametrize("sharper", [2.5, 1.0, 0.4])
def test_the_temperature_undoes_what_made_the_model_too_sure(sharper):
    probabilities, truth = drawn(4000, sharper)
    found = calibration.temperature(probabilities, truth)
    assert found == pytest.approx(sharper, rel=0.08)
    mended = calibration.tempered(probabilities, found)
    np.testing.assert_allclose(mended.sum(axis=1), 1, atol=1e-9)
    np.testing.assert_array_equal(mended.argmax(axis=1), probabilities.argmax(axis=1))
    right = probabilities.argmax(axis=1) == truth
    after = reliability.reliability(mended.max(axis=1), right)
    assert after.ece < 2.5 * after.by_chance
    if sharper != 1:
        before = reliability.reliability(probabilities.max(axis=1), right)
        assert before.ece > 3 * after.ece


def test_images_that_are_all_right_tell_no_temperature():
    probabilities, _ = drawn(200, 1.0)
    truth = probabilities.argmax(axis=1)
    assert calibration.temperature(probabilities, truth) == calibration.UNTOLD


def test_probabilities_of_nought_and_one_stay_numbers():
    sure = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]], np.float32)
    found = calibration.temperature(sure, np.array([0, 1, 2, 1]))
    assert np.isfinite(calibration.tempered(sure, found)).all()
    assert calibration.tempered(sure, None).dtype == np.float64


def test_a_threshold_keeps_its_word_on_new_images():
    """Of many data sets, at least `confidence` of the thresholds reach the target on new images."""
    rng = np.random.default_rng(3)
    kept = tried = 0
    for _ in range(200):
        sure = rng.random(600)
        right = rng.random(600) < sure**0.2  # surer answers are right more often
        limit = calibration.threshold(sure, right, 0.9, 0.95)
        if limit is None:
            continue
        tried += 1
        # The true precision above the threshold: the mean of u**0.2 over (limit, 1).
        precision = (1 - limit**1.2) / 1.2 / (1 - limit)
        kept += precision >= 0.9
    assert tried > 150
    assert kept / tried >= 0.95


def test_thresholds_at_the_ends():
    sure = np.linspace(0.5, 0.99, 300)
    assert calibration.threshold(sure, np.ones(300, bool), 0.95, 0.95) == 0.0
    assert calibration.threshold(sure, np.zeros(300, bool), 0.95, 0.95) is None
    # All equally sure: either all are answered, or none.
    same = np.full(300, 0.8)
    assert calibration.threshold(same, np.arange(300) % 10 > 0, 0.8, 0.95) == 0.0
    assert calibration.threshold(same, np.arange(300) % 10 > 0, 0.95, 0.95) is None
    # The surest half is right, the other wrong: the threshold lies between the two.
    limit = calibration.threshold(sure, sure > 0.745, 0.9, 0.95)
    assert limit is not None and 0.7 < limit < 0.8


def test_too_few_images_to_show_the_target():
    needed = calibration.images_needed(0.95, 0.95)
    sure = np.linspace(0.5, 0.9, needed)
    right = np.ones(needed, bool)
    assert calibration.threshold(sure, right, 0.95, 0.95) == 0.0
    assert calibration.threshold(sure[1:], right[1:], 0.95, 0.95) is None
    options = Calibration(target_precision=0.95)
    calibration.check(options, ("cat", "dog"), needed)
    with pytest.raises(ConfigError, match=f"at least {needed}"):
        calibration.check(options, ("cat", "dog"), needed - 1)
    with pytest.raises(DataRefused, match="'unknown'"):
        calibration.check(options, ("cat", "unknown"), needed)
    calibration.check(Calibration(method="temperature"), ("cat", "unknown"), 1)


def test_reliability_by_hand():
    sure = np.array([0.92, 0.92, 0.92, 0.92, 0.55, 0.55], np.float32)
    right = np.array([True, True, True, False, True, False])
    found = reliability.reliability(sure, right)
    low, high = found.bins
    assert (low["count"], high["count"]) == (2, 4)
    assert (low["from"], low["to"]) == (8 / 15, 9 / 15)
    assert high["accuracy"] == 0.75 and high["confidence"] == pytest.approx(0.92)
    assert found.ece == pytest.approx((4 * abs(0.75 - 0.92) + 2 * abs(0.5 - 0.55)) / 6, abs=1e-6)
    # The ends of the scale, and what is no number, have a bin.
    edges = reliability.reliability(np.array([0.0, 1.0, np.nan]), np.array([False, True, False]))
    assert sum(one["count"] for one in edges.bins) == 3 and edges.ece == 0


def test_chance_alone_is_what_it_is_said_to_be():
    errors, said = [], []
    for seed in range(40):
        probabilities, truth = drawn(500, seed=seed)
        right = probabilities.argmax(axis=1) == truth
        found = reliability.reliability(probabilities.max(axis=1), right)
        errors.append(found.ece)
        said.append(found.by_chance)
    assert np.mean(errors) == pytest.approx(np.mean(said), rel=0.15)


CLASSES = ("a", "b")


def judged(threshold: float | None, right: int = 380, images: int = 400, **options):
    """Judges 400 sure answers, some of them right, and 100 of little confidence, half right."""
    sure = np.concatenate([np.linspace(0.9, 0.99, images), np.linspace(0.51, 0.6, 100)])
    hits = np.arange(images) < right
    labels = ["a" if hit else "b" for hit in [*hits, *[True, False] * 50]]
    made = predictions.Predictions(
        model="f",
        version=None,
        classes=CLASSES,
        ids=[b"%d" % number for number in range(len(labels))],
        labels=labels,
        predicted=["a"] * len(labels),
        probabilities=np.stack([sure, 1 - sure], axis=1).astype(np.float32),
        threshold=threshold,
        answered=None if threshold is None else sure >= threshold,
    )
    return made, reliability.judge(made, Calibration(**options))


def test_the_verdict_always_has_the_calibration():
    _, (checks, told) = judged(None)
    assert checks == []
    assert told["calibration"].keys() == {
        "ece", "ece_by_chance", "bins", "temperature", "threshold", "target_precision",
        "precision", "answered",
    }  # fmt: skip
    assert told["calibration"]["threshold"] is None
    json.dumps(told, allow_nan=False)


def test_a_ceiling_for_the_error():
    _, ([check], _) = judged(None, right=200, max_ece=0.05)
    assert not check.passed and check.bound > 0.3 and "max_ece" in check.message
    _, ([check], _) = judged(None, max_ece=0.05)
    assert check.passed


def test_answers_must_keep_the_precision():
    asked = {"target_precision": 0.9, "min_answered": 0.5}
    _, ([check], told) = judged(0.7, **asked)
    assert check.passed and check.interval is not None and check.bound == check.interval[0]
    assert told["calibration"]["answered"] == 0.8
    assert told["calibration"]["precision"] == 0.95
    # Too often wrong, too seldom answered, and never.
    _, ([check], _) = judged(0.7, right=365, **asked)
    assert not check.passed and check.value == 365 / 400
    _, ([check], _) = judged(0.7, target_precision=0.9, min_answered=0.9)
    assert not check.passed and "at least 90.0%" in check.message
    _, ([check], told) = judged(0.999, **asked)
    assert not check.passed and told["calibration"]["precision"] is None


def test_a_model_without_the_threshold_that_was_asked_for_is_blocked():
    _, ([check], _) = judged(None, target_precision=0.9)
    assert not check.passed and "no threshold" in check.message


def test_unknown_on_the_wrong_side_of_the_threshold():
    made, _ = judged(0.7)
    assert made.answered is not None
    assert made.said.count(features.UNKNOWN) == 100 and made.predicted.count("a") == 500
    turned = replace(made, answered=~made.answered)
    [check], _ = reliability.judge(turned, Calibration(target_precision=0.9))
    assert not check.passed and "wrong side" in check.message


def test_the_section():
    assert not Calibration().on and Calibration().carved == 0
    assert Calibration(method="temperature").carved == 0.1
    assert Calibration(target_precision=0.9, share=0.2).carved == 0.2
    # The gates' own keys re-run no training.
    one, other = Calibration(method="temperature"), Calibration(method="temperature", max_ece=0.1)
    assert one.fitting() == other.fitting()
    with pytest.raises(ConfigError, match="target_precision too"):
        validated({"calibration": {"min_answered": 0.3}})
    with pytest.raises(ConfigError, match=r"calibration\.share"):
        validated({"calibration": {"share": 0.9}})
    with pytest.raises(ConfigError, match="latency_requests"):
        validated({"serving": {"max_latency_ratio": 1.5}})


@pytest.mark.parametrize("given", [set(), {"train", "test"}, {"train", "eval", "test"}])
def test_calib_is_carved_from_train_and_nothing_else_moves(given):
    plain = Rule((0.7, 0.1, 0.2), frozenset(given))
    carved = replace(plain, calib=0.25)
    keys = [b"%d" % number for number in range(4000)]
    names = [sorted(given)[number % len(given)] if given else None for number in range(4000)]
    before = [plain.split_of(name, key) for name, key in zip(names, keys, strict=True)]
    after = [carved.split_of(name, key) for name, key in zip(names, keys, strict=True)]
    moved = [(one, other) for one, other in zip(before, after, strict=True) if one != other]
    assert set(moved) == {("train", "calib")}
    assert len(moved) / before.count("train") == pytest.approx(0.25, abs=0.03)
    assert (plain.splits, carved.splits) == (features.SPLITS, features.SPLITS_WITH_CALIB)
    assert "25 % of train are calib" in carved.describe()


def test_a_group_is_not_torn_apart():
    rule = Rule((0.7, 0.1, 0.2), calib=0.5)
    found = {name: {rule.split_of(None, group_key(name)) for _ in range(3)} for name in "abcdefgh"}
    assert all(len(splits) == 1 for splits in found.values())


def test_ingest_writes_the_split(tmp_path):
    from tests import ingested, made

    root = made.class_folders(tmp_path / "data", {"blue": 40, "red": 40})
    with_calib = ingested.ingest(root, tmp_path / "with", calib=0.3)
    without = ingested.ingest(root, tmp_path / "without")
    assert set(with_calib.summary["examples"]) == set(features.SPLITS_WITH_CALIB)
    assert with_calib.summary["examples"]["calib"] == len(with_calib.records("calib")) > 5
    assert set(without.summary["examples"]) == set(features.SPLITS)
    assert not (tmp_path / "without" / "examples" / "Split-calib").exists()
    for split in ("eval", "test"):
        assert [one.name for one in with_calib.shards(split)]
        assert [path.read_bytes() for path in with_calib.shards(split)] == [
            path.read_bytes() for path in without.shards(split)
        ]
    assert Counter(with_calib.split_of().values()) == Counter(with_calib.summary["examples"])


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> tuple[train.Job, Path]:
    """A model that was trained, calibrated and exported, and the examples' folder."""
    root = tmp_path_factory.mktemp("calibrated")
    shared = jobs.data(root)
    calib = graphs.write_split(
        root, "calib", dict.fromkeys(graphs.CLASSES, 12), size=jobs.SIZE, first=200
    )
    graphs.write_split(root, "test", dict.fromkeys(graphs.CLASSES, 5), size=jobs.SIZE, first=300)
    job = jobs.make(shared, root, "job", epochs=1)
    options = Calibration(method="temperature", target_precision=0.8, confidence=0.6)
    job = job.model_copy(update={"calibration": options, "calib_files": (calib,)})
    train_child.run(job)
    return job, root


def test_training_bakes_in_what_it_found(calibrated):
    job, root = calibrated
    facts = model_json.read(job.model_dir)
    network = export.load_weights(job.model_dir)
    assert facts["temperature"] is not None and facts["temperature"] != 1
    # Another temperature is another model, with the same weights.
    assert facts["fingerprint"] != export.weights_fingerprint(network)
    served = predictions.Export(job.model_dir)
    images = [graphs.encoded(name, 400 + n, jobs.SIZE) for name in graphs.CLASSES for n in range(3)]
    answer = served.serve(images)
    records = [
        graphs.example(name, 400 + n, jobs.SIZE) for name in graphs.CLASSES for n in range(3)
    ]
    from pipeline.records import Input

    source = Input(job.transform_graph, jobs.SIZE, jobs.CHANNELS)
    plain = network(source.transform(np.array(records, object))[0]).numpy()
    wanted = calibration.tempered(plain, facts["temperature"])
    np.testing.assert_allclose(answer.probabilities, wanted, atol=1e-5)
    assert not np.allclose(answer.probabilities, plain, atol=1e-3)
    assert (root / "Split-calib").is_dir()


def test_predictions_tell_what_was_answered(calibrated, tmp_path):
    job, root = calibrated
    served = predictions.Export(job.model_dir)
    batches = predictions.answer_split(served, str(root), features.TEST)
    predictions.write(tmp_path, batches, served)
    found = predictions.read(tmp_path)
    assert found is not None
    facts = model_json.read(job.model_dir)
    assert (found.temperature, found.threshold) == (facts["temperature"], facts["threshold"])
    assert features.UNKNOWN not in found.predicted
    if found.threshold is not None:
        assert found.answered is not None
        sure = found.probabilities.max(axis=1)
        np.testing.assert_array_equal(found.answered, sure >= found.threshold)


def test_what_can_not_be_calibrated_is_refused_before_training(calibrated):
    from pipeline.trainer import training

    job, _ = calibrated
    strict = job.model_copy(update={"calibration": Calibration(target_precision=0.99)})
    with pytest.raises(ConfigError, match=r"target_precision=0\.99 can't be shown on the 48"):
        training.prepare(strict)


def test_the_child_is_told_where_calib_lies(calibrated):
    job, root = calibrated
    told = jobs.fn_args(job)
    told.custom_config["calibration"] = job.calibration.fitting()
    made = train._job(told)
    assert made.calib_files == (str(root / "Split-calib" / "*"),)
    assert made.calibration == job.calibration
    del told.custom_config["calibration"]
    assert train._job(told).calib_files == ()
