"""The training process: sets its devices, trains, exports, and ends.

    python -m pipeline.trainer.train_child JOB.json

TensorFlow reads what it is told about devices once, when it starts: so nothing here imports it
before `hardware.set_environment`. Its standard output and error are the run's log.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline import events, fingerprint, hardware, lifetime, workers
from pipeline.trainer.checkpoints import Checkpoints, State
from pipeline.trainer.train import Job, TrainingFailed, write_failure

if TYPE_CHECKING:
    import keras

    from pipeline.errors import SafelightError
    from pipeline.trainer.training import Setup

_LOST = ("UnavailableError", "AbortedError", "CancelledError", "DeadlineExceededError")

AnyJob = TypeVar("AnyJob", bound=Job)


def main() -> None:
    """Runs the job named on the command line; the exit code is 0, or that of its error."""
    serve(Job, run)


def serve(kind: type[AnyJob], run: Callable[[AnyJob], None]) -> None:
    """Runs the job file named on the command line, and leaves an error for the parent.

    Args:
      kind: of the job in the file.
      run: does the work; TensorFlow may be imported in it.
    """
    job = kind.model_validate_json(Path(sys.argv[1]).read_text())
    # Left behind, it would hold the devices, and write checkpoints that the next run reads. 0
    # stands for no parent: a worker that an operator of Kubernetes started.
    if job.parent:
        lifetime.end_with_parent(job.parent)
    # Ctrl-C reaches every process of the terminal; the parent decides, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hardware.set_environment(job.train)
    try:
        events.configure(job.events if _tells(job) else Path(os.devnull))
        run(job)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent has to say it
        traceback.print_exc()
        known = explained(error, job)
        write_failure(job, known)
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: TensorFlow would wait for workers that are gone.
        os._exit(known.exit_code)


def _tells(job: Job) -> bool:
    """Whether this process tells people of its progress: of several workers the chief alone."""
    cluster = workers.from_environment() if job.train.strategy == "multi_worker" else None
    return cluster is None or cluster.worker == 0


def run(job: Job) -> None:
    """Trains, or goes on training, and exports the best epoch's model."""
    from pipeline.trainer import training

    setup = training.prepare(job)
    trained = _train(job, setup)
    found = [trained]
    if job.also_cold and trained.warm:
        anew = job.model_copy(
            update={"warm_start": None, "also_cold": False, "run_dir": job.run_dir / "cold"}
        )
        found.append(_train(anew, setup))
        trained = _better(*found)
    if not setup.devices.chief:
        return
    if trained is not found[0]:
        _exchange(job.run_dir)
    events.progress("Trainer", 1, 1, "model", "exporting")
    training.export_model(setup, trained.model, job.train, job.model_dir)
    (job.run_dir / "history.json").write_text(json.dumps(trained.history, indent=2) + "\n")
    for one in found:
        one.checkpoints.clear()


@dataclass(frozen=True)
class Trained:
    """A model with its best epoch's weights; `warm` says whether it began with a champion's."""

    model: keras.Model
    state: State
    history: dict[str, Any]
    checkpoints: Checkpoints
    warm: bool


def _train(job: Job, setup: Setup) -> Trained:
    """Trains one model, or goes on training it."""
    from pipeline.trainer import fitting, training, warm

    checkpoints = Checkpoints(job.checkpoints, _identity(job, setup))
    model = training.make_model(setup, job.train)
    state = checkpoints.load() or State()
    resumed_from = len(state.epochs) or None
    began_with = ""
    if job.warm_start is not None:
        began_with = warm.start(model, job.train, setup.heads, job.warm_start)
        if not resumed_from:
            events.note(began_with)
    if resumed_from:
        events.note(
            f"Training goes on behind epoch {resumed_from}, which an interrupted run had finished."
        )
    state = training.fit(
        setup, model, job.train, state=state, run_dir=job.run_dir, checkpoints=checkpoints
    )
    history = fitting.history(state, resumed_from, setup.fitted_on.examples)
    return Trained(model, state, history, checkpoints, began_with.startswith(warm.TAKEN))


def _better(warm: Trained, cold: Trained) -> Trained:
    """Returns the model with the lower loss on eval, which chose the best epoch of each, too."""
    ends = {"warm": warm, "cold": cold}
    reached = {name: one.state.epochs[one.state.best_epoch - 1] for name, one in ends.items()}
    chosen = "cold" if reached["cold"].eval_loss < reached["warm"].eval_loss else "warm"
    told = "; ".join(
        f"{name}: loss {epoch.eval_loss:.4f}, accuracy {epoch.eval_accuracy:.4f}"
        for name, epoch in reached.items()
    )
    events.note(f"Of both starts the {chosen} one goes on, by its loss on eval ({told}).")
    for one in ends.values():
        one.history["starts"] = {
            "chosen": chosen,
            **{name: asdict(epoch) for name, epoch in reached.items()},
        }
    return ends[chosen]


def _exchange(run_dir: Path) -> None:
    """Makes the logs in run_dir/cold those of the run, and keeps the others in run_dir/warm."""
    cold, warm = run_dir / "cold", run_dir / "warm"
    if not cold.is_dir():
        return
    warm.mkdir(exist_ok=True)
    for path in list(run_dir.iterdir()):
        if path.is_dir() and path not in (cold, warm):
            path.rename(warm / path.name)
    for path in list(cold.iterdir()):
        path.rename(run_dir / path.name)
    cold.rmdir()


def _identity(job: Job, setup: Setup) -> str:
    """Returns the fingerprint of all that determines training."""
    return fingerprint.of_value(
        {
            "train": job.train.model_dump(mode="json"),
            "transform": job.transform.model_dump(mode="json"),
            "heads": [asdict(head) for head in setup.heads],
            "examples": [setup.fitted_on.digest, setup.held_out.digest],
            "code": job.code,
            "warm_start": str(job.warm_start) if job.warm_start else None,
        }
    )


def explained(error: Exception, job: Job) -> SafelightError:
    """Returns the error of ours that this is, or says in a line what TensorFlow says in many."""
    import tensorflow as tf

    from pipeline.errors import SafelightError

    if isinstance(error, SafelightError):
        return error
    if isinstance(error, (MemoryError, tf.errors.ResourceExhaustedError)):
        return TrainingFailed(
            "Training ran out of memory. Lower train.batch_size or transform.image_size, or set "
            "train.cache=disk, and run again."
        )
    said = _line(str(error))
    if job.train.strategy == "multi_worker" and type(error).__name__ in _LOST:
        return TrainingFailed(
            "Another worker of train.strategy=multi_worker has ended or can't be reached: "
            f"{said}. Its log says why; run again, and training goes on behind the last "
            "finished epoch."
        )
    return TrainingFailed(
        f"Training failed: {type(error).__name__}: {said}. The run's log has the traceback."
    )


def _line(message: str) -> str:
    """Returns the line of an error's message that says what happened: the first, as a rule."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or [""]
    # TensorFlow first lists where in Keras the operation came from.
    ends = [index for index, line in enumerate(lines) if line.startswith("[[{{node")]
    in_graph = lines[0].startswith("Graph execution error") and ends and ends[0] > 0
    return (lines[ends[0] - 1] if in_graph else lines[0])[:500].rstrip(".")


if __name__ == "__main__":
    main()
