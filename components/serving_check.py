"""ServingCheck: does a clean process serve real files as evaluation saw them, and as was trained?

The check records what it finds and raises nothing about the model: the final gate refuses it, and
says why, beside all else that it found.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Examples, Model, TransformGraph
from tfx.utils import path_utils

from components import artifacts
from pipeline import events, features
from pipeline.blessing import agreement, latency, serving_child
from pipeline.blessing.differences import Difference, by_head, differ, told, what
from pipeline.config import Serving
from pipeline.errors import SafelightError, bounded
from pipeline.evaluator import predictions as answers
from pipeline.heads import LABEL

REPORT = "serving_check.json"
_SECONDS = 600  # a load and a few batches take seconds; a server that hangs is no server


@component
def ServingCheck(
    examples: InputArtifact[Examples],
    model: InputArtifact[Model],
    predictions: InputArtifact[artifacts.Predictions],
    transform_graph: InputArtifact[TransformGraph],
    serving_check: OutputArtifact[artifacts.ServingCheck],
    options: Parameter[str],
    code: Parameter[str],
    champion: Parameter[str] = "",
) -> None:
    """Writes serving_check.json: `passed`, and what differed.

    Args:
      examples: with a split `test`.
      model: the export that would be pushed.
      predictions: what evaluation says the model answers, image by image.
      transform_graph: what training read the images through.
      serving_check: the report.
      options: JSON of config.Serving.
      code: fingerprint of the sources, for the cache key.
      champion: a pushed version's directory, to be timed and weighed beside the model, or "".

    Raises:
      SafelightError: an input is damaged. An export that can't be served is no error here.
    """
    del code
    settings = Serving.model_validate_json(options)
    expected = answers.read(Path(predictions.uri))
    if expected is None or not expected.ids:
        raise SafelightError(f"There are no predictions at {predictions.uri}. Run again.")
    served = Path(path_utils.serving_model_path(model.uri))
    rows = pick(expected.ids, expected.labels, settings.check_images)
    compared = _compared(expected, settings.agreement_images)
    events.progress("ServingCheck", 0, len(rows), "images")
    with _Child() as child:
        found = _find(examples.uri, expected.ids, (*rows, *compared))
        child.begin(served, [found[row] for row in rows], settings.latency_requests, champion)
        agreed = None
        if compared:
            events.progress("ServingCheck", 0, len(compared), "images", "training's way")
            records = [found[row][1] for row in compared]
            graph, tolerance = Path(transform_graph.uri), settings.agreement_tolerance
            agreed = agreement.check(served, graph, records, expected, compared, tolerance)
        answer = child.answer()
    report = {
        **compare(expected, rows, answer, settings.tolerance),
        "agreement": agreed,
        "latency": _latency(answer, served, champion, settings),
    }
    events.progress("ServingCheck", len(rows), len(rows), "images")
    folder = Path(serving_check.uri)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _compared(expected: answers.Predictions, count: int) -> list[int]:
    """Returns the rows that go training's way; none where that is off."""
    return pick(expected.ids, expected.labels, count) if count else []


def _latency(
    answer: dict[str, Any], served: Path, champion: str, settings: Serving
) -> dict[str, Any]:
    """Returns what was timed and weighed, and the limits that the gate holds it to."""
    return {
        "batches": answer.get("latency", {}),
        "size_bytes": latency.size(served),
        "champion_size_bytes": latency.size(Path(champion)) if champion else None,
        "limits": {
            "latency_ratio": settings.max_latency_ratio,
            "size_ratio": settings.max_size_ratio,
        },
        "message": answer.get("not_timed") or answer.get("error", ""),
    }


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
    found: dict[str, Difference] = {}
    for way in ("served", "examples"):
        for name, columns in by_head(expected).items():
            given = answer[way] if name == LABEL else answer[way]["heads"].get(name, {})
            try:
                differs = differ(columns, rows, given)
                if name == LABEL:
                    differs = differs.joined(_unsaid(expected, rows, given, tolerance))
            except (KeyError, ValueError) as error:
                where = "" if name == LABEL else f" of the head {name!r}"
                message = f"A clean process answered with {error}{where} for {len(rows)} images."
                return {**report, "message": message}
            found[name] = found.get(name, Difference()).joined(differs)
    return {
        **report,
        **told(found, tolerance),
        "message": _message(expected, rows, found, tolerance),
    }


def _unsaid(
    expected: answers.Predictions, rows: list[int], given: dict[str, Any], tolerance: float
) -> Difference:
    """Returns the images of which one says `unknown` and the other does not.

    An image whose confidence lies at the threshold, within the tolerance, may fall on either side.
    """
    if expected.answered is None or expected.threshold is None:
        return Difference()
    now = given.get("answered") or [True] * len(rows)
    sure = expected.probabilities.max(axis=1)
    pairs = [(row, told) for row, told in zip(rows, now, strict=True)]
    return Difference(
        frozenset(
            row
            for row, told in pairs
            if told != expected.answered[row]
            and abs(float(sure[row]) - expected.threshold) > tolerance
        )
    )


