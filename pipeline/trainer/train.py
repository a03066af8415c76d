"""TFX Trainer's `run_fn`: hands the work to a child process that owns the devices.

By the time Trainer runs, TensorFlow is initialized in this process without accelerators; logical
devices and GPUs can only be set before. The child is also where memory goes, and all of it comes
back when it ends. With train.strategy=multi_worker there are several children.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict

from pipeline import errors, events, hardware, own_model, search, spares, workers
from pipeline.config import Calibration, Train, Transform
from pipeline.errors import SafelightError
from pipeline.features import CALIB

if TYPE_CHECKING:
    from tfx.components.trainer.fn_args_utils import FnArgs

_JOB: Final = "job.json"
_FAILURE: Final = "failure.json"
_CHILD: Final = "pipeline.trainer.train_child"
_IMPORTS: Final = ("pipeline.trainer.training", "pipeline.trainer.warm")
_PATIENCE_SECONDS: Final = 10
_POLL_SECONDS: Final = 0.2


class TrainingFailed(SafelightError):
    """The training child ended without a model."""


class Job(BaseModel):
    """All that the training child is told; paths are absolute.

    `train_files` and `eval_files` are file patterns, and so are `calib_files` where `calibration`
    is on; `warm_start` is a version whose weights to begin with, and with `also_cold` a second
    model begins anew, of which the better on eval goes on; `events` is where progress goes, and
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
    calib_files: tuple[str, ...] = ()
    calibration: Calibration = Calibration()
    warm_start: Path | None = None
    also_cold: bool = False
    events: Path | None
    parent: int

    @property
    def failure(self) -> Path:
        """Returns the file in which the child leaves its error's message."""
        return self.run_dir / _FAILURE


def run_fn(fn_args: FnArgs) -> None:
    """Trains and exports: `fn_args.serving_model_dir` and `fn_args.model_run_dir` are written.

    `fn_args.custom_config` has `train` and `transform` (those sections, with preset, epochs, image
    size and channels set), `checkpoints` (a directory), `code` (the fingerprint of the sources)
    and, where they are asked for, `calibration` (of that section what decides the model) and
    `warm_start` (a version's directory) and `also_cold`.

    Raises:
      SafelightError: what the child failed with; or another worker is the chief.
    """
    job = _job(fn_args)
    job.run_dir.mkdir(parents=True, exist_ok=True)
    job.failure.unlink(missing_ok=True)
    _check_chief(job.train)
    path = job.run_dir / _JOB
    path.write_text(job.model_dump_json(indent=2) + "\n")
    check_child(job, run_child(_CHILD, path, job.train))


def _check_chief(train: Train) -> None:
    """Refuses to run Trainer where another worker would write the model."""
    cluster = workers.from_environment() if train.strategy == "multi_worker" else None
    if cluster is not None and cluster.worker != 0:
        raise errors.ConfigError(
            f"Trainer runs in worker {cluster.worker} of TF_CONFIG's {cluster.workers} "
            "(train.strategy=multi_worker), and worker 0 writes the model. Run the pipeline in the "
            "chief, or in worker 0 where there is none; start pipeline.trainer.train_child in the "
            "others."
        )


def write_failure(job: Job, error: SafelightError) -> None:
    """Leaves an error for the parent; the child calls this before it ends."""
    content = {"kind": type(error).__name__, "message": str(error), "reasons": error.reasons}
    # Of several workers the first to fail knows why; the others only lost it.
    with contextlib.suppress(FileExistsError), open(job.failure, "x") as file:
        json.dump(content, file)


def _job(fn_args: FnArgs) -> Job:
    custom: dict[str, Any] = fn_args.custom_config
    train = Train.model_validate(custom["train"])
    transform = Transform.model_validate(custom["transform"])
    calibration = Calibration.model_validate(custom.get("calibration", {}))
    return Job(
        train_files=tuple(fn_args.train_files),
        eval_files=tuple(fn_args.eval_files),
        transform_graph=Path(fn_args.transform_graph_path).absolute(),
        schema_path=Path(fn_args.schema_path).absolute(),
        model_dir=Path(fn_args.serving_model_dir).absolute(),
        run_dir=Path(fn_args.model_run_dir).absolute(),
        checkpoints=Path(custom["checkpoints"]).absolute(),
        train=_best(train, fn_args.hyperparameters, transform),
        transform=transform,
        code=custom["code"],
        calib_files=_calib_files(fn_args.train_files) if calibration.on else (),
        calibration=calibration,
        warm_start=Path(custom["warm_start"]) if custom.get("warm_start") else None,
        also_cold=bool(custom.get("also_cold")),
        events=events.sink(),
        parent=os.getpid(),
    )


