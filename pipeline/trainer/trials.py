"""The memory of a search: keras-tuner's oracle, the trials that ended, and one file for both.

    <workdir>/checkpoints/search-<fingerprint>/state.json
                                               trial-<id>/state.npz    of hyperband

keras-tuner writes files of its own beside, one after the other; a process killed in between leaves
them torn. So what counts is `state.json`, written beside and renamed after each trial. The
fingerprint leaves the budget out: with more trials a search goes on where it ended.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import keras_tuner
from keras_tuner.engine.trial import Trial as Tried
from keras_tuner.engine.trial import TrialStatus

from pipeline import events, runs, search
from pipeline.config import Tune
from pipeline.search import Range, Row

_FILE: Final = "state.json"
_TUNER: Final = "search"
_SPARE: Final = 1e-6
# Beside a bracket of Hyperband: the trials that it began with, where they are fewer than it wants.
_BEGUN: Final = "begun"


@dataclass(frozen=True)
class Trial:
    """What to try next.

    Attributes:
      id: keras-tuner's.
      number: counted from 1.
      values: by key of train.
      epochs: how many epochs it comes to.
      continues: the id of the trial that it goes on from; "" for a new one.
    """

    id: str
    number: int
    values: search.Values
    epochs: int
    continues: str = ""


def checkpoint(trial: str) -> str:
    """Returns the name of a trial's checkpoint, by the trial's id, within the search's folder."""
    return f"trial-{trial}"


