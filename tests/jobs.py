"""Training jobs on small real data, and what came of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline import export
from pipeline.config import Train, Transform
from pipeline.trainer import train
from tests import graphs

SIZE = 16
CHANNELS = 3


def data(root: Path, train_each: int = 12, eval_each: int = 4) -> dict[str, Any]:
    """Writes the examples, the schema and the transform graph of jobs; returns a job's keys."""
    counts, held_out = (dict.fromkeys(graphs.CLASSES, each) for each in (train_each, eval_each))
    return {
        "train_files": (graphs.write_split(root, "train", counts, size=SIZE),),
        "eval_files": (graphs.write_split(root, "eval", held_out, size=SIZE, first=100),),
        "schema_path": graphs.write_schema(root / "schema.pbtxt"),
        "transform_graph": graphs.transform_graph(SIZE, CHANNELS),
    }


def make(
    shared: dict[str, Any], folder: Path, name: str, checkpoints: str | None = None, **settings: Any
) -> train.Job:
    """Makes a job in `folder/name` on what `data` gave.

    Args:
      shared: of `data`.
      folder: of the test; its events.jsonl gets the events.
      name: of the job.
      checkpoints: the name of the job whose checkpoints it shares; by default its own.
      settings: keys of the section train.
    """
    defaults = {"preset": "mnist-cnn-small", "epochs": 3, "batch_size": 10}
    run_dir = folder / name / "model_run"
    run_dir.mkdir(parents=True)
    return train.Job(
        **shared,
        model_dir=folder / name / "model" / "Format-Serving",
        run_dir=run_dir,
        checkpoints=folder / (checkpoints or name) / "checkpoints",
        train=Train.model_validate({**defaults, **settings}),
        transform=Transform(image_size=SIZE, channels=CHANNELS),
        code="code",
        events=folder / "events.jsonl",
        parent=os.getpid(),
    )


def fn_args(job: train.Job) -> Any:
    """Returns what TFX's Trainer hands to run_fn for this job."""
    return SimpleNamespace(
        train_files=list(job.train_files),
        eval_files=list(job.eval_files),
        transform_graph_path=str(job.transform_graph),
        schema_path=str(job.schema_path),
        serving_model_dir=str(job.model_dir),
        model_run_dir=str(job.run_dir),
        hyperparameters=None,
        custom_config={
            "train": job.train.model_dump(mode="json"),
            "transform": job.transform.model_dump(mode="json"),
            "checkpoints": str(job.checkpoints),
            "code": job.code,
        },
    )


def weights_of(job: train.Job) -> list[np.ndarray]:
    """Returns the weights of the exported model."""
    weights: list[np.ndarray] = export.load_weights(job.model_dir).get_weights()
    return weights


def history_of(job: train.Job) -> dict[str, Any]:
    """Returns the content of history.json."""
    loaded: dict[str, Any] = json.loads((job.run_dir / "history.json").read_text())
    return loaded


def state_files(job: train.Job) -> list[Path]:
    """Returns the job's checkpoints."""
    return list(job.checkpoints.glob("*/state.npz"))


def start(job: train.Job) -> subprocess.Popen[bytes]:
    """Starts a training process on a job."""
    path = job.run_dir / "job.json"
    path.write_text(job.model_dump_json())
    return subprocess.Popen([sys.executable, "-m", "pipeline.trainer.train_child", str(path)])


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Waits until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
