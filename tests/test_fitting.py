"""Fitting: phases, freezing, averages, plateau, several heads, and resuming in any phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import events, models
from pipeline.config import Train
from pipeline.errors import ConfigError
from pipeline.features import EVAL, TRAIN
from pipeline.heads import Head
from pipeline.models import freezing, pretrained
from pipeline.trainer import data, devices, fitting
from pipeline.trainer.checkpoints import Checkpoints, State
from pipeline.trainer.fitting import Batches

SIDE, IMAGES, BATCH = 8, 24, 8

LABEL = Head(name="label", kind="class", classes=("dark", "light"))
GRADE = Head(name="grade", kind="class", classes=("a", "b", "c"), loss="focal", weight=0.5)
SEVERITY = Head(name="severity", kind="regression", loss="huber", weight=2.0)

OWN = """
import keras
from keras import layers

def network(pixels):
    inside = keras.Input(pixels.shape[1:])
    x = layers.Conv2D(4, 3, name="first")(inside)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2D(4, 3, activation="relu", name="second")(x)
    return keras.Model(inside, layers.Dropout(0.3)(x))
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Train]:
    """Makes a section train of a small network with a backbone to freeze."""
    name = f"tiny_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)

    def make(**changes: Any) -> Train:
        given = {"model": f"{name}:network", "batch_size": BATCH, "learning_rate": 0.01}
        return Train.model_validate({**given, **changes})

    return make


def build(train: Train, heads: Sequence[Head] = (LABEL,)) -> keras.Model:
    keras.utils.set_random_seed(train.seed)
    return models.build(train, image_size=SIDE, channels=1, heads=heads)


def batches(heads: Sequence[Head] = (LABEL,)) -> Callable[[int], Batches]:
    """Returns learnable batches, in an order that depends on the epoch alone."""
    rng = np.random.default_rng(1)
    pixels = rng.random((IMAGES, SIDE, SIDE, 1), np.float32)
    bright = rng.random(IMAGES).astype(np.float32)
    pixels *= bright[:, None, None, None]
    every: dict[str, Any] = {
        "label": (bright > 0.5).astype(np.int64),
        "grade": (bright * 2.99).astype(np.int64),
        "severity": bright,
    }
    one = len(heads) == 1
    targets = every["label"] if one else {head.name: every[head.name] for head in heads}
    held_out = tf.data.Dataset.from_tensor_slices((pixels, targets)).batch(BATCH)

    def begin(first: int) -> Batches:
        order = np.concatenate(
            [np.random.default_rng(epoch).permutation(IMAGES) for epoch in range(first, 20)]
        )
        rows = tf.data.Dataset.from_tensor_slices(order)
        train = rows.map(
            lambda row: (
                tf.gather(pixels, row),
                tf.nest.map_structure(lambda values: tf.gather(values, row), targets),
            )
        )
        return Batches(train.batch(BATCH), held_out, IMAGES, BATCH)

    return begin


PHASES: list[dict[str, Any]] = [
    {"epochs": 2, "unfreeze": "none", "learning_rate": 0.02},
    {"epochs": 3, "unfreeze": "second", "schedule": "plateau", "patience": 0},
]


def test_each_phase_trains_what_it_says(settings: Callable[..., Train], event_log: Path) -> None:
    train = settings(phases=PHASES, epochs=5)
    model = build(train)
    before = {weight.path: np.array(weight) for weight in model.weights}
    state = fitting.fit(model, batches(), train, (LABEL,), state=State())

    history = fitting.history(state, None, IMAGES)
    head, fine = history["phases"]
    assert (head["name"], head["first_epoch"], head["epochs"]) == ("head", 1, 2)
    assert (fine["name"], fine["first_epoch"], fine["epochs"]) == ("fine-tuning", 3, 3)
    assert head["trainable_parameters"] == 4 * 2 + 2
    assert fine["trainable_parameters"] == head["trainable_parameters"] + 4 * 4 * 9 + 4
    rates = [row["learning_rate"] for row in history["epochs"]]
    assert rates[:3] == pytest.approx([0.02, 0.02, 0.01])
    moved = {
        weight.path.split("/")[0]
        for weight in model.weights
        if not np.array_equal(before[weight.path], weight)
    }
    assert not moved & {"first"}
    assert {"second", "probabilities"} & moved
    notes = [event["text"] for _, event in events.read(event_log) if event["kind"] == "note"]
    assert "Phase 1 of 2, head, begins: up to 2 epochs at learning rate 0.02" in notes[0]
    assert "Phase 2 of 2, fine-tuning, begins" in notes[1]


