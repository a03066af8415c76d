"""Training that can be resumed: all of its state at the end of an epoch, in one file.

    <workdir>/checkpoints/<fingerprint>/state.npz

The fingerprint covers all that determines training, so that a changed rate or one more image
starts anew. The file is written beside and renamed: a process killed at any moment leaves the
last whole one. NumPy's format, not Keras's: a checkpoint holds the best weights and the optimizer
too, and only the same program reads it again.

Random state isn't in it: each epoch's derives from (seed, epoch).
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline import events

Arrays = list[npt.NDArray[Any]]

_FILE: Final = "state.npz"
_GROUPS: Final = ("weights", "optimizer", "best_weights")


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to; `epoch` counts from 1 through all phases, times are in seconds.

    `heads` has the figures of each head by its name, where there are several: `loss`, `eval_loss`,
    and `accuracy` and `eval_accuracy`, or `mae` and `eval_mae`. `accuracy` is the label's.
    """

    epoch: int
    seconds: float
    fit_seconds: float
    loss: float
    accuracy: float
    eval_loss: float
    eval_accuracy: float
    learning_rate: float
    heads: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class PhaseRecord:
    """What a phase has come to: `first_epoch` counts from 1, `epochs` are those it has done."""

    name: str
    first_epoch: int
    epochs: int
    unfreeze: str
    learning_rate: float
    trainable_parameters: int


@dataclass(frozen=True)
class State:
    """Training at the end of an epoch.

    `best_epoch` counts from 1; `finished` means that nothing is left to train. The arrays are
    the model's weights, the optimizer's variables and the best epoch's weights, in Keras's order;
    with a moving average the best weights are averaged ones. The last of `phases` is the one that
    the last epoch belongs to.
    """

    epochs: tuple[Epoch, ...] = ()
    best_epoch: int = 0
    finished: bool = False
    stopped_early: bool = False
    weights: Arrays = field(default_factory=list)
    optimizer: Arrays = field(default_factory=list)
    best_weights: Arrays = field(default_factory=list)
    phases: tuple[PhaseRecord, ...] = ()


class Checkpoints:
    """The checkpoint of one fingerprint."""

    def __init__(self, root: Path, fingerprint: str) -> None:
        self.folder = root / fingerprint

    def save(self, state: State) -> None:
        """Replaces the checkpoint; after a crash there is the old one or the new one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {name: value for name, value in vars(state).items() if name not in _GROUPS}
        facts["epochs"] = [asdict(epoch) for epoch in state.epochs]
        facts["phases"] = [asdict(phase) for phase in state.phases]
        arrays = {
            f"{group}/{index}": array
            for group in _GROUPS
            for index, array in enumerate(getattr(state, group))
        }
        text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        partial = self.folder / f".{_FILE}.new"
        with open(partial, "wb") as file:
            np.savez(file, facts=text, **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / _FILE)

    def load(self) -> State | None:
        """Returns the last finished epoch's state; None without one, or with a damaged one."""
        path = self.folder / _FILE
        if not path.exists():
            return None
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            events.warn(f"The checkpoint {path} is damaged ({error}): training starts anew.")
            return None

    def clear(self) -> None:
        """Removes the checkpoint, once its model has been exported."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(path: Path) -> State:
    with np.load(path, allow_pickle=False) as stored:
        facts = json.loads(stored["facts"].tobytes())
        for group in _GROUPS:
            count = sum(name.startswith(f"{group}/") for name in stored.files)
            facts[group] = [stored[f"{group}/{index}"] for index in range(count)]
    facts["epochs"] = tuple(Epoch(**epoch) for epoch in facts["epochs"])
    facts["phases"] = tuple(PhaseRecord(**phase) for phase in facts["phases"])
    return State(**facts)
