"""What the nodes of the blessing leave, for workdirs to report on: made by their own code.

The figures that only a stopwatch or a child process would give (latency, heat maps) are made up;
what follows from answers follows from the real ones.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance

from pipeline import features
from pipeline.blessing import robustness
from pipeline.config.variants import Variants
from pipeline.evaluator.predictions import Predictions, text
from pipeline.variants import judge as variant_judge
from tests import exports

KINDS = ("noise", "blur", "jpeg", "brightness", "contrast")
CONFIDENCE = 0.95
_SPEED = {"p50_ms": 2.5, "p95_ms": 4.0, "images_per_second": 380.0}
_FASTER = {"p50_ms": 2.0, "p95_ms": 3.0, "images_per_second": 470.0}


def serving(champion: bool) -> dict[str, Any]:
    """Returns serving_check.json."""
    beside = {"champion": _FASTER, "ratio": 1.25, "ratio_interval": [1.2, 1.3]}
    alone = {"champion": None, "ratio": None, "ratio_interval": None}
    batch = {**_SPEED, **(beside if champion else alone)}
    return {
        "passed": True,
        "images": 16,
        "label_mismatches": 0,
        "max_difference": 1.2e-07,
        "tolerance": 1e-4,
        "load_seconds": 1.5,
        "message": "16 images were served as they were evaluated.",
        "agreement": {
            "images": 40,
            "label_mismatches": 0,
            "max_difference": 2.5e-07,
            "tolerance": 1e-3,
            "passed": True,
            "message": "40 images went training's way to the same answers.",
        },
        "latency": {
            "batches": {"1": batch, "32": {**batch, "p50_ms": 20.0}},
            "size_bytes": 2_400_000,
            "champion_size_bytes": 2_000_000 if champion else None,
            "limits": {"latency_ratio": None, "size_ratio": None},
            "message": "",
        },
    }


def facts(ingest_report: str) -> pa.Table:
    """Returns ingest's facts about the test images, as the gate is given them."""
    rows = pq.read_table(Path(ingest_report) / "images.parquet")
    return rows.filter(pa.compute.equal(rows["split"], features.TEST))


def spoiled(ours: Predictions, theirs: Predictions | None) -> dict[str, Any]:
    """Returns robustness.json of models that name fewer images the more these are spoiled."""

    def right(answers: Predictions) -> np.ndarray:
        draws = np.random.default_rng(5).random((len(answers.ids), len(KINDS), 3))
        kept = 1 - 0.1 * (1 + np.arange(3)) * (1 + np.arange(len(KINDS)))[:, None] / 3
        return answers.correct()[:, None, None] & (draws < kept)

    champion = right(theirs) if theirs is not None else None
    return robustness.report(KINDS, ours.correct(), right(ours), champion, CONFIDENCE)


def smaller(ours: Predictions) -> dict[str, Any]:
    """Returns variants.json: a variant that is as good, one that is not, one that failed."""
    index = {name: number for number, name in enumerate(ours.classes)}
    truth = np.array([index[name] for name in ours.labels])
    before = np.array([index[name] for name in ours.predicted])
    budget = variant_judge.limits(Variants(), "tflite-int8", CONFIDENCE)
    rolled = np.roll(ours.probabilities, 1, axis=1)
    found = {"file": "model.tflite", "bytes": 600_000, "size_ratio": 0.25, "p50_ms": 1.5}
    return {
        "images": len(truth),
        "variants": {
            "tflite-float16": variant_judge.judge(
                {**found, "ratio": 0.6}, ours.probabilities, before, truth, budget
            ),
            "tflite-int8": variant_judge.judge(
                {**found, "ratio": 0.4}, rolled, before, truth, budget
            ),
            "pruned": variant_judge.failed("pruned could not be made: no kernel to prune."),
        },
    }


def explained(folder: Path, ours: Predictions, shown: int = 3) -> None:
    """Writes explanations.json and its pictures: real files, a mistake first."""
    folder.mkdir(parents=True)
    wrong = np.flatnonzero(~ours.correct()).tolist()
    rows = [*wrong, *np.flatnonzero(ours.correct()).tolist()][:shown]
    told = [_explained(folder, number, ours, row) for number, row in enumerate(rows)]
    told[-1]["gradcam"] = None
    (folder / "explanations.json").write_text(json.dumps({"images": told}))


def _explained(folder: Path, number: int, ours: Predictions, row: int) -> dict[str, Any]:
    label, said = ours.labels[row], ours.predicted[row]
    picture = Image.open(io.BytesIO(exports.encoded(label, number)))
    files = {
        "picture": picture,
        "gradcam": ImageEnhance.Color(picture).enhance(0.2),
        "saliency": picture.convert("L").convert("RGB"),
    }
    names = {kind: f"{number:03d}-{kind}.png" for kind in files}
    for kind, image in files.items():
        image.save(folder / names[kind])
    return {
        "id": text(ours.ids[row]),
        "why": "mistake" if label != said else "flipped",
        "label": label,
        "predicted": said,
        "confidence": float(ours.probabilities[row].max()),
        "was": label,
        **names,
    }


def ledger(root: Path, run_id: str) -> None:
    """Writes retrain/ledger.jsonl, in which the last training is the run `run_id`."""
    quiet = _finding("new_images", False, 12.0, 100.0, "12 new images; the bound is 100.")
    loud = _finding("label_drift", True, 0.21, 0.1, "The classes of span 3 have moved by 0.210.")
    lines = [
        {"t": 1741000000.0, "kind": "decision", **_decision(False, [quiet])},
        {"t": 1741000500.0, "kind": "quarantine", "span": 2, "revision": 1, "reason": "<b>bad"},
        {"t": 1741001000.0, "kind": "decision", **_decision(True, [quiet, loud], ["span-3-r1"])},
        {"t": 1741001001.0, "kind": "attempt", "run_id": run_id},
        {"t": 1741002000.0, "kind": "outcome", "run_id": run_id, **_outcome()},
    ]
    write_ledger(root, [json.dumps(line) for line in lines] + ['{"t": 1, "ki'])


def write_ledger(root: Path, lines: Sequence[str]) -> None:
    """Writes the ledger's lines as they are."""
    path = root / "retrain" / "ledger.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def _decision(due: bool, findings: list[Any], window: Sequence[str] = ()) -> dict[str, Any]:
    return {"due": due, "held": "", "findings": findings, "notes": [], "window": list(window)}


def _finding(trigger: str, fired: bool, value: float, bound: float, message: str) -> dict[str, Any]:
    return {
        "trigger": trigger,
        "fired": fired,
        "value": value,
        "bound": bound,
        "message": message,
    }


def _outcome() -> dict[str, Any]:
    return {"outcome": "pushed", "version": 2, "reasons": []}
