"""Makes the variants of a blessed model, in processes of their own, and judges each.

    found = make(work)

The result is `variants.json` and a folder for each variant that could be made.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline import events, model_json
from pipeline.config import Train, Transform
from pipeline.config.variants import VariantName, Variants
from pipeline.errors import SafelightError
from pipeline.evaluator import predictions
from pipeline.evaluator.predictions import Predictions
from pipeline.features import EVAL, TEST, TRAIN
from pipeline.trainer import train
from pipeline.trainer.train import Job
from pipeline.variants import fine_tuning, judge
from pipeline.variants.job import MakeJob, PruneJob

FILE: Final = "variants.json"
_CHILD: Final = "pipeline.variants.child"
_PRUNE_CHILD: Final = "pipeline.variants.prune_child"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What variants are made from.

    Attributes:
      options: the section variants.
      train: the section train, completed.
      transform: the section transform, completed.
      confidence: of the bounds of a loss (evaluate.confidence).
      export: the blessed model.
      examples: the artifact's directory.
      transform_graph: the artifact's directory.
      schema: the schema's file.
      answered: the model's predictions.
      target: the directory that gets the variants.
      code: fingerprint of the sources.
    """

    options: Variants
    train: Train
    transform: Transform
    confidence: float
    export: Path
    examples: Path
    transform_graph: Path
    schema: Path
    answered: Predictions
    target: Path
    code: str


def make(work: Work) -> dict[str, Any]:
    """Makes and judges the variants, and returns the content of variants.json.

    A variant that can't be made is a finding, not an error.

    Raises:
      SafelightError: the process that makes them can't begin: an input is damaged.
    """
    rows = pick(work.answered.ids, work.options.max_images)
    found: dict[str, dict[str, Any]] = {}
    # Beside the results, where there is room for photographs: /tmp may be memory.
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=work.target) as name:
        scratch = Path(name)
        names = list(work.options.names)
        if "pruned" in names:
            reason = _prune(work, scratch)
            if reason:
                found["pruned"] = {"error": reason}
                names.remove("pruned")
        job = _make_job(work, scratch, rows, names)
        found.update(_made(job))
        judged = {one: _judged(work, job, one, found[one], rows) for one in work.options.names}
    for one, entry in judged.items():
        _tell(one, entry)
    return {"images": len(rows), "variants": judged}


def pick(ids: Sequence[bytes], most: int) -> list[int]:
    """Returns the rows of at most `most` images, in order: the same ones every time."""
    if len(ids) <= most:
        return list(range(len(ids)))
    by_hash = sorted(range(len(ids)), key=lambda row: hashlib.sha256(ids[row]).digest())
    return sorted(by_hash[:most])


def _prune(work: Work, scratch: Path) -> str:
    """Prunes the model; returns why that failed, or ""."""
    section = fine_tuning.of_model(work.train, _network(work), work.options.prune_epochs)
    job = PruneJob(
        **_common(work, scratch / "prune", section, work.target / "pruned"),
        export=work.export,
        sparsity=work.options.sparsity,
    )
    try:
        train.check_child(job, _run(_PRUNE_CHILD, job))
    except SafelightError as error:
        return f"pruned could not be made: {error}"
    return ""


def _made(job: MakeJob) -> dict[str, dict[str, Any]]:
    """Has the variants made and tried; returns what was found of each.

    The converter may take its process along: the variant that it was at has failed then, and
    another process goes on behind it.
    """
    left = list(job.names)
    while left:
        code = _run(_CHILD, job.model_copy(update={"names": tuple(left)}))
        ended = [name for name in left if job.found(name).is_file()]
        left = [name for name in left if name not in ended]
        if not left:
            break
        if not job.begun(left[0]).is_file() or code >= 0:
            train.check_child(job, code)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        reason = (
            f"{left[0]} could not be made: TensorFlow Lite ended the process ({how}). The run's "
            "log has its last words."
        )
        job.write_found(left.pop(0), {"error": reason})
    return {name: json.loads(job.found(name).read_text()) for name in job.names}


def _make_job(work: Work, scratch: Path, rows: list[int], names: list[VariantName]) -> MakeJob:
    wanted = scratch / "wanted.json"
    wanted.write_text(json.dumps([work.answered.ids[row].hex() for row in rows]))
    cpu = work.train.model_copy(update={**_network(work), "strategy": "cpu"})
    return MakeJob(
        **_common(work, scratch / "make", cpu, work.target),
        export=work.export,
        names=tuple(names),
        test_files=tuple(predictions.split_files(str(work.examples), TEST)),
        wanted=wanted,
        scratch=scratch,
        representative_images=work.options.representative_images,
    )


def _network(work: Work) -> dict[str, Any]:
    """Returns the keys of train that say which network the model is: a search may have chosen."""
    architecture: dict[str, Any] = model_json.read(work.export).get("architecture") or {}
    return architecture


def _common(work: Work, folder: Path, section: Train, target: Path) -> dict[str, Any]:
    """Returns the fields that these jobs share with the one that trains."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "train_files": tuple(predictions.split_files(str(work.examples), TRAIN)),
        "eval_files": tuple(predictions.split_files(str(work.examples), EVAL)),
        "transform_graph": work.transform_graph.absolute(),
        "schema_path": work.schema.absolute(),
        "model_dir": target.absolute(),
        "run_dir": folder,
        "checkpoints": folder / "checkpoints",
        "train": section,
        "transform": work.transform,
        "code": work.code,
        "events": events.sink(),
        "parent": os.getpid(),
    }


def _run(module: str, job: Job) -> int:
    path = job.run_dir / "job.json"
    path.write_text(job.model_dump_json(indent=2) + "\n", encoding="utf-8")
    job.failure.unlink(missing_ok=True)
    return train.run_child(module, path, job.train)


def _judged(
    work: Work, job: MakeJob, name: str, found: dict[str, Any], rows: list[int]
) -> dict[str, Any]:
    if "error" in found:
        return judge.failed(found["error"])
    answered = work.answered
    number = {label: index for index, label in enumerate(answered.classes)}
    truth = np.array([number.get(answered.labels[row], -1) for row in rows], np.int64)
    before: npt.NDArray[np.int64] = answered.probabilities[rows].argmax(axis=1)
    held_to = judge.limits(work.options, name, work.confidence)
    return judge.judge(found, np.load(job.answers(name)), before, truth, held_to)


def _tell(name: str, entry: dict[str, Any]) -> None:
    if entry["blessed"]:
        events.note(
            f"{name} is blessed: {entry['accuracy']:.2%} of the test images right, "
            f"{entry['bytes'] / 1e6:.2f} MB, {entry['p50_ms']:.2f} ms an image."
        )
        return
    reasons = " ".join(check["message"] for check in entry["checks"] if not check["passed"])
    events.warn(f"{name} is not blessed. {reasons}")
