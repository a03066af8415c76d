"""ServingCheck: does a clean process serve real files as evaluation saw them?

The check records what it finds and raises nothing about the model: the final gate refuses it, and
says why, beside all else that it found.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Examples, Model
from tfx.utils import path_utils

from components import artifacts
from pipeline import events, features
from pipeline import predictions as answers
from pipeline.config import Serving
from pipeline.errors import SafelightError, bounded
from pipeline.head_columns import Classes, HeadColumns, Values
from pipeline.heads import LABEL

REPORT = "serving_check.json"
_SECONDS = 600  # a load and a few batches take seconds; a server that hangs is no server
_BATCH = 256


@component
def ServingCheck(
    examples: InputArtifact[Examples],
    model: InputArtifact[Model],
    predictions: InputArtifact[artifacts.Predictions],
    serving_check: OutputArtifact[artifacts.ServingCheck],
    options: Parameter[str],
    code: Parameter[str],
) -> None:
    """Writes serving_check.json: `passed`, and what differed.

    Args:
      examples: with a split `test`.
      model: the export that would be pushed.
      predictions: what evaluation says the model answers, image by image.
      serving_check: the report.
      options: JSON of config.Serving.
      code: fingerprint of the sources, for the cache key.

    Raises:
      SafelightError: an input is damaged. An export that can't be served is no error here.
    """
    del code
    settings = Serving.model_validate_json(options)
    expected = answers.read(Path(predictions.uri))
    if expected is None or not expected.ids:
        raise SafelightError(f"There are no predictions at {predictions.uri}. Run again.")
    rows = pick(expected.ids, expected.labels, settings.check_images)
    events.progress("ServingCheck", 0, len(rows), "images")
    with tempfile.TemporaryDirectory(prefix="safelight-serving-") as scratch:
        wanted = [expected.ids[row] for row in rows]
        request = _request(
            Path(scratch), examples.uri, path_utils.serving_model_path(model.uri), wanted
        )
        answer = _serve(request)
    report = compare(expected, rows, answer, settings.tolerance)
    events.progress("ServingCheck", len(rows), len(rows), "images")
    folder = Path(serving_check.uri)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def pick(ids: list[bytes], labels: list[str], count: int) -> list[int]:
    """Returns the rows of at least `count` images (or all), with each class among them.

    The same images are picked every time: class by class in turn, by the hash of their names.
    """
    by_class = defaultdict(list)
    for row in sorted(range(len(ids)), key=lambda row: hashlib.sha256(ids[row]).digest()):
        by_class[labels[row]].append(row)
    turns = max(len(rows) for rows in by_class.values())
    picked: list[int] = []
    for turn in range(turns):
        for name in sorted(by_class):
            if turn < len(by_class[name]) and (turn == 0 or len(picked) < count):
                picked.append(by_class[name][turn])
    return picked


def compare(
    expected: answers.Predictions, rows: list[int], answer: dict[str, Any], tolerance: float
) -> dict[str, Any]:
    """Returns the report: the child's answers beside the predictions of the same rows."""
    report = {
        "passed": False,
        "images": len(rows),
        "label_mismatches": None,
        "max_difference": None,
        "tolerance": tolerance,
        "load_seconds": answer.get("load_seconds"),
    }
    if "error" in answer:
        message = f"The exported model could not be served by a clean process: {answer['error']}"
        return {**report, "message": message}
    found: dict[str, _Difference] = {}
    for way in ("served", "examples"):
        for name, columns in _by_head(expected).items():
            given = answer[way] if name == LABEL else answer[way]["heads"].get(name, {})
            try:
                differs = _differ(columns, rows, given)
            except (KeyError, ValueError) as error:
                where = "" if name == LABEL else f" of the head {name!r}"
                message = f"A clean process answered with {error}{where} for {len(rows)} images."
                return {**report, "message": message}
            before = found.get(name, _Difference(frozenset(), 0.0))
            found[name] = _Difference(before.wrong | differs.wrong, max(before.most, differs.most))
    wrong = frozenset[int]().union(*(one.wrong for one in found.values()))
    worst = max(one.most for one in found.values())
    return {
        **report,
        "passed": not wrong and worst <= tolerance,
        "label_mismatches": len(wrong),
        "max_difference": worst,
        "message": _message(expected, rows, found, tolerance),
    }


@dataclass(frozen=True)
class _Difference:
    """Of one head: rows with another class, and the largest difference of a number."""

    wrong: frozenset[int]
    most: float


def _by_head(expected: answers.Predictions) -> dict[str, HeadColumns]:
    names: list[str | None] = list(expected.labels)
    label = Classes(expected.classes, names, expected.predicted, expected.probabilities)
    return {LABEL: label, **expected.heads}


