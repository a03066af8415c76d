"""What the explaining process is told, and how it is run: nothing here imports TensorFlow."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

import pipeline
from pipeline import hardware, own_model
from pipeline.errors import SafelightError

FILE: Final = "explanations.json"
_CHILD: Final = "pipeline.explain.child"
# Importing TensorFlow and building a large network; then a few hundred gradients an image.
_SECONDS, _SECONDS_AN_IMAGE = 300, 120


class ExplanationFailed(SafelightError):
    """The explaining process ended without pictures."""


class Asked(BaseModel):
    """One image to explain.

    `encoded` is a file as ingest stores it (PNG, JPEG, GIF or BMP). `predicted` is the class whose
    score is explained, with its probability; None takes the one that the model finds best.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    encoded: Path
    why: Literal["mistake", "flipped", "asked"]
    label: str | None = None
    predicted: str | None = None
    confidence: float | None = None
    was: str | None = None


class Job(BaseModel):
    """All that the process is told; paths are absolute.

    `model` is an export, `transform_graph` what stands before its network (None: decoding and
    resizing alone, as with transform.normalize=unit), `folder` gets the pictures and FILE, `own`
    is the train.model that built the network, and `parent` the process to die with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path
    transform_graph: Path | None
    steps: int
    folder: Path
    images: tuple[Asked, ...]
    own: str = ""
    events: Path | None = None
    parent: int


def run(job: Job, scratch: Path) -> dict[str, Any]:
    """Explains the job's images in a process of its own and returns what FILE then holds.

    Args:
      job: with at least one image.
      scratch: a directory for the job's file and the process's log.

    Raises:
      ExplanationFailed: the process failed; the message has its last words.
      ConfigError: train.model named a module that isn't there any more.
    """
    assert pipeline.__file__ is not None
    path, log = scratch / "explain-job.json", scratch / "explain-log.txt"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", _CHILD, str(path)]
    environment = {**hardware.hidden(), **own_model.python_path(job.own)}
    environment |= {"TF_USE_LEGACY_KERAS": "0", "MPLBACKEND": "agg"}
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with open(log, "wb") as output:
        child = subprocess.Popen(
            command,
            # `-m` finds the package in the current directory, installed or not.
            cwd=Path(pipeline.__file__).parents[1],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
        )
        try:
            code = child.wait(_SECONDS + _SECONDS_AN_IMAGE * len(job.images))
        except subprocess.TimeoutExpired:
            raise ExplanationFailed(
                f"Explaining {len(job.images)} images took too long and was stopped. Ask for "
                "fewer (explain.images), or for fewer steps (explain.steps)."
            ) from None
        finally:
            child.kill()
            child.wait()
    if code != 0:
        raise ExplanationFailed(_why(code, log))
    found: dict[str, Any] = json.loads((job.folder / FILE).read_text(encoding="utf-8"))
    return found


def _why(code: int, log: Path) -> str:
    if code == -signal.SIGKILL:
        return (
            "The explaining process was killed (SIGKILL), most often because memory ran out. Ask "
            "for smaller images, or free some memory."
        )
    text = log.read_text(encoding="utf-8", errors="replace")
    sys.stderr.write(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = lines[-1].rstrip(".")[:500] if lines else "it said nothing"
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"The explaining process ended with {how}: {said}."
