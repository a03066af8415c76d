"""The tuning process: trains one trial after the other on its devices, and ends.

    python -m pipeline.trainer.tune_child JOB.json

A trial is trained as Trainer would train it, from the same data, which stays where it was decoded
to. Its state after each epoch is kept, so that a search that is killed loses at most one epoch,
and Hyperband's survivors go on where their shorter trials ended.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline import events, fingerprint, hardware, phases, runs, search
from pipeline.errors import SafelightError
from pipeline.trainer import train_child
from pipeline.trainer.tune import TuneJob

if TYPE_CHECKING:
    from pipeline.trainer.checkpoints import State
    from pipeline.trainer.data import Records
    from pipeline.trainer.training import Setup
    from pipeline.trainer.trials import Trial, Trials

_STAGE: Final = "Tuner"
_REASONS: Final = 5
_KILLED: Final = (
    "its process was killed (SIGKILL), most often because memory ran out; lower train.batch_size, "
    "or leave large networks out of tune.space"
)


class SearchFailed(SafelightError):
    """A search in which no trial came to a score."""


def main() -> None:
    """Runs the job named on the command line; the exit code is 0, or that of its error."""
    train_child.serve(TuneJob, run)


def run(job: TuneJob) -> None:
    """Searches, or goes on searching, and writes the best values and all results."""
    from pipeline.trainer import data, training
    from pipeline.trainer.trials import Trials

    fitted_on = data.scan(job.train_files)
    identity = _identity(job, fitted_on.digest)
    folder = job.checkpoints / f"search-{identity}"
    trials = Trials(job.tune, job.train.seed, folder)
    if trials.resumed:
        events.note(f"The search goes on behind trial {trials.resumed}, the last that had ended.")
    if job.tune.images and job.tune.images < fitted_on.examples:
        sample = _sample(fitted_on, job.tune.images, job.train.seed, folder / "sample")
        job = job.model_copy(update={"train_files": (str(sample),)})
    setup = training.prepare(job)
    while (trial := trials.next()) is not None:
        _one(job, setup, trials, trial)
    _write(job, trials)
    trials.forget_checkpoints()


def _sample(records: Records, count: int, seed: int, folder: Path) -> Path:
    """Writes so many records of a split, drawn at random, and returns their file."""
    import numpy as np
    import tensorflow as tf

    drawn = np.random.default_rng(seed).choice(records.examples, count, replace=False)
    wanted = set(drawn.tolist())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "data_tfrecord"
    # One file after the other: the numbers must mean the same records each time.
    stored = tf.data.TFRecordDataset([str(file) for file in records.files])
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number, record in enumerate(stored.as_numpy_iterator()):
            if number in wanted:
                writer.write(record)
    return path


def _one(job: TuneJob, setup: Setup, trials: Trials, trial: Trial) -> None:
    """Trains one trial; whatever goes wrong with it is its result."""
    if job.lost and trials.interrupted(trial):
        trials.failed(trial, _KILLED, 0.0)
        return
    if known := trials.known(trial):
        if known.score is None:
            trials.failed(trial, known.reason, 0.0)
        else:
            trials.completed(trial, known.score, known.epochs, 0.0)
        return
    events.as_part_of(_STAGE, trial.number - 1, job.tune.trials, "trials")
    runs.write_json(job.running, {"trial": trial.number})
    started = time.monotonic()
    try:
        state = _train(job, setup, trials, trial)
    except Exception as error:  # noqa: BLE001 - a trial's failure is a result
        reason = str(train_child.explained(error, job))
        trials.failed(trial, reason, time.monotonic() - started)
        events.note(f"Trial {trial.number} failed ({search.shown(trial.values)}): {reason}")
    else:
        score = _score(job, state)
        trials.completed(trial, score, len(state.epochs), time.monotonic() - started)
        events.note(
            f"Trial {trial.number}: {search.shown(trial.values)}: {job.tune.objective} "
            f"{score:.4f} after {_epochs(len(state.epochs))}."
        )
    finally:
        job.running.unlink()
        trials.forget_checkpoint(trial)
        _forget_model()


def _train(job: TuneJob, setup: Setup, trials: Trials, trial: Trial) -> State:
    from pipeline.trainer import training
    from pipeline.trainer.checkpoints import Checkpoints, State
    from pipeline.trainer.fit_callbacks import phase_losses
    from pipeline.trainer.trials import checkpoint

    given = search.given(job.train, job.tune.space)
    train = search.of_trial(given, trial.values, trial.epochs, job.transform)
    # Trainer would refuse them, behind the whole search.
    hardware.check_keys(train, setup.devices.kind)
    checkpoints = Checkpoints(trials.folder, checkpoint(trial.id))
    before = Checkpoints(trials.folder, checkpoint(trial.continues))
    # It is gone where the search had ended, and goes on with a larger budget: then from the start.
    if trial.continues and checkpoints.load() is None and before.folder.is_dir():
        shutil.copytree(before.folder, checkpoints.folder, dirs_exist_ok=True)
    state = checkpoints.load() or State()
    plan = phases.plan(train)
    if len(state.phases) == len(plan) and phases.over(plan[-1], phase_losses(state)):
        return state
    return training.fit(
        setup,
        training.make_model(setup, train),
        train,
        # A trial that Hyperband lets go on had finished its epochs.
        state=replace(state, finished=False),
        run_dir=job.run_dir / "trials" / f"{trial.number:03d}",
        checkpoints=checkpoints,
        stage=_STAGE,
    )


def _score(job: TuneJob, state: State) -> float:
    """Returns the objective at the best of the epochs."""
    scores = [float(getattr(epoch, job.tune.objective)) for epoch in state.epochs]
    return max(scores) if job.tune.objective == "eval_accuracy" else min(scores)


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


def _forget_model() -> None:
    """Frees what a trial's network took: the next one may need all there is."""
    import keras

    keras.utils.clear_session()
    gc.collect()


def _write(job: TuneJob, trials: Trials) -> None:
    best = trials.best
    if best is None:
        # What they failed of may have been mended since: run again, they are tried again.
        trials.forget()
        raise SearchFailed(
            f"None of {len(trials.rows)} trials came to a score. Change tune.space, or what all "
            "trials have in common.",
            [
                f"trial {row.trial} ({search.shown(row.values)}): {row.reason}"
                for row in trials.rows[:_REASONS]
            ],
        )
    rows = search.with_best(trials.rows, best.trial)
    runs.write_json(job.run_dir / search.RESULTS_FILE, [row.to_dict() for row in rows])
    job.best.parent.mkdir(parents=True, exist_ok=True)
    told = trials.hyperparameters(best)
    if search.GIVEN in job.tune.space:
        told[search.GIVEN] = job.tune.space[search.GIVEN]
    job.best.write_text(json.dumps(told) + "\n")
    events.note(
        f"The best of {len(rows)} trials is trial {best.trial}: {search.shown(best.values)}, "
        f"{job.tune.objective} {best.score:.4f}."
    )


def _identity(job: TuneJob, fitted_on: str) -> str:
    """Returns the fingerprint of all that determines the search, its budget aside."""
    from pipeline.trainer import data

    budget = {"trials", "minutes"}
    return fingerprint.of_value(
        {
            "train": job.train.model_dump(mode="json"),
            "tune": job.tune.model_dump(mode="json", exclude=budget),
            "transform": job.transform.model_dump(mode="json"),
            "schema": fingerprint.of_value(job.schema_path.read_text(encoding="utf-8")),
            "examples": [fitted_on, data.scan(job.eval_files).digest],
            "code": job.code,
        }
    )


if __name__ == "__main__":
    main()
