"""The auditing process: trains a network without each fold, and asks it about that fold.

    python -m pipeline.audit.child JOB.json

Each fold leaves `fold-<number>.npz` in the job's folder: the rows of its images, and the label's
probabilities, float32 [rows, classes]. A fold that has left it is not trained again, and one that
was interrupted goes on behind its last finished epoch. Standard output and error go to log.txt.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline import events
from pipeline.errors import SafelightError
from pipeline.ingest import records
from pipeline.trainer import train_child
from pipeline.trainer.train import Job

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pipeline.trainer.training import Setup

STAGE: Final = "Audit"
LOG: Final = "log.txt"
_RECORDS: Final = "records"
_TOLD_EVERY: Final = 1000


class AuditJob(Job):
    """What the process is told beside a training job; `run_dir` gets the folds' results.

    `records` are the examples' files in the order of the rows, and `dealt` an .npz file with
    `fold` (int64 [rows]) and `stop` (bool [rows]).
    """

    folds: int
    records: tuple[str, ...]
    dealt: Path

    def result(self, fold: int) -> Path:
        """Returns the file that a finished fold leaves."""
        return self.run_dir / f"fold-{fold}.npz"

    def part(self, fold: int, stop: bool) -> Path:
        """Returns the file with the records of a fold that train, or choose the best epoch."""
        return self.run_dir / _RECORDS / f"fold-{fold}-{'stop' if stop else 'train'}"


def main() -> None:
    """Runs the job named on the command line; the exit code is 0, or that of its error."""
    log = os.open(Path(sys.argv[1]).with_name(LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    train_child.serve(AuditJob, run)


def run(job: AuditJob) -> None:
    """Trains and asks fold after fold, then removes what only the training needed."""
    import numpy as np

    began = time.monotonic()
    with np.load(job.dealt) as dealt:
        fold, stop = dealt["fold"], dealt["stop"]
    # TensorFlow: seconds that the person is told about.
    from pipeline.trainer import training  # noqa: F401

    events.emit("startup", seconds=round(time.monotonic() - began, 2))
    events.emit("stage", name=STAGE, state="start")
    _write_parts(job, fold, stop)
    setup: Setup | None = None
    for number in range(job.folds):
        if not job.result(number).is_file():
            events.as_part_of(STAGE, number, job.folds, "folds")
            setup = _setup(job, number, setup)
            _one(job, setup, number, fold, stop)
        events.as_part_of(STAGE, number + 1, job.folds, "folds")
        events.progress(STAGE, number + 1, job.folds, "folds")
    shutil.rmtree(job.run_dir / _RECORDS)
    shutil.rmtree(job.checkpoints, ignore_errors=True)
    events.emit("stage", name=STAGE, state="complete", seconds=round(time.monotonic() - began, 2))


def _write_parts(job: AuditJob, fold: npt.NDArray[np.int64], stop: npt.NDArray[np.bool_]) -> None:
    """Copies each record into the file of its fold; done once, also over several starts.

    Byte by byte, without TensorFlow: it must not have computed when the devices are opened.
    """
    folder = job.run_dir / _RECORDS
    if folder.is_dir():
        return
    begun = folder.with_name(f".{_RECORDS}.new")
    shutil.rmtree(begun, ignore_errors=True)
    begun.mkdir(parents=True)
    with ExitStack() as opened:
        parts = {
            (number, last): opened.enter_context(open(begun / job.part(number, last).name, "wb"))
            for number in range(job.folds)
            for last in (False, True)
        }
        # One file after the other: a row's number must mean the same record each time.
        for row, record in enumerate(record for file in job.records for record in _whole(file)):
            parts[int(fold[row]), bool(stop[row])].write(record)
            if row % _TOLD_EVERY == 0:
                events.progress(STAGE, 0, job.folds, "folds", f"dealing {row:,} of {len(fold):,}")
    begun.rename(folder)


def _whole(path: str) -> Iterator[bytes]:
    """Yields each record of a TFRecord file with what frames it."""
    try:
        with open(path, "rb") as file:
            for offset, size in records.index(os.fsencode(path)):
                file.seek(offset)
                yield file.read(records.HEADER_BYTES + size + records.FOOTER_BYTES)
    except records.FramingError as error:
        raise SafelightError(
            f"{path} is damaged: {error}. Delete the artifact that it belongs to and run again."
        ) from None


def _setup(job: AuditJob, number: int, before: Setup | None) -> Setup:
    """Returns what trains without a fold; devices are opened but once, the first time."""
    from pipeline.trainer import data, training

    others = [other for other in range(job.folds) if other != number]
    fit, choose = (tuple(str(job.part(other, stop)) for other in others) for stop in (False, True))
    if before is None:
        files = {"train_files": fit, "eval_files": choose}
        return training.prepare(job.model_copy(update=files))
    return replace(before, fitted_on=data.scan(fit), held_out=data.scan(choose))


def _one(
    job: AuditJob,
    setup: Setup,
    number: int,
    fold: npt.NDArray[np.int64],
    stop: npt.NDArray[np.bool_],
) -> None:
    """Trains without a fold and asks about it."""
    import keras
    import numpy as np

    from pipeline import models
    from pipeline.trainer import data, training
    from pipeline.trainer.checkpoints import Checkpoints, State

    model = training.make_model(setup, job.train)
    checkpoints = Checkpoints(job.checkpoints, f"fold-{number}")
    state = checkpoints.load() or State()
    if state.finished:
        models.set_weights(model, state.best_weights)
    else:
        logs = job.run_dir / _RECORDS / f"board-{number}"
        training.fit(
            setup, model, job.train, state=state, run_dir=logs, checkpoints=checkpoints, stage=STAGE
        )
    parts = [job.part(number, last) for last in (False, True)]
    said = [_answers(setup, model, data.scan([str(part)])) for part in parts if _filled(part)]
    rows = [np.flatnonzero((fold == number) & (stop == last)) for last in (False, True)]
    temporary = job.run_dir / f".fold-{number}.npz"
    np.savez(temporary, rows=np.concatenate(rows), probabilities=np.concatenate(said))
    temporary.rename(job.result(number))
    checkpoints.clear()
    del model, state
    keras.utils.clear_session()
    gc.collect()


def _filled(part: Path) -> bool:
    return part.stat().st_size > 0


def _answers(setup: Setup, model: Any, records: Any) -> npt.NDArray[np.float32]:
    """Returns the label's probabilities of each record, in their order."""
    import numpy as np
    import tensorflow as tf

    from pipeline.heads import LABEL

    @tf.function(autograph=False, reduce_retracing=True)
    def answer(pixels: tf.Tensor) -> tf.Tensor:
        said = model(pixels, training=False)
        return said[LABEL] if isinstance(said, Mapping) else said

    batches = [answer(pixels).numpy() for pixels, _ in setup.source.read(records)]
    return np.concatenate(batches).astype(np.float32, copy=False)


if __name__ == "__main__":
    main()
