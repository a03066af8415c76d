"""The phases of training: what each trains, for how long, at which rate, and when it is over.

Plain Python: what a phase is follows from the configuration alone, and how far it has come from
the eval losses of its epochs. So a resumed run needs no state of its own for early stopping and
for the plateau schedule.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from pipeline.config import Train

ALL: Final = "all"
NONE: Final = "none"

_SHARE: Final = re.compile(r"^(\d+(?:\.\d+)?)\s*%$")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of training; `epochs` is the most it may take.

    `unfreeze` is `all`, `none`, a share such as `20%`, or the name of the backbone's first layer
    to train. The heads and what stands between them and the backbone are always trained.
    """

    name: str
    epochs: int
    learning_rate: float
    unfreeze: str
    patience: int
    schedule: str


def plan(train: Train) -> tuple[Phase, ...]:
    """Returns the phases of a completed section train: those of train.phases, or a single one.

    Raises:
      ConfigError: a phase can't be what it says.
    """
    if not train.phases:
        assert train.epochs is not None
        only = Phase(
            name="training",
            epochs=train.epochs,
            learning_rate=train.learning_rate,
            unfreeze=ALL,
            patience=train.patience,
            schedule=train.schedule,
        )
        return (_checked(only, 1, train),)
    found: list[Phase] = []
    for number, given in enumerate(train.phases, 1):
        unfreeze = given.get("unfreeze", ALL)
        kind = "head" if unfreeze == NONE else "fine-tuning"
        before = sum(phase.name.partition(" ")[0] == kind for phase in found)
        phase = Phase(
            name=f"{kind} {before + 1}" if before else kind,
            epochs=given["epochs"],
            learning_rate=given.get("learning_rate", train.learning_rate),
            unfreeze=unfreeze,
            patience=given.get("patience", train.patience),
            schedule=given.get("schedule", train.schedule),
        )
        found.append(_checked(phase, number, train))
    return tuple(found)


def share(unfreeze: str) -> float | None:
    """Returns 0.2 for `20%`; None for what is no share."""
    match = _SHARE.match(unfreeze)
    return float(match[1]) / 100 if match else None


def is_layer(unfreeze: str | None) -> bool:
    """Says whether this is the name of a layer: not `all`, `none`, a share, or nothing."""
    return unfreeze not in (None, ALL, NONE) and share(str(unfreeze)) is None


def unknown_layer(name: str, names: Sequence[str], of: str) -> ConfigError:
    """Returns the refusal of a layer that `of`, whose layers are `names`, doesn't have."""
    return ConfigError(
        f"train.phases unfreezes from {name!r}, but {of} has no layer of that name."
        f"{did_you_mean(name, names)} none, all and a share such as 20% are known too."
    )


def over(phase: Phase, losses: Sequence[float]) -> bool:
    """Says whether a phase is over behind epochs with these eval losses."""
    return len(losses) >= phase.epochs or stopped_early(phase, losses)


def stopped_early(phase: Phase, losses: Sequence[float]) -> bool:
    """Says whether patience ran out before the phase's last epoch."""
    if len(losses) >= phase.epochs or phase.patience == 0 or not losses:
        return False
    return len(losses) - 1 - losses.index(min(losses)) >= phase.patience


def drops(losses: Sequence[float], patience: int) -> int:
    """Returns how often the plateau schedule has lowered the rate behind these eval losses.

    It does so behind `patience` epochs without a better loss, and then waits as long again.
    """
    best, waited, count = float("inf"), 0, 0
    for loss in losses:
        if loss < best:
            best, waited = loss, 0
            continue
        waited += 1
        if waited >= patience:
            count, waited = count + 1, 0
    return count


def _checked(phase: Phase, number: int, train: Train) -> Phase:
    part = share(phase.unfreeze)
    if part is not None and not 0 < part <= 1:
        raise ConfigError(
            f"train.phases: phase {number} unfreezes {phase.unfreeze!r}; expected a share above 0% "
            "and up to 100%, or none, all, or a layer's name."
        )
    if train.warmup_epochs >= phase.epochs and train.warmup_epochs > 0:
        where = f"phase {number} of train.phases" if train.phases else "train.epochs"
        raise ConfigError(
            f"train.warmup_epochs {train.warmup_epochs:g} leaves nothing of {where}, which has "
            f"{phase.epochs} epochs. Lower the one, or raise the other."
        )
    return phase