class Trials:
    """The trials of one search: those that ended, and the next one."""

    def __init__(self, tune: Tune, seed: int, folder: Path) -> None:
        """Starts a search, or goes on with the one whose state is in `folder`."""
        self.folder = folder
        self.rows: list[Row] = []
        self.resumed = 0
        self._interrupted: list[str] = []
        self._tune = tune
        folder.mkdir(parents=True, exist_ok=True)
        self._oracle = _oracle(tune, seed, folder)
        self._load(seed)

    def interrupted(self, trial: Trial) -> bool:
        """Whether this trial had begun and not ended when the process before this one did."""
        return trial.id in self._interrupted

    def known(self, trial: Trial) -> Row | None:
        """Returns the row of a new trial whose very values were tried before.

        The Gaussian process proposes the same point of a small space again and again.
        """
        if trial.continues or self._tune.algorithm != "bayesian":
            return None
        return next((row for row in self.rows if row.values == trial.values), None)

    def next(self) -> Trial | None:
        """Returns the next trial; None when the budget or the space is used up."""
        minutes = sum(row.seconds for row in self.rows) / 60
        if self._tune.minutes and minutes >= self._tune.minutes:
            return None
        tried = self._oracle.create_trial(_TUNER)
        if tried.status != TrialStatus.RUNNING:
            return None
        self._save()
        values = tried.hyperparameters.values
        return Trial(
            id=tried.trial_id,
            number=self._oracle.start_order.index(tried.trial_id) + 1,
            values=search.decoded(values),
            epochs=int(values.get("tuner/epochs", self._tune.epochs)),
            continues=str(values.get("tuner/trial_id", "")),
        )

    def completed(self, trial: Trial, score: float, epochs: int, seconds: float) -> None:
        """Records a trial that came to a score."""
        self._oracle.update_trial(trial.id, {self._tune.objective: score})
        self._end(trial, TrialStatus.COMPLETED, None)
        self._add(
            Row(
                trial=trial.number,
                values=trial.values,
                state="completed",
                score=score,
                epochs=epochs,
                seconds=round(seconds, 2),
            )
        )

    def failed(self, trial: Trial, reason: str, seconds: float) -> None:
        """Records a trial that came to none."""
        self._end(trial, TrialStatus.FAILED, reason)
        self._add(
            Row(
                trial=trial.number,
                values=trial.values,
                state="failed",
                seconds=round(seconds, 2),
                reason=reason,
            )
        )

    @property
    def best(self) -> Row | None:
        """The row with the best score, the first of equals; None where every trial failed."""
        scored = [row for row in self.rows if row.score is not None]
        sign = 1 if self._tune.objective == "eval_accuracy" else -1
        return max(scored, key=lambda row: sign * (row.score or 0.0)) if scored else None

    def hyperparameters(self, row: Row) -> dict[str, Any]:
        """Returns keras-tuner's configuration of a trial, as TFX's Trainer is given it."""
        tried = self._oracle.get_trial(self._oracle.start_order[row.trial - 1])
        config: dict[str, Any] = tried.hyperparameters.get_config()
        return config

    def forget_checkpoint(self, trial: Trial) -> None:
        """Removes an ended trial's checkpoint, unless Hyperband may let the trial go on."""
        if self._tune.algorithm != "hyperband":
            shutil.rmtree(self.folder / checkpoint(trial.id), ignore_errors=True)

    def forget_checkpoints(self) -> None:
        """Removes what is of no use once the search has ended: all but the state."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    def forget(self) -> None:
        """Removes all there is, the state too: the next search begins anew."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, trial: Trial, status: str, reason: str | None) -> None:
        tried = self._oracle.get_trial(trial.id)
        tried.status, tried.message = status, reason
        self._oracle.end_trial(tried)

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        self._save()

    def _save(self) -> None:
        tried: Mapping[str, Tried] = self._oracle.trials
        state = {
            "oracle": self._oracle.get_state(),
            "trials": [one.get_state() for one in tried.values()],
            "rows": [row.to_dict() for row in self.rows],
        }
        runs.write_json(self.folder / _FILE, state)

    def _load(self, seed: int) -> None:
        path = self.folder / _FILE
        if not path.is_file():
            return
        try:
            self._restore(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            events.warn(f"The state of the search, {path}, is damaged ({error}): it starts anew.")
            self._oracle = _oracle(self._tune, seed, self.folder)
            self.rows = []
            return
        self.resumed = len(self.rows)

    def _restore(self, state: Mapping[str, Any]) -> None:
        tried: Sequence[Tried] = [Tried.from_state(one) for one in state["trials"]]
        self._oracle.trials = {one.trial_id: one for one in tried}
        self._oracle.set_state(state["oracle"])
        # What was under way is tried again: its values are in the oracle's books already.
        self._interrupted = [one.trial_id for one in self._oracle.ongoing_trials.values()]
        self._oracle._retry_queue = list(self._interrupted)
        self._oracle.ongoing_trials = {}
        self.rows = [Row(**row) for row in state["rows"]]


class _FailuresCount(keras_tuner.Oracle):
    """Takes a failed trial for one with the worst score so far.

    keras-tuner leaves it out: the Gaussian process would go to the same point again and again, and
    Hyperband would wait for its score before it lets others go on.
    """

    trials: dict[str, Tried]

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Returns keras-tuner's answer: a status, and the values of the next trial."""
        ended = self.trials
        scores = [one.score for one in ended.values() if one.status == TrialStatus.COMPLETED]
        if scores:
            worst = min(scores) if self.objective.direction == "max" else max(scores)
            self.trials = {name: _scored(one, worst) for name, one in ended.items()}
        try:
            found: dict[str, Any] = super().populate_space(trial_id)
        finally:
            self.trials = ended
        return found


def _scored(trial: Tried, score: float) -> Tried:
    """Returns a trial as it is, or a failed one as if it had come to this score."""
    if trial.status != TrialStatus.FAILED:
        return trial
    instead = Tried(trial.hyperparameters, trial.trial_id, TrialStatus.COMPLETED)
    instead.score = score
    return instead


class _Bayesian(_FailuresCount, keras_tuner.oracles.BayesianOptimizationOracle):
    pass


class _Hyperband(_FailuresCount, keras_tuner.oracles.HyperbandOracle):
    """Lets the best of a small space go on, too.

    A bracket begins with so many trials; where the space has fewer values left, keras-tuner ends
    the search, and nothing has been trained for more than the first epochs. Here the bracket goes
    on with those that it has.
    """

    def _random_trial(self, trial_id: str, bracket: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = super()._random_trial(trial_id, bracket)
        begun = len(bracket["rounds"][0])
        if found["status"] != TrialStatus.STOPPED or not begun:
            return found
        bracket[_BEGUN] = begun
        return self.populate_space(trial_id)

    def _get_size(self, bracket_num: int, round_num: int) -> int:
        size: int = super()._get_size(bracket_num, round_num)
        for bracket in self._brackets:
            if bracket["bracket_num"] == bracket_num and _BEGUN in bracket:
                return min(size, math.ceil(bracket[_BEGUN] / self.factor**round_num))
        return size


def _oracle(tune: Tune, seed: int, folder: Path) -> keras_tuner.Oracle:
    common = {
        "objective": keras_tuner.Objective(
            tune.objective, "max" if tune.objective == "eval_accuracy" else "min"
        ),
        "hyperparameters": _space(tune),
        # Zero means a random one to keras-tuner.
        "seed": seed + 1,
        "allow_new_entries": False,
        # A trial that fails says so; it doesn't end the others.
        "max_consecutive_failed_trials": tune.trials + 1,
    }
    if tune.algorithm == "hyperband":
        oracle = _Hyperband(max_epochs=tune.epochs, **common)
        oracle.max_trials = tune.trials
    elif tune.algorithm == "bayesian":
        oracle = _Bayesian(max_trials=tune.trials, **common)
    else:
        oracle = keras_tuner.oracles.RandomSearchOracle(max_trials=tune.trials, **common)
    oracle.verbose = 0
    # Where its own files go; its Tuner would say so by this method too.
    oracle._set_project_dir(str(folder), "keras-tuner")
    return oracle


def _space(tune: Tune) -> keras_tuner.HyperParameters:
    space = keras_tuner.HyperParameters()
    for key, what in search.parse(tune.space).items():
        if not isinstance(what, Range):
            space.Choice(key, list(what.encoded), ordered=what.ordered)
            continue
        add = space.Int if what.whole else space.Float
        # 0.5 // 0.1 is 4: of fractions, the last step would be left out.
        spare = what.step * _SPARE if what.step and not (what.whole or what.log) else 0
        add(
            key,
            what.minimum,
            what.maximum + spare,
            step=what.step,
            sampling="log" if what.log else "linear",
        )
    return space
