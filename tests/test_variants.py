"""Variants without TensorFlow: their budgets, their verdicts, their pixels, and publishing them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import config
from pipeline.config import Variants
from pipeline.errors import ConfigError, SafelightError
from pipeline.variants import judge, make, publish
from pipeline.variants.fine_tuning import of_model

CLASSES = 4
FOUND = {"file": "x/model.tflite", "bytes": 1000, "size_ratio": 0.4, "p50_ms": 0.5, "ratio": 0.7}


def answers(said: np.ndarray) -> np.ndarray:
    """Probabilities of 0.7 for these classes."""
    rows = np.full((len(said), CLASSES), 0.1, np.float32)
    rows[np.arange(len(said)), said] = 0.7
    return rows


def judged(said: np.ndarray, before: np.ndarray, truth: np.ndarray, **found: float) -> dict:
    held_to = judge.limits(Variants(), "tflite-int8", 0.95)
    return judge.judge({**FOUND, **found}, answers(said), before, truth, held_to)


def failures(entry: dict) -> list[str]:
    return [check["name"] for check in entry["checks"] if not check["passed"]]


@pytest.fixture
def truth() -> np.ndarray:
    return np.random.default_rng(3).integers(0, CLASSES, 2000)


def test_one_name_may_stand_alone():
    effective = config.load(None, ["variants.names=tflite-int8"])
    assert effective.config.variants.names == ("tflite-int8",)
    assert config.load().config.variants.names == ()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("variants.names=tflite-int4", "tflite-int8"),
        ("variants.names=['pruned', 'pruned']", "2 times"),
        ("variants.sparsity=1", "less than 1"),
        ("variants.budgets={int8 = {max_drop = 0.1}}", "tflite-int8"),
        ("variants.budgets={pruned = {drop = 0.1}}", "max_drop"),
    ],
)
def test_what_there_is_not_is_refused(override: str, words: str):
    with pytest.raises(ConfigError, match="variants") as refused:
        config.load(None, [override])
    assert words in str(refused.value)


def test_a_budget_of_its_own():
    options = Variants(max_drop=0.02, budgets={"pruned": {"max_drop": 0.05}})
    assert judge.limits(options, "pruned", 0.95).max_drop == 0.05
    assert judge.limits(options, "pruned", 0.95).max_size_ratio == options.max_size_ratio
    assert judge.limits(options, "tflite-int8", 0.95).max_drop == 0.02


def test_the_same_answers_are_blessed(truth):
    entry = judged(truth, truth, truth)
    assert entry["blessed"] and entry["accuracy"] == 1 and entry["drop"] == 0
    assert entry["lower"] <= 0 <= entry["upper"] < 0.01
    assert [check["name"] for check in entry["checks"]] == ["answers", "drop", "size", "latency"]
    json.dumps(entry)


def test_a_quantization_at_chance_is_blocked(truth):
    entry = judged(np.zeros_like(truth), truth, truth)
    assert failures(entry) == ["drop"]
    assert entry["lower"] > 0.5
    [check] = [one for one in entry["checks"] if one["name"] == "drop"]
    assert "points fewer than the SavedModel" in check["message"]
    assert tuple(check["interval"]) == (entry["lower"], entry["upper"])


def test_a_loss_within_the_margin_passes_and_a_gain_too(truth):
    worse = truth.copy()
    worse[:10] = (worse[:10] + 1) % CLASSES  # half a point
    assert judged(worse, truth, truth)["blessed"]
    gained = judged(truth, worse, truth)
    assert gained["blessed"] and gained["drop"] == pytest.approx(-0.005)


def test_few_images_can_not_tell_and_the_estimate_decides():
    truth = np.arange(40) % CLASSES
    worse = truth.copy()
    worse[0] = (worse[0] + 1) % CLASSES  # 2.5 points
    entry = judged(worse, truth, truth)
    assert failures(entry) == ["drop"]
    assert "too few" in entry["checks"][1]["message"]
    same = judged(truth, truth, truth)
    assert same["blessed"] and "too few" in same["checks"][1]["message"]


def test_too_large_or_too_slow_is_blocked(truth):
    assert failures(judged(truth, truth, truth, size_ratio=1.2)) == ["size"]
    assert failures(judged(truth, truth, truth, ratio=2.5)) == ["latency"]


def test_answers_that_are_no_probabilities(truth):
    broken = answers(truth)
    broken[3] = np.nan
    held_to = judge.limits(Variants(), "pruned", 0.95)
    entry = judge.judge(FOUND, broken, truth, truth, held_to)
    assert failures(entry) == ["answers"]


def test_many_classes_of_few_levels_may_add_up_to_less():
    # 200 classes in steps of 1/256: what is below half a step is 0, and missing from the sum.
    rng = np.random.default_rng(4)
    scores = rng.normal(0, 1.6, (400, 200))
    soft = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    said, levels = soft.argmax(axis=1), (np.round(soft * 256) / 256).astype(np.float32)
    held_to = judge.limits(Variants(), "tflite-int8", 0.95)
    assert "answers" in failures(judge.judge(FOUND, levels, said, said, held_to))
    entry = judge.judge({**FOUND, "step": 1 / 256}, levels, said, said, held_to)
    assert "answers" not in failures(entry)
    entry = judge.judge({**FOUND, "step": 1 / 256}, levels * 3, said, said, held_to)
    assert "answers" in failures(entry)


def test_one_that_could_not_be_made():
    entry = judge.failed("pruned could not be made: the disk is full.")
    assert not entry["blessed"] and entry["file"] is None
    assert entry["checks"][0]["message"].endswith("the disk is full.")
    assert set(FOUND) | {"accuracy", "drop", "lower", "upper"} < set(entry)


def test_the_same_images_are_picked_every_time():
    ids = [str(number).encode() for number in range(100)]
    rows = make.pick(ids, 10)
    assert len(set(rows)) == 10 and rows == sorted(rows) == make.pick(ids, 10)
    assert make.pick(ids, 100) == list(range(100))


def test_fine_tuning_is_short_and_slow():
    given = config.Train(
        backbone="ResNet50",
        phases=({"epochs": 2, "unfreeze": "none"}, {"epochs": 3}),
        strategy="mirrored",
        ema=0.9,
        learning_rate=0.01,
    )
    section = of_model(given, {"backbone": "ResNet50", "preset": None}, 2)
    assert (section.epochs, section.phases, section.ema) == (2, (), 0.0)
    assert section.learning_rate == pytest.approx(0.001)
    assert (section.strategy, section.devices) == ("auto", 1)
    config.Train.model_validate(section.model_dump())


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A variants artifact: one blessed, one not."""
    folder = tmp_path / "made"
    (folder / "tflite-int8").mkdir(parents=True)
    (folder / "tflite-int8" / "model.tflite").write_bytes(b"model")
    entries = {
        "tflite-int8": {**FOUND, "accuracy": 0.9, "blessed": True},
        "pruned": {**judge.failed("no."), "blessed": False},
    }
    (folder / "variants.json").write_text(json.dumps({"variants": entries}))
    return folder


