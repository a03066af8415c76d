"""The phases of training: what follows from the configuration, and when a phase is over."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline import phases
from pipeline.config import Train
from pipeline.errors import ConfigError


def test_without_phases_there_is_one() -> None:
    [only] = phases.plan(Train(epochs=4, patience=2, schedule="cosine"))
    assert (only.name, only.epochs, only.unfreeze, only.patience) == ("training", 4, "all", 2)


def test_a_phase_takes_from_train_what_it_leaves_out() -> None:
    given: list[dict[str, Any]] = [
        {"epochs": 3, "unfreeze": "none"},
        {"epochs": 2, "unfreeze": "20%", "learning_rate": 1e-5, "patience": 1},
        {"epochs": 1, "schedule": "cosine"},
    ]
    plan = phases.plan(Train.model_validate({"phases": given, "learning_rate": 0.01}))
    assert [phase.name for phase in plan] == ["head", "fine-tuning", "fine-tuning 2"]
    assert [phase.learning_rate for phase in plan] == [0.01, 1e-5, 0.01]
    assert [phase.patience for phase in plan] == [5, 1, 5]
    assert [phase.schedule for phase in plan] == ["constant", "constant", "cosine"]


@pytest.mark.parametrize("unfreeze", ["0%", "120 %"])
def test_a_share_that_is_none_is_refused(unfreeze: str) -> None:
    train = Train.model_validate({"phases": [{"epochs": 1, "unfreeze": unfreeze}]})
    with pytest.raises(ConfigError, match=f"phase 1 unfreezes {unfreeze!r}"):
        phases.plan(train)


def test_a_warm_up_leaves_something() -> None:
    with pytest.raises(ConfigError, match="warmup_epochs 3 leaves nothing of train.epochs"):
        phases.plan(Train(epochs=3, warmup_epochs=3))


def test_patience_counts_from_the_best_epoch_of_the_phase() -> None:
    [phase] = phases.plan(Train(epochs=6, patience=2))
    assert not phases.over(phase, [])
    assert not phases.over(phase, [3.0, 2.0, 2.5])
    assert phases.over(phase, [3.0, 2.0, 2.5, 2.1])
    assert phases.stopped_early(phase, [3.0, 2.0, 2.5, 2.1])
    assert phases.over(phase, [6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    assert not phases.stopped_early(phase, [6.0, 5.0, 4.0, 3.0, 4.0, 4.0])
    [patient] = phases.plan(Train(epochs=6, patience=0))
    assert not phases.over(patient, [1.0, 2.0, 3.0, 4.0, 5.0])


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], 0),
        ([1.0, 0.9, 0.95], 0),
        ([1.0, 0.9, 0.95, 0.92], 1),
        ([1.0, 1.0, 1.0, 1.0, 1.0], 2),
        ([1.0, 1.1, 1.1, 0.9, 1.0], 1),
    ],
)
def test_the_plateau_schedule_drops_behind_epochs_without_a_better_loss(
    losses: list[float], expected: int
) -> None:
    assert phases.drops(losses, 2) == expected
