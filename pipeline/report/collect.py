"""What a run left behind, read leniently: whatever is missing is None, and its section is absent.

Nothing outside the workdir is read, and nothing is written: the report of a failed run, or of one
that was killed, is made from as much as there is.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SafelightError
from pipeline.evaluator import predictions
from pipeline.evaluator.head_columns import HeadColumns
from pipeline.report import records
from pipeline.report.records import StoredImage
from pipeline.runs import Request, Result, RunDir
from pipeline.workdir import Workdir

# Where each documented file is: node, output key, name (docs/architecture.md). Without a node it is
# an output that only one node has.
_FILES = {
    "summary": ("ImageExampleGen", "ingest_report", "summary.json"),
    "images": ("ImageExampleGen", "ingest_report", "images.parquet"),
    "duplicates": ("ImageExampleGen", "ingest_report", "duplicates.parquet"),
    "quarantine": ("ImageExampleGen", "ingest_report", "quarantine.parquet"),
    "validation": ("ValidationGate", "validation_report", "validation.json"),
    "trials": ("Tuner", "tuner_results", "tuner_results.json"),
    "history": ("Trainer", "model_run", "history.json"),
    "predictions": ("Predictor", "predictions", "predictions.parquet"),
    "champion": ("Predictor", "champion_predictions", "predictions.parquet"),
    "serving": ("ServingCheck", "serving_check", "serving_check.json"),
    "verdict": ("BlessingGate", "blessing", "verdict.json"),
    "variants": ("", "variants", "variants.json"),
    "explanations": ("", "explanations", "explanations.json"),
}
_SECRET = re.compile(r"(://[^/\s:@]*:)[^@\s/]+@")
_LOG_TAIL_BYTES = 16_384

Strings = npt.NDArray[np.object_]


@dataclass(frozen=True)
class Answers:
    """One model's answers on one split.

    Attributes:
      ids: bytes [images].
      labels: the true names, str [images].
      predicted: str [images].
      probabilities: float32 [images, classes], columns in the order of `classes`.
      classes: the names that the model knows.
      model: the fingerprint of its weights.
      heads: what the heads beside the label say, by name.
    """

    ids: Strings
    labels: Strings
    predicted: Strings
    probabilities: npt.NDArray[np.float32]
    classes: tuple[str, ...]
    model: str
    heads: Mapping[str, HeadColumns]

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """bool [images]."""
        return np.asarray(self.labels == self.predicted, dtype=bool)


class Record:
    """One run's request, result, events and artifacts; each is read once, when asked for."""

    def __init__(self, workdir: Workdir, run: RunDir) -> None:
        self.workdir = workdir
        self.run = run
        self.request: Request = run.read_request()
        self.unreadable: list[str] = []

    @cached_property
    def result(self) -> Result | None:
        """How the run ended; None if it was killed, or has not ended yet."""
        try:
            return self.run.read_result()
        except SafelightError as error:
            self.unreadable.append(str(error))
            return None

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """The run's events in order; a line torn by a kill is left out."""
        if not self.run.events.is_file():
            return []
        found = []
        for line in self.run.events.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "kind" in event:
                found.append(event)
        return found

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Returns the events of one kind, in order."""
        return [event for event in self.events if event["kind"] == kind]

    @cached_property
    def artifacts(self) -> dict[str, dict[str, str]]:
        """{node: {output key: URI}} of the nodes that ended."""
        try:
            return self.run.read_artifacts()
        except SafelightError as error:
            self.unreadable.append(str(error))
            return {}

    def folder(self, node: str, output: str) -> Path | None:
        """Returns an output's directory, or None where there is none (any more).

        Of a node that refused the data, it is what the node left with the run.
        """
        if not node:
            node = next((it for it, held in self.artifacts.items() if output in held), "")
        uri = self.artifacts.get(node, {}).get(output)
        path = Path(uri) if uri else self.run.refused(node, output)
        return path if path.is_dir() else None

    def path(self, name: str) -> Path | None:
        """Returns the path of a file that architecture.md documents, or None if it isn't there."""
        node, output, file = _FILES[name]
        folder = self.folder(node, output)
        path = folder / file if folder is not None else None
        return path if path is not None and path.is_file() else None

    def json(self, name: str) -> dict[str, Any] | None:
        """Returns a documented JSON file's object, or None."""
        loaded = self._loaded(name)
        return loaded if isinstance(loaded, dict) else None

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Returns a documented JSON file's list of objects; empty where it isn't there."""
        loaded = self._loaded(name)
        return loaded if isinstance(loaded, list) else []

    def _loaded(self, name: str) -> Any:
        path = self.path(name)
        if path is None:
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            self._cannot_read(path, error)
            return None

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table | None:
        """Returns a documented Parquet file, or None; only those of `columns` that it has."""
        path = self.path(name)
        if path is None:
            return None
        try:
            file = pq.ParquetFile(path)
            held = file.schema_arrow.names
            wanted = None if columns is None else [column for column in columns if column in held]
            return file.read(columns=wanted)
        except (pa.ArrowException, OSError) as error:
            self._cannot_read(path, error)
            return None

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """What ingest counted."""
        return self.json("summary")

    @cached_property
    def verdict(self) -> dict[str, Any] | None:
        """What the final gate decided, and on what."""
        return self.json("verdict")

    @cached_property
    def predictions(self) -> Answers | None:
        """The challenger's answers on the test images."""
        return self._answers("predictions")

    @cached_property
    def champion(self) -> Answers | None:
        """The champion's answers on the same images, if there was one."""
        return self._answers("champion")

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes in their order, from whichever artifact knows them."""
        if self.summary and self.summary.get("classes"):
            return tuple(self.summary["classes"])
        return self.predictions.classes if self.predictions else ()

    @cached_property
    def places(self) -> dict[bytes, tuple[str, int, str]]:
        """{id: (split, place of its record within the split, label)} of every image kept."""
        table = self.table("images", ["id", "split", "label"])
        if table is None:
            return {}
        counted: Counter[str] = Counter()
        found = {}
        columns = [table[name].to_pylist() for name in ("id", "split", "label")]
        for name, split, label in zip(*columns, strict=True):
            found[name] = (split, counted[split], label)
            counted[split] += 1
        return found

    def stored(self, ids: Iterable[bytes]) -> dict[bytes, StoredImage]:
        """Returns the images of these ids from the examples, as far as they are there."""
        examples = self.folder("ImageExampleGen", "examples")
        # By the names that images.parquet has: in a window, records may have shorter ones.
        by_split: dict[str, dict[int, bytes]] = {}
        for name in ids:
            if name in self.places:
                split, place, _ = self.places[name]
                by_split.setdefault(split, {})[place] = name
        if examples is None:
            return {}
        return {
            named[place]: image
            for split, named in by_split.items()
            for place, image in records.read(examples, split, named).items()
        }

    def stored_by_name(self, names: Iterable[str]) -> dict[str, StoredImage]:
        """Returns the images of ids as JSON has them (`readable`), as far as they are there."""
        wanted = set(names)
        ids = {name: id_ for id_ in self.places if (name := readable(id_)) in wanted}
        stored = self.stored(ids.values())
        return {name: stored[id_] for name, id_ in ids.items() if id_ in stored}

    def log_tail(self, lines: int = 25) -> list[str]:
        """Returns the last lines of the run's log, with passwords in URLs blotted out."""
        if not self.run.log.is_file():
            return []
        with open(self.run.log, "rb") as log:
            log.seek(max(0, self.run.log.stat().st_size - _LOG_TAIL_BYTES))
            text = log.read().decode("utf-8", errors="replace")
        return [without_secrets(line) for line in text.splitlines() if line.strip()][-lines:]

    def _answers(self, name: str) -> Answers | None:
        path = self.path(name)
        if path is None:
            return None
        try:
            read = predictions.read(path.parent)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            self._cannot_read(path, error)
            return None
        if read is None or not read.ids:
            return None
        return Answers(
            ids=objects(read.ids),
            labels=objects(read.labels),
            predicted=objects(read.predicted),
            probabilities=read.probabilities,
            classes=read.classes,
            model=read.model,
            heads=read.heads,
        )

    def _cannot_read(self, path: Path, error: Exception) -> None:
        place = path.relative_to(self.workdir.root) if self._holds(path) else path
        self.unreadable.append(f"{place}: {error}")

    def _holds(self, path: Path) -> bool:
        return self.workdir.root in path.parents


def objects(values: Sequence[Any]) -> Strings:
    """Returns names as an array of Python objects; bytes stay bytes."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def without_secrets(text: str) -> str:
    """Returns `text` with the password of any URL in it replaced by `***`."""
    return _SECRET.sub(r"\1***@", text)


def readable(name: str | bytes) -> str:
    """Returns a file's name as text that can be written as UTF-8, whatever its bytes were."""
    if isinstance(name, bytes):
        return name.decode("utf-8", errors="backslashreplace")
    return name.encode("utf-8", errors="backslashreplace").decode("utf-8")