def test_what_is_blessed_is_published_once(made, tmp_path):
    exports = tmp_path / "exports"
    found = publish.publish(made, exports, 3, "abc", "r1")
    assert found == {"tflite-int8": str(exports / "tflite-int8" / "3")}
    folder = Path(found["tflite-int8"])
    assert (folder / "model.tflite").read_bytes() == b"model"
    told = json.loads((folder / "published.json").read_text())
    assert (told["version"], told["model"], told["run_id"]) == (3, "abc", "r1")
    assert sorted(path.name for path in exports.iterdir()) == ["tflite-int8"]
    # Again, as after a run that was killed before it was recorded.
    assert publish.publish(made, exports, 3, "abc", "r2") == found
    assert json.loads((folder / "published.json").read_text())["run_id"] == "r1"


def test_half_a_copy_of_a_killed_run_is_replaced(made, tmp_path):
    half = tmp_path / "exports" / "tflite-int8" / ".3.incoming"
    half.mkdir(parents=True)
    (half / "model.tflite").write_bytes(b"mo")
    publish.publish(made, tmp_path / "exports", 3, "abc", "r1")
    assert not half.exists()
    assert (tmp_path / "exports" / "tflite-int8" / "3" / "model.tflite").read_bytes() == b"model"


def test_another_models_variant_is_not_taken_for_ours(made, tmp_path):
    publish.publish(made, tmp_path / "exports", 3, "abc", "r1")
    with pytest.raises(SafelightError, match="holds a variant of the model abc"):
        publish.publish(made, tmp_path / "exports", 3, "other", "r2")


def test_what_has_a_number_does_not_change(made, tmp_path, event_log):
    publish.publish(made, tmp_path / "exports", 3, "abc", "r1")
    (made / "tflite-int8" / "model.tflite").write_bytes(b"smaller")
    content = json.loads((made / "variants.json").read_text())
    content["variants"]["tflite-int8"]["bytes"] = 7
    (made / "variants.json").write_text(json.dumps(content))
    publish.publish(made, tmp_path / "exports", 3, "abc", "r2")
    assert (tmp_path / "exports" / "tflite-int8" / "3" / "model.tflite").read_bytes() == b"model"
    assert "stays as it was published" in event_log.read_text()


def test_what_can_not_be_copied_is_said(made, tmp_path):
    root = tmp_path / "exports"
    root.mkdir()
    (root / "tflite-int8").write_text("a file where a folder has to be")
    with pytest.raises(SafelightError, match="could not be published"):
        publish.publish(made, root, 3, "abc", "r1")


def test_the_documentation_names_every_key():
    text = (Path(__file__).parents[1] / "docs" / "variants.md").read_text()
    missing = [key for key in Variants.model_fields if key not in text and key != "budgets"]
    assert not missing and "variants.budgets" in text