def _calib_files(train_files: Sequence[str]) -> tuple[str, ...]:
    """Returns the patterns of calib's files: beside train's, for TFX hands over no third split."""
    return tuple(
        str(Path(pattern).parents[1] / f"Split-{CALIB}" / Path(pattern).name)
        for pattern in train_files
    )


def _best(train: Train, hyperparameters: dict[str, Any] | None, transform: Transform) -> Train:
    """Returns train with the values that Tuner found best, if there was a search."""
    if hyperparameters is None:
        return train
    values = search.found(hyperparameters)
    events.note(f"Trains with the best values of the search: {search.shown(values)}.")
    return search.merged(search.given(train, hyperparameters), values, transform)


def run_child(module: str, job: Path, train: Train, models: Sequence[str] = ()) -> int:
    """Runs a module of ours with a job file in a process that owns the devices.

    train.strategy=multi_worker without TF_CONFIG makes it as many processes as train.workers: the
    first that fails ends them all.

    Args:
      module: what `python -m` is given.
      job: its file.
      train: the section.
      models: what the process may build beside train.model: `module:function` each, or "".

    Returns:
      The exit code, 0 or that of the first to fail: negative for the signal that ended it.
    """
    environments: list[dict[str, str]] = [{}]
    if train.strategy == "multi_worker" and workers.from_environment() is None:
        environments = workers.local(train.workers, hardware.visible_gpus())
    children = [
        spares.popen(module, [str(job)], {**child_environment(train, models), **environment})
        for environment in environments
    ]
    try:
        return _wait(children)
    finally:
        # Stopped while waiting, or one has failed: the others must not go on with the devices.
        _end(children)


def ahead(train: Train) -> None:
    """Starts a training child early, so that it has imported TensorFlow when it is needed."""
    if train.strategy != "multi_worker":
        spares.ahead(_CHILD, _IMPORTS, child_environment(train))


def child_environment(train: Train, models: Sequence[str] = ()) -> dict[str, str]:
    """Returns what the training child needs in its environment before it imports TensorFlow.

    `models` are those that it may build beside train.model.
    """
    variables = hardware.environment()
    found = [own_model.python_path(name) for name in (train.model, *models)]
    if places := [place for one in found for place in one.values()]:
        variables["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(places))
    return hardware.prepared(train, variables)


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int:
    if len(children) == 1:
        return children[0].wait()
    while True:
        codes = [child.poll() for child in children]
        # A worker that was killed makes the others fail: it is the one to tell of.
        failed = sorted(code for code in codes if code)
        if failed:
            return failed[0]
        if None not in codes:
            return 0
        time.sleep(_POLL_SECONDS)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    alive = [child for child in children if child.poll() is None]
    for child in alive:
        child.terminate()
    for child in alive:
        try:
            child.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def check_child(job: Job, code: int) -> None:
    """Raises what a child ended with, unless it is 0.

    Raises:
      SafelightError: the child's own error, or what its exit code means.
    """
    if code == 0:
        return
    if code > 0 and (failure := _left(job.failure)):
        # The class decides the exit code; a class of the child's own becomes the general one.
        kind = getattr(errors, failure["kind"], TrainingFailed)
        raise kind(failure["message"], failure["reasons"])
    if code == -signal.SIGKILL:
        raise TrainingFailed(
            f"{_who(job)} was killed (SIGKILL), most often because memory ran out. Lower "
            "train.batch_size or transform.image_size, or set train.cache=disk, and run again: a "
            "run with the same settings goes on behind the last finished epoch."
        )
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    raise TrainingFailed(
        f"{_who(job)} ended with {how} and left no message; the run's log has its last "
        "words. Run again: it goes on behind the last finished epoch."
    )


def _left(path: Path) -> dict[str, Any]:
    """Returns what a child wrote before it ended; nothing where the disk was full for that, too."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _who(job: Job) -> str:
    if job.train.strategy == "multi_worker":
        return f"One of the {job.train.workers} training processes (train.workers)"
    return "The training process"
