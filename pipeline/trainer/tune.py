"""Tuner's part in the worker: hands the search to a child process that owns the devices.

Where a trial takes the child down with it (the system ran out of memory), that trial has failed,
and another child goes on with the others.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline import events, search
from pipeline.config import Train, Transform, Tune
from pipeline.trainer import train
from pipeline.trainer.train import Job

if TYPE_CHECKING:
    from tfx.components.trainer.fn_args_utils import FnArgs

CHILD: Final = "pipeline.trainer.tune_child"
_JOB: Final = "job.json"
_RUNNING: Final = "running.json"


class TuneJob(Job):
    """What the tuning child is told beside a training child's job; `run_dir` is for all trials.

    `best` is the file that Trainer reads, and `lost` says that the child before this one was
    killed within a trial.
    """

    tune: Tune
    best: Path
    lost: bool = False

    @property
    def running(self) -> Path:
        """Returns the file that is there while a trial runs."""
        return self.run_dir / _RUNNING


def tuner_fn(fn_args: FnArgs, best: Path, results: Path) -> None:
    """Searches, and writes what was found.

    Args:
      fn_args: TFX's; `custom_config` has `train`, `tune` and `transform` (those sections),
        `checkpoints` (a directory) and `code` (the fingerprint of the sources).
      best: a file for keras-tuner's configuration of the best trial.
      results: a directory for tuner_results.json and the trials' TensorBoard logs.

    Raises:
      SafelightError: what the child failed with.
    """
    job = _job(fn_args, best.absolute(), results.absolute())
    job.run_dir.mkdir(parents=True, exist_ok=True)
    path = job.run_dir / _JOB
    while True:
        job.running.unlink(missing_ok=True)
        path.write_text(job.model_dump_json(indent=2) + "\n")
        models = search.named("model", job.train, job.tune)
        code = train.run_child(CHILD, path, job.train, models)
        if code != -signal.SIGKILL or not job.running.exists():
            break
        told = json.loads(job.running.read_text())
        events.warn(f"Trial {told['trial']} was killed; the search goes on with the next one.")
        job = job.model_copy(update={"lost": True})
    train.check_child(job, code)


def _job(fn_args: FnArgs, best: Path, results: Path) -> TuneJob:
    custom: dict[str, Any] = fn_args.custom_config
    return TuneJob(
        train_files=tuple(fn_args.train_files),
        eval_files=tuple(fn_args.eval_files),
        transform_graph=Path(fn_args.transform_graph_path).absolute(),
        schema_path=Path(fn_args.schema_path).absolute(),
        model_dir=results,
        run_dir=results,
        checkpoints=Path(custom["checkpoints"]).absolute(),
        train=Train.model_validate(custom["train"]),
        transform=Transform.model_validate(custom["transform"]),
        tune=Tune.model_validate(custom["tune"]),
        best=best,
        code=custom["code"],
        events=events.sink(),
        parent=os.getpid(),
    )
