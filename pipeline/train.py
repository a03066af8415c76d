"""TFX Trainer's `run_fn`: hands the work to a child process that owns the devices.

By the time Trainer runs, TensorFlow is initialized in this process without accelerators; logical
devices and GPUs can only be set before. The child is also where memory goes, and all of it comes
back when it ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict

import pipeline
from pipeline import errors, events
from pipeline.config import Train, Transform
from pipeline.errors import SafelightError

if TYPE_CHECKING:
    from tfx.components.trainer.fn_args_utils import FnArgs

_JOB: Final = "job.json"
_FAILURE: Final = "failure.json"
_PATIENCE_SECONDS: Final = 10


class TrainingFailed(SafelightError):
    """The training child ended without a model."""


class Job(BaseModel):
    """All that the training child is told; paths are absolute.

    `train_files` and `eval_files` are file patterns, `events` is where progress goes, and
    `parent` the process to die with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_files: tuple[str, ...]
    eval_files: tuple[str, ...]
    transform_graph: Path
    schema_path: Path
    model_dir: Path
    run_dir: Path
    checkpoints: Path
    train: Train
    transform: Transform
    code: str
    events: Path | None
    parent: int

    @property
    def failure(self) -> Path:
        """Returns the file in which the child leaves its error's message."""
        return self.run_dir / _FAILURE


def run_fn(fn_args: FnArgs) -> None:
    """Trains and exports: `fn_args.serving_model_dir` and `fn_args.model_run_dir` are written.

    `fn_args.custom_config` has `train` and `transform` (those sections, with preset, epochs, image
    size and channels set), `checkpoints` (a directory) and `code` (the fingerprint of the sources).

    Raises:
      SafelightError: what the child failed with.
    """
    job = _job(fn_args)
    job.run_dir.mkdir(parents=True, exist_ok=True)
    path = job.run_dir / _JOB
    path.write_text(job.model_dump_json(indent=2) + "\n")
    _check(job, _run_child(path))


def write_failure(job: Job, error: SafelightError) -> None:
    """Leaves an error for the parent; the child calls this before it ends."""
    content = {"kind": type(error).__name__, "message": str(error), "reasons": error.reasons}
    job.failure.write_text(json.dumps(content))


def _job(fn_args: FnArgs) -> Job:
    custom: dict[str, Any] = fn_args.custom_config
    return Job(
        train_files=tuple(fn_args.train_files),
        eval_files=tuple(fn_args.eval_files),
        transform_graph=Path(fn_args.transform_graph_path).absolute(),
        schema_path=Path(fn_args.schema_path).absolute(),
        model_dir=Path(fn_args.serving_model_dir).absolute(),
        run_dir=Path(fn_args.model_run_dir).absolute(),
        checkpoints=Path(custom["checkpoints"]).absolute(),
        train=Train.model_validate(custom["train"]),
        transform=Transform.model_validate(custom["transform"]),
        code=custom["code"],
        events=events.sink(),
        parent=os.getpid(),
    )


def _run_child(job: Path) -> int:
    """Returns the child's exit code: negative for the signal that ended it."""
    assert pipeline.__file__ is not None
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline.train_child", str(job)],
        # `-m` finds the package in the current directory, installed or not.
        cwd=Path(pipeline.__file__).parents[1],
        stdin=subprocess.DEVNULL,
    )
    try:
        return child.wait()
    finally:
        # Stopped while waiting: the child must not go on with the devices and the checkpoints.
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _check(job: Job, code: int) -> None:
    if code == 0:
        return
    if job.failure.exists():
        failure = json.loads(job.failure.read_text())
        # The class decides the exit code; a class of the child's own becomes the general one.
        kind = getattr(errors, failure["kind"], TrainingFailed)
        raise kind(failure["message"], failure["reasons"])
    if code == -signal.SIGKILL:
        raise TrainingFailed(
            "The training process was killed (SIGKILL), most often because memory ran out. Lower "
            "train.batch_size or transform.image_size, or set train.cache=disk, and run again: a "
            "run with the same settings goes on behind the last finished epoch."
        )
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    raise TrainingFailed(
        f"The training process ended with {how} and left no message; the run's log has its last "
        "words. Run again: it goes on behind the last finished epoch."
    )