def _message(
    expected: answers.Predictions,
    rows: list[int],
    found: dict[str, Difference],
    tolerance: float,
) -> str:
    for name, one in found.items():
        if one.wrong:
            images = bounded([answers.text(expected.ids[row]) for row in sorted(one.wrong)])
            label = "label" if name == LABEL else name
            return (
                f"A clean process serves another {label} than evaluation saw for {len(one.wrong)} "
                f"of {len(rows)} images ({images}); probabilities differ by up to {one.most:.2g}."
            )
    for name, one in found.items():
        if one.most > tolerance:
            return (
                f"A clean process serves {what(expected, name)} that differ from evaluation's by "
                f"up to {one.most:.2g} on {len(rows)} images; at most {tolerance:.2g} is allowed "
                "(serving.tolerance)."
            )
    worst = ", ".join(
        f"{what(expected, name)} differ by at most {one.most:.2g}" for name, one in found.items()
    )
    return f"A clean process serves {len(rows)} images as evaluation saw them ({worst})."


def _find(
    examples_uri: str, ids: list[bytes], rows: Iterable[int]
) -> dict[int, tuple[bytes, bytes]]:
    """Returns {row: (encoded image, serialized example)} of the split test.

    An answer's record is the one at its place, for two images may have one name.

    Args:
      examples_uri: of the examples.
      ids: of all answers, which are in the order of the records.
      rows: of the answers whose records are wanted.

    Raises:
      SafelightError: another image is there, or none.
    """
    import tensorflow as tf

    spec = {name: tf.io.FixedLenFeature([], tf.string) for name in (features.ID, features.IMAGE)}
    wanted = dict.fromkeys(rows)
    found = {}
    first = 0
    files = answers.split_files(examples_uri, features.TEST)
    for batch in tf.data.TFRecordDataset(files).batch(answers.at_once(files)):
        parsed = tf.io.parse_example(batch, spec)
        for place, name in enumerate(parsed[features.ID].numpy()):
            row = first + place
            if row in wanted and name == ids[row]:
                found[row] = (parsed[features.IMAGE][place].numpy(), batch[place].numpy())
        first += len(batch)
    missing = [answers.text(ids[row]) for row in wanted if row not in found]
    if missing:
        raise SafelightError(
            f"{bounded(missing)} stand in the predictions and not in the examples at "
            f"{examples_uri}. Run again."
        )
    return found


class _Child:
    """The clean process: started at once, as TensorFlow takes long, asked when all is ready."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="safelight-serving-")
        self._scratch = Path(self._folder.name)
        self._answer = self._scratch / "answer.json"
        with open(self._scratch / "log.txt", "wb") as log:
            self._process = serving_child.start(self._scratch / "request.json", log)

    def __enter__(self) -> "_Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def begin(
        self, model: Path, images: list[tuple[bytes, bytes]], requests: int, champion: str
    ) -> None:
        """Has these images, (file, serialized example) each, served, and goes on meanwhile."""
        told = {"model": str(model), "requests": requests, "champion": champion}
        request = json.dumps({**told, **self._request(images)})
        (self._scratch / "request.json").write_text(request, encoding="utf-8")
        assert self._process.stdin is not None
        # Past the pipe's buffer: what a dead child leaves in it would fail again when it is closed.
        with contextlib.suppress(BrokenPipeError):  # its log says why
            os.write(self._process.stdin.fileno(), b"go\n")

    def answer(self) -> dict[str, Any]:
        """Returns the child's answer, or `error` with one sentence; what is timed is timed now."""
        try:
            self._process.communicate(b"go\n", timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            return {"error": f"it did not answer within {_SECONDS} seconds."}
        return self._outcome()

    def _request(self, images: list[tuple[bytes, bytes]]) -> dict[str, Any]:
        """Writes the images as files, and as a TFRecord, in this order."""
        import tensorflow as tf

        files = []
        for number, (encoded, _) in enumerate(images):
            path = self._scratch / f"{number:06d}.image"
            path.write_bytes(encoded)
            files.append(str(path))
        records = self._scratch / "examples"
        with tf.io.TFRecordWriter(str(records)) as writer:
            for _, serialized in images:
                writer.write(serialized)
        return {"files": files, "examples": str(records), "answer": str(self._answer)}

    def _outcome(self) -> dict[str, Any]:
        log = (self._scratch / "log.txt").read_text(encoding="utf-8", errors="replace")
        sys.stderr.write(log)
        code = self._process.returncode
        if code == 0 and self._answer.is_file():
            found: dict[str, Any] = json.loads(self._answer.read_text(encoding="utf-8"))
            return found
        if code < 0:
            return {"error": f"it was ended by {signal.Signals(-code).name}."}
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        last = lines[-1] if lines else "it said nothing"
        return {"error": last.rstrip(".")[:500] + "."}