class Crash(Exception):
    """Stands for whatever ends a process between two epochs."""


class Crashing(Checkpoints):
    """Ends training once an epoch's checkpoint is written."""

    def __init__(self, root: Path, behind: int) -> None:
        super().__init__(root, "f")
        self._behind = behind

    def save(self, state: State) -> None:
        super().save(state)
        if len(state.epochs) == self._behind:
            raise Crash


@pytest.mark.parametrize(
    "behind",
    [2, 4, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)],
)
def test_killed_in_any_phase_it_ends_with_the_same_weights(
    settings: Callable[..., Train], tmp_path: Path, behind: int
) -> None:
    train = settings(
        phases=PHASES,
        epochs=5,
        ema=0.8,
        weight_decay=0.01,
        accumulate=2,
        plateau_epochs=1,
        optimizer="adamw",
    )
    whole = build(train)
    expected = fitting.fit(whole, batches(), train, (LABEL,), state=State())
    with pytest.raises(Crash):
        fitting.fit(
            build(train),
            batches(),
            train,
            (LABEL,),
            state=State(),
            checkpoints=Crashing(tmp_path, behind),
        )
    kept = Checkpoints(tmp_path, "f")
    state = kept.load()
    assert state is not None
    assert len(state.epochs) == behind
    resumed = build(train)
    got = fitting.fit(resumed, batches(), train, (LABEL,), state=state, checkpoints=kept)
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert got.phases == expected.phases
    losses = [[epoch.eval_loss for epoch in state.epochs] for state in (got, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    rates = [[epoch.learning_rate for epoch in state.epochs] for state in (got, expected)]
    assert rates[0] == rates[1]


def test_averaged_weights_are_evaluated_and_kept(settings: Callable[..., Train]) -> None:
    train = settings(epochs=2, ema=0.9, patience=0)
    model = build(train)
    state = fitting.fit(model, batches(), train, (LABEL,), state=State())
    best = state.epochs[state.best_epoch - 1]
    again = model.evaluate(batches()(0).held_out, return_dict=True, verbose=0)
    assert again["loss"] == pytest.approx(best.eval_loss, rel=1e-5)
    apart = [
        np.abs(trained - averaged).max()
        for trained, averaged in zip(state.weights, state.best_weights, strict=True)
    ]
    assert max(apart) > 1e-4  # training went on from the weights that aren't averaged


def test_averages_of_no_step_yet_are_not_evaluated() -> None:
    """float16 leaves a step out whose gradients overflow: here, all of an epoch's."""
    heads = (LABEL, replace(SEVERITY, loss="mse", weight=1e7))
    train = Train(preset="mnist-cnn-small", epochs=1, batch_size=24, precision="float16", ema=0.9)
    keras.utils.set_random_seed(train.seed)
    with devices.precision(train):
        model = models.build(train, image_size=12, channels=1, heads=heads)
    before = model.get_weights()
    pixels, targets = np.ones((24, 12, 12, 1), np.float32), np.arange(24) % 2
    both = tf.data.Dataset.from_tensor_slices(
        (pixels, {"label": targets, "severity": targets.astype(np.float32)})
    ).batch(24)
    fitting.fit(model, lambda done: Batches(both, both, 24, 24), train, heads, state=State())
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


def test_several_heads_have_their_own_losses_weights_and_metrics(
    settings: Callable[..., Train], tmp_path: Path
) -> None:
    heads = (LABEL, GRADE, SEVERITY)
    train = settings(epochs=2)
    model = build(train, heads)
    state = fitting.fit(model, batches(heads), train, heads, state=State(), run_dir=tmp_path)
    for row in fitting.history(state, None, IMAGES)["epochs"]:
        figures = row["heads"]
        assert set(figures["grade"]) == {"loss", "accuracy", "eval_loss", "eval_accuracy"}
        assert set(figures["severity"]) == {"loss", "mae", "eval_loss", "eval_mae"}
        assert row["eval_accuracy"] == figures["label"]["eval_accuracy"]
        total = (
            figures["label"]["eval_loss"]
            + 0.5 * figures["grade"]["eval_loss"]
            + 2.0 * figures["severity"]["eval_loss"]
        )
        assert row["eval_loss"] == pytest.approx(total, rel=1e-4)
    pixels, truth = next(iter(batches(heads)(0).held_out.unbatch().batch(IMAGES)))
    answers = model(pixels)
    off = np.abs(np.asarray(answers["severity"]) - truth["severity"].numpy()).mean()
    best = state.epochs[state.best_epoch - 1]
    assert off == pytest.approx(best.heads["severity"]["eval_mae"], rel=1e-4)


def test_what_is_unfrozen(settings: Callable[..., Train]) -> None:
    model = build(settings(epochs=1))
    backbone = pretrained.find(model)
    assert backbone is not None

    def trained(what: str) -> list[str]:
        freezing.unfreeze(model, what)
        return sorted({v.path.split("/")[-2] for v in model.trainable_variables})

    assert trained("all") == ["first", "norm", "probabilities", "second"]
    assert trained("none") == ["probabilities"]
    assert trained("norm") == ["norm", "probabilities", "second"]
    assert trained("34%") == ["norm", "probabilities", "second"]  # two of three, rounded up
    assert trained("10%") == ["probabilities", "second"]
    with pytest.raises(ConfigError, match="'secnd'.*Did you mean 'second'"):
        freezing.unfreeze(model, "secnd")


def test_a_network_without_a_backbone_has_nothing_to_freeze() -> None:
    train = Train(preset="mnist-cnn-small", epochs=1)
    model = models.build(train, image_size=12, channels=1, heads=(LABEL,))
    freezing.unfreeze(model, "all")
    with pytest.raises(ConfigError, match="unfreezes 'none', but this network has no backbone"):
        freezing.unfreeze(model, "none")


def test_class_weights_are_the_labels_alone(settings: Callable[..., Train]) -> None:
    """Of each head the loss has to be there, weighted where it is the label's."""
    rng = np.random.default_rng(2)
    rare = np.arange(IMAGES) < 6
    pixels = np.where(rare, 0.2, 0.8)[:, None, None, None] + np.zeros((SIDE, SIDE, 1))
    severity = rng.random(IMAGES).astype(np.float32)
    targets: dict[str, np.ndarray] = {"label": rare.astype(np.int64), "severity": severity}
    kept = data.Kept(pixels.astype(np.float32), targets)
    source = cast(
        data.Input,
        SimpleNamespace(heads=(LABEL, SEVERITY), shape=(SIDE, SIDE, 1), value_range=lambda: None),
    )
    records = data.Records((), IMAGES, "")
    loaded = data.Loaded(source, records, records, {TRAIN: kept, EVAL: kept})

    def losses(**changes: Any) -> dict[str, float]:
        train = settings(epochs=1, batch_size=IMAGES, learning_rate=1e-30, **changes)
        model = build(train, (LABEL, SEVERITY))
        fitting.compile_model(model, train, (LABEL, SEVERITY), 1)
        made = data.batches_of(loaded, train).train
        history = model.fit(made, steps_per_epoch=1, verbose=0).history
        return {name: values[0] for name, values in history.items()}

    plain, weighted = losses(), losses(class_weights={"dark": 0.5, "light": 4.0})
    assert weighted["severity_loss"] == pytest.approx(plain["severity_loss"], rel=1e-5)
    # All pictures of a class are alike, so that the mean loss tells that of either class.
    half = losses(class_weights={"dark": 0.5, "light": 1.0})
    double = losses(class_weights={"dark": 1.0, "light": 2.0})
    assert double["label_loss"] == pytest.approx(2 * half["label_loss"], rel=1e-5)
    assert plain["label_loss"] < double["label_loss"] < 2 * plain["label_loss"]


def test_a_training_without_an_update_is_refused(settings: Callable[..., Train]) -> None:
    train = settings(epochs=2, accumulate=7)
    with pytest.raises(ConfigError, match=r"train.accumulate=7.*there are: 6, by 2 epochs of 3"):
        fitting.fit(build(train), batches(), train, (LABEL,), state=State())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"phases": [{"epochs": 2}, {"epochs": 1}], "accumulate": 4},
            "accumulate=4.*than phase 2 of train.phases has: 3, by 1 epochs of 3.*more epochs",
        ),
        ({"phases": [{"epochs": 1}, {"epochs": 1, "unfreeze": "secnd"}]}, "mean 'second'"),
    ],
)
def test_a_later_phase_is_refused_before_the_first_is_trained(
    settings: Callable[..., Train], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    train, kept = settings(**changes), Checkpoints(tmp_path, "f")
    with pytest.raises(ConfigError, match=message):
        fitting.fit(build(train), batches(), train, (LABEL,), state=State(), checkpoints=kept)
    assert kept.load() is None  # no epoch was done for nothing
