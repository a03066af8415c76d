"""The training process: sets its devices, trains, exports, and ends.

    python -m pipeline.train_child JOB.json

TensorFlow reads what it is told about devices once, when it starts: so nothing here imports it
before `_set_devices`. Its standard output and error are the run's log.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import events, fingerprint, presets
from pipeline.checkpoints import Checkpoints, State
from pipeline.features import EVAL, TRAIN
from pipeline.train import Job, TrainingFailed, write_failure

if TYPE_CHECKING:
    import keras

    from pipeline.data import Input, Place, Records
    from pipeline.errors import SafelightError
    from pipeline.fitting import Batches

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Runs the job named on the command line; the exit code is 0, or that of its error."""
    job = Job.model_validate_json(Path(sys.argv[1]).read_text())
    _die_with_parent(job.parent)
    # Ctrl-C reaches every process of the terminal; the parent decides, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _set_devices()
    events.configure(job.events)
    try:
        run(job)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent has to say it
        traceback.print_exc()
        known = _explained(error)
        write_failure(job, known)
        sys.exit(known.exit_code)


def run(job: Job) -> None:
    """Trains, or goes on training, and exports the best epoch's model."""
    import keras

    from pipeline import data, export, fitting, models
    from schemas import image_schema

    train, transform = job.train, job.transform
    assert train.preset and transform.image_size and transform.channels
    _note_devices()
    classes = image_schema.read_classes(job.schema_path)
    source = data.Input(job.transform_graph, transform.image_size, transform.channels)
    fitted_on, held_out = data.scan(job.train_files), data.scan(job.eval_files)
    checkpoints = Checkpoints(job.checkpoints, _identity(job, classes, fitted_on, held_out))

    keras.utils.set_random_seed(train.seed)
    model = models.build(
        train.preset,
        image_size=transform.image_size,
        channels=transform.channels,
        classes=len(classes),
    )
    fitting.compile_model(model, train, presets.get(train.preset).loss)
    state, resumed_from = _resume(model, checkpoints)
    if state.finished:  # killed between the last epoch and the export
        model.set_weights(state.best_weights)
    else:
        batches = _batches(job, source, fitted_on, held_out, state)
        state = fitting.fit(model, batches, train, job.run_dir, checkpoints, state)

    events.progress("Trainer", 1, 1, "model", "exporting")
    facts = export.model_facts(
        model,
        preset=train.preset,
        classes=classes,
        resize=transform.resize,
        normalize=transform.normalize,
    )
    export.export(model, source, facts, data.sample_images(held_out, 8), job.model_dir)
    history = fitting.history(state, resumed_from, fitted_on.examples)
    (job.run_dir / "history.json").write_text(json.dumps(history, indent=2) + "\n")
    checkpoints.clear()


def _identity(job: Job, classes: Sequence[str], fitted_on: Records, held_out: Records) -> str:
    """Returns the fingerprint of all that determines training."""
    return fingerprint.of_value(
        {
            "train": job.train.model_dump(mode="json"),
            "transform": job.transform.model_dump(mode="json"),
            "classes": classes,
            "examples": [fitted_on.digest, held_out.digest],
            "code": job.code,
        }
    )


def _resume(model: keras.Model, checkpoints: Checkpoints) -> tuple[State, int | None]:
    from pipeline import fitting

    state = checkpoints.load()
    if state is None:
        return State(), None
    fitting.restore(model, state)
    done = len(state.epochs)
    events.note(f"Training goes on behind epoch {done}, which an interrupted run had finished.")
    return state, done


def _batches(
    job: Job, source: Input, fitted_on: Records, held_out: Records, state: State
) -> Batches:
    from pipeline import data
    from pipeline.fitting import Batches

    size, seed, first = job.train.batch_size, job.train.seed, len(state.epochs)
    assert size
    assert size is not None
    job.checkpoints.mkdir(parents=True, exist_ok=True)
    need = source.bytes_kept(fitted_on, held_out)
    place: Place = data.choose_place(job.train.cache, need, job.checkpoints)
    if place == "off":
        train = data.streamed(source, fitted_on, size, seed, first)
        return Batches(train, source.read(held_out), fitted_on.examples, size)
    kept = data.keep(source, {TRAIN: fitted_on, EVAL: held_out}, place, job.checkpoints)
    train = data.shuffled(kept[TRAIN], size, seed, first)
    ordered = data.ordered(kept[EVAL], data.DECODE_BATCH)
    return Batches(train, ordered, fitted_on.examples, size)


def _note_devices() -> None:
    import tensorflow as tf

    gpus = len(tf.config.list_physical_devices("GPU"))
    cores = len(os.sched_getaffinity(0))
    events.note(f"Trains on {gpus} GPU." if gpus else f"Trains on the CPU, {cores} cores.")


def _explained(error: Exception) -> SafelightError:
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
    first_line = str(error).strip().split("\n")[0][:500].rstrip(".")
    return TrainingFailed(
        f"Training failed: {type(error).__name__}: {first_line}. The run's log has the traceback."
    )


def _set_devices() -> None:
    """Says what TensorFlow, Keras and TFT read when they are imported."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    # TensorFlow Transform chooses Keras 2 where nothing is said.
    os.environ["TF_USE_LEGACY_KERAS"] = "0"
    # A GPU may be shared, with TF Serving say: take memory as it is needed.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")


def _die_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when its parent dies, even by SIGKILL.

    A child left behind would hold the devices, and go on writing checkpoints that the next run
    reads.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be asked for
        os._exit(1)


if __name__ == "__main__":
    main()