def _differ(expected: HeadColumns, rows: list[int], given: dict[str, Any]) -> _Difference:
    """Compares what one head said in the child with what it said before.

    Numbers of a regression head may be large: their difference is taken relative to those beyond 1.

    Raises:
      KeyError, ValueError: the answer has another form; the message ends a sentence.
    """
    if isinstance(expected, Values):
        key, wanted = "values", expected.predicted[rows].astype(np.float64)
        scale = np.maximum(1.0, np.abs(wanted))
    else:
        key, wanted = "probabilities", expected.probabilities[rows].astype(np.float64)
        scale = np.ones_like(wanted)
    if key not in given:
        raise ValueError(f"no {key}")
    numbers = np.asarray(given[key], np.float64)
    if numbers.shape != wanted.shape:
        raise ValueError(f"{key} of shape {numbers.shape}, where {wanted.shape} was expected,")
    apart = np.abs(numbers - wanted) / scale
    # NaN differs from everything.
    most = float(np.where(np.isnan(apart), 1.0, apart).max(initial=0))
    if isinstance(expected, Values):
        return _Difference(frozenset(), most)
    pairs = zip(rows, given["labels"], strict=True)
    return _Difference(frozenset(r for r, name in pairs if name != expected.predicted[r]), most)


def _message(
    expected: answers.Predictions,
    rows: list[int],
    found: dict[str, _Difference],
    tolerance: float,
) -> str:
    for name, one in found.items():
        if one.wrong:
            images = bounded([answers.text(expected.ids[row]) for row in sorted(one.wrong)])
            what = "label" if name == LABEL else name
            return (
                f"A clean process serves another {what} than evaluation saw for {len(one.wrong)} "
                f"of {len(rows)} images ({images}); probabilities differ by up to {one.most:.2g}."
            )
    for name, one in found.items():
        if one.most > tolerance:
            what = _what(expected, name)
            return (
                f"A clean process serves {what} that differ from evaluation's by up to "
                f"{one.most:.2g} on {len(rows)} images; at most {tolerance:.2g} is allowed "
                "(serving.tolerance)."
            )
    worst = ", ".join(
        f"{_what(expected, name)} differ by at most {one.most:.2g}" for name, one in found.items()
    )
    return f"A clean process serves {len(rows)} images as evaluation saw them ({worst})."


def _what(expected: answers.Predictions, name: str) -> str:
    if name == LABEL:
        return "probabilities"
    values = isinstance(expected.heads[name], Values)
    return f"values of {name}" if values else f"probabilities of {name}"


def _request(scratch: Path, examples_uri: str, model: str, wanted: list[bytes]) -> dict[str, Any]:
    """Writes the wanted images as files, and as a TFRecord, in this order."""
    import tensorflow as tf

    found = _find(examples_uri, set(wanted))
    missing = [answers.text(name) for name in wanted if name not in found]
    if missing:
        raise SafelightError(
            f"{bounded(missing)} stand in the predictions and not in the examples at "
            f"{examples_uri}. Run again."
        )
    files = []
    for number, name in enumerate(wanted):
        path = scratch / f"{number:06d}.image"
        path.write_bytes(found[name][0])
        files.append(str(path))
    with tf.io.TFRecordWriter(str(scratch / "examples")) as writer:
        for name in wanted:
            writer.write(found[name][1])
    request = {
        "model": model,
        "files": files,
        "examples": str(scratch / "examples"),
        "answer": str(scratch / "answer.json"),
    }
    (scratch / "request.json").write_text(json.dumps(request), encoding="utf-8")
    return {**request, "request": str(scratch / "request.json"), "log": str(scratch / "log.txt")}


def _find(examples_uri: str, wanted: set[bytes]) -> dict[bytes, tuple[bytes, bytes]]:
    """Returns {id: (encoded image, serialized example)}."""
    import tensorflow as tf

    spec = {name: tf.io.FixedLenFeature([], tf.string) for name in (features.ID, features.IMAGE)}
    found = {}
    files = answers.split_files(examples_uri, features.TEST)
    for batch in tf.data.TFRecordDataset(files).batch(_BATCH):
        parsed = tf.io.parse_example(batch, spec)
        for row, name in enumerate(parsed[features.ID].numpy()):
            if name in wanted:
                found[name] = (parsed[features.IMAGE][row].numpy(), batch[row].numpy())
    return found


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    """Runs the child; returns its answer, or `error` with one sentence."""
    command = [sys.executable, "-m", "pipeline.serving_child", request["request"], str(os.getpid())]
    with open(request["log"], "wb") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment()
        )
        try:
            code = child.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            return {"error": f"it did not answer within {_SECONDS} seconds."}
        finally:
            child.kill()
            child.wait()
    log_text = Path(request["log"]).read_text(encoding="utf-8", errors="replace")
    sys.stderr.write(log_text)
    if code == 0 and Path(request["answer"]).is_file():
        answer: dict[str, Any] = json.loads(Path(request["answer"]).read_text(encoding="utf-8"))
        return answer
    if code < 0:
        return {"error": f"it was ended by {signal.Signals(-code).name}."}
    last = next(
        (line for line in reversed(log_text.splitlines()) if line.strip()), "it said nothing"
    )
    return {"error": last.strip().rstrip(".")[:500] + "."}


def _environment() -> dict[str, str]:
    """Returns this process's environment without devices and without a cluster."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    environment["CUDA_VISIBLE_DEVICES"] = "-1"
    environment["TF_USE_LEGACY_KERAS"] = "0"
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return environment
