"""An exported model's answers: how they are asked for, written once and read everywhere.

`predictions.parquet` has a row an image: `id` (binary), `split`, `label`, `predicted` (strings),
`probabilities` (list of float32, in the order of the schema metadata's `classes`). The metadata
also names the `model`, by the fingerprint in its model.json, and the `version` of a pushed one,
and the `temperature` and the `threshold` of a calibrated one. With a threshold there is a column
`answered` (bool): where it is false, the model's label is `unknown`; `predicted` is the most
probable class all the same, for that is what metrics and paired tests go by.
The heads beside the label have columns of their own: `pipeline/evaluator/head_columns.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import features, heads, model_json
from pipeline.errors import SafelightError
from pipeline.evaluator import head_columns
from pipeline.evaluator.head_columns import Classes, HeadColumns, Values
from pipeline.heads import Head
from pipeline.ingest import records

FILE = "predictions.parquet"
_ROWS = 4096  # of one row group
# Of records that are read at once; a few such batches wait to be answered.
_BATCH_BYTES = 32 * 2**20
_SAMPLED = 64  # records of a file that tell how large its others are

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """A signature's answer to a batch: names [batch], probabilities float32 [batch, classes].

    `heads` has what the heads beside the label say, by name; nothing in it tells the truth.
    `answered` (bool [batch]) is false where the model says `unknown`, and `labels` then has the
    most probable class; None for a model without a threshold.
    """

    labels: list[str]
    probabilities: Floats
    heads: Mapping[str, HeadColumns] = field(default_factory=dict)
    answered: npt.NDArray[np.bool_] | None = None

    @property
    def said(self) -> list[str]:
        """The labels as the model gives them, `unknown` among them."""
        return _said(self.labels, self.answered)

    def row(self, index: int) -> Answer:
        """Returns the answer to one image of the batch."""
        rows = slice(index, index + 1)
        return Answer(
            self.labels[rows],
            self.probabilities[rows],
            {name: _rows(columns, rows) for name, columns in self.heads.items()},
            None if self.answered is None else self.answered[rows],
        )


@dataclass(frozen=True)
class Predictions:
    """The content of one predictions.parquet.

    Attributes:
      model: the model's fingerprint.
      version: the pushed version's number, None for a model that is not pushed.
      classes: names, in the order of the probabilities.
      ids: bytes [images].
      labels: what the data says, names [images].
      predicted: what the model says, names [images].
      probabilities: float32 [images, classes].
      heads: the same of the heads beside the label, by name.
      temperature: that of a calibrated model.
      threshold: below which it answers `unknown`.
      answered: bool [images], false where it does; None without a threshold.
    """

    model: str
    version: int | None
    classes: tuple[str, ...]
    ids: list[bytes]
    labels: list[str]
    predicted: list[str]
    probabilities: Floats
    heads: Mapping[str, HeadColumns] = field(default_factory=dict)
    temperature: float | None = None
    threshold: float | None = None
    answered: npt.NDArray[np.bool_] | None = None

    @property
    def said(self) -> list[str]:
        """What the model says as it is served: `predicted`, with `unknown` among them."""
        return _said(self.predicted, self.answered)

    def correct(self) -> npt.NDArray[np.bool_]:
        """Returns bool [images]: whether the model agrees with the data."""
        pairs = zip(self.labels, self.predicted, strict=True)
        return np.fromiter((label == name for label, name in pairs), np.bool_, len(self.labels))


class Export:
    """A SavedModel of ours, loaded, with what its model.json tells."""

    def __init__(self, path: Path) -> None:
        """Loads the model.

        Raises:
          SafelightError: it is not there, is damaged, or lacks a signature.
        """
        import tensorflow as tf

        self.path = path
        self.facts = model_json.read(path)
        self.classes: tuple[str, ...] = tuple(self.facts["classes"])
        self.heads: tuple[Head, ...] = heads.from_facts(self.facts)[1:]
        self.fingerprint: str = self.facts["fingerprint"]
        self.temperature: float | None = self.facts.get("temperature")
        self.threshold: float | None = self.facts.get("threshold")
        try:
            self._model = tf.saved_model.load(str(path))
        except Exception as error:
            raise SafelightError(
                f"The model at {path} can't be loaded: {_first_line(error)}. Expected a SavedModel "
                "that Safelight exported; this one is damaged or of an incompatible TensorFlow. "
                "Restore it or train again."
            ) from error

    def serve(self, encoded: Sequence[bytes]) -> Answer:
        """Answers through `serving_default`: encoded images, [batch].

        Raises:
          SafelightError: an image that the model refuses, or an answer of another form.
        """
        return self._ask(features.SERVING_SIGNATURE, features.IMAGE, encoded)

    def serve_examples(self, examples: Any) -> Answer:
        """Answers through `serving_examples`: serialized tf.Examples, [batch]."""
        return self._ask(features.EXAMPLES_SIGNATURE, "examples", examples)

    def _ask(self, signature: str, argument: str, batch: Any) -> Answer:
        import tensorflow as tf

        if signature not in self._model.signatures:
            raise SafelightError(
                f"The model at {self.path} has no signature {signature!r}; it has: "
                f"{', '.join(self._model.signatures) or 'none'}. Expected an export of Safelight's."
            )
        try:
            said = self._model.signatures[signature](**{argument: tf.constant(batch, tf.string)})
            given = {name: value.numpy() for name, value in said.items()}
            label = self._classes_of(
                given[features.OUT_LABEL], given[features.OUT_PROBABILITIES], self.classes
            )
            further = {head.name: self._columns_of(head, given) for head in self.heads}
        except (tf.errors.OpError, TypeError, KeyError) as error:
            raise SafelightError(
                f"The model at {self.path} did not answer through {signature!r}: "
                f"{_first_line(error)}."
            ) from error
        if self.threshold is None:
            return Answer(label.predicted, label.probabilities, further)
        return self._with_unknown(label, further)

    def _with_unknown(self, label: Classes, further: Mapping[str, HeadColumns]) -> Answer:
        """Returns the answers of a model that may say `unknown`; no class is called so."""
        answered = np.array([name != features.UNKNOWN for name in label.predicted], np.bool_)
        best = label.probabilities.argmax(axis=1).tolist()
        labels = [
            name if known else self.classes[index]
            for name, known, index in zip(label.predicted, answered, best, strict=True)
        ]
        return Answer(labels, label.probabilities, further, answered)

    def _columns_of(self, head: Head, given: Mapping[str, npt.NDArray[Any]]) -> HeadColumns:
        if head.kind == "class":
            return self._classes_of(given[head.name], given[head.probabilities], head.classes)
        values = given[head.name].astype(np.float32, copy=False)
        rows = len(given[features.OUT_LABEL])
        if values.shape != (rows,):
            raise self._misshapen(f"{head.name!r} of shape {values.shape}", (rows,), "a value")
        return Values(np.full(rows, np.nan, np.float32), values)

    def _classes_of(
        self, names: npt.NDArray[Any], probabilities: npt.NDArray[Any], classes: tuple[str, ...]
    ) -> Classes:
        expected = (len(names), len(classes))
        if probabilities.shape != expected:
            what = f"probabilities of shape {probabilities.shape}"
            raise self._misshapen(what, expected, "a column for each class in its model.json")
        predicted = [text(name) for name in names]
        floats = probabilities.astype(np.float32, copy=False)
        return Classes(classes, [None] * len(predicted), predicted, floats)

    def _misshapen(self, what: str, expected: tuple[int, ...], why: str) -> SafelightError:
        return SafelightError(
            f"The model at {self.path} answered with {what}; expected {expected}, {why}. "
            "Export it again."
        )


def _said(labels: list[str], answered: npt.NDArray[np.bool_] | None) -> list[str]:
    if answered is None:
        return labels
    pairs = zip(labels, answered.tolist(), strict=True)
    return [label if known else features.UNKNOWN for label, known in pairs]


def _rows(columns: HeadColumns, rows: slice) -> HeadColumns:
    if isinstance(columns, Values):
        return Values(columns.truth[rows], columns.predicted[rows])
    return Classes(
        columns.classes,
        columns.labels[rows],
        columns.predicted[rows],
        columns.probabilities[rows],
    )


def split_files(examples_uri: str, split: str) -> list[str]:
    """Returns the TFRecord files of a split, in the order of their numbers."""
    folder = Path(examples_uri) / f"Split-{split}"
    return sorted(str(path) for path in folder.glob("*") if path.is_file())


def at_once(files: Iterable[str], most: int = 256) -> int:
    """Returns how many records of these files are read together: `most` of small images.

    As many photographs of 12 megapixels are a gigabyte, and several batches are held. The first
    records of a shard, which mixes the images, tell how large they are.
    """
    largest = 1.0
    for file in files:
        try:
            sizes = [size for _, size in islice(records.index(os.fsencode(file)), _SAMPLED)]
        except records.FramingError:  # whoever reads the file says so
            continue
        largest = max(largest, sum(sizes) / max(1, len(sizes)))
    return max(1, min(most, int(_BATCH_BYTES / largest)))


def answer_split(
    export: Export, examples_uri: str, split: str, batch_size: int = 256
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of predictions.parquet, batch by batch in the order of the files.

    `batch_size` is the most images that are asked about together.

    Raises:
      SafelightError: the split holds no examples, or the model does not answer.
    """
    import tensorflow as tf

    files = split_files(examples_uri, split)
    wanted = {
        features.ID: tf.io.FixedLenFeature([], tf.string),
        features.LABEL: tf.io.FixedLenFeature([], tf.string),
        **head_columns.spec(export.heads),
    }
    batches = tf.data.TFRecordDataset(files).batch(at_once(files, batch_size)).prefetch(2)
    schema = _schema(export)
    rows = 0
    for batch in batches:
        facts = tf.io.parse_example(batch, wanted)
        answer = export.serve_examples(batch)
        rows += len(answer.labels)
        labels = [text(label) for label in facts[features.LABEL].numpy()]
        truths = {head: facts[head.feature].numpy() for head in export.heads}
        ids = list(facts[features.ID].numpy())
        yield _record_batch(schema, ids, split, labels, answer, truths)
    if rows == 0:
        raise SafelightError(
            f"The split {split!r} of {examples_uri} holds no images; expected at least one. "
            "Give the data more images, or `ingest.split` a larger share for it."
        )


def write(path: Path, batches: Iterable[pa.RecordBatch], export: Export) -> None:
    """Writes predictions.parquet into the directory `path`, from `answer_split` of `export`."""
    with pq.ParquetWriter(path / FILE, _schema(export)) as writer:
        waiting: list[pa.RecordBatch] = []
        for batch in batches:
            waiting.append(batch)
            if sum(one.num_rows for one in waiting) >= _ROWS:
                _flush(writer, waiting)
        if waiting:
            _flush(writer, waiting)


def read(path: Path) -> Predictions | None:
    """Returns what `path`/predictions.parquet holds, or None where there is no such file."""
    file = path / FILE
    if not file.is_file():
        return None
    table = pq.read_table(file)
    metadata = table.schema.metadata
    limit = _number(metadata, b"threshold")
    classes = tuple(json.loads(metadata[b"classes"]))
    return Predictions(
        model=metadata[b"model"].decode(),
        version=int(metadata[b"version"]) if b"version" in metadata else None,
        classes=classes,
        ids=table.column(features.ID).to_pylist(),
        labels=table.column(features.LABEL).to_pylist(),
        predicted=table.column("predicted").to_pylist(),
        probabilities=head_columns.matrix(table.column("probabilities"), len(classes)),
        heads=head_columns.read(table),
        temperature=_number(metadata, b"temperature"),
        threshold=limit,
        answered=None if limit is None else table.column("answered").to_numpy(),
    )


def _number(metadata: Mapping[bytes, bytes], name: bytes) -> float | None:
    return float(metadata[name]) if name in metadata else None


def text(name: bytes) -> str:
    """Returns a class name as a string; bytes that are no UTF-8 stay visible as \\xNN."""
    return name.decode("utf-8", errors="backslashreplace")


def _schema(export: Export) -> pa.Schema:
    metadata = {"classes": json.dumps(list(export.classes)), "model": export.fingerprint}
    if export.path.name.isdecimal():
        metadata["version"] = export.path.name
    for name in ("temperature", "threshold"):
        if (number := getattr(export, name)) is not None:
            metadata[name] = repr(number)
    return pa.schema(
        [
            (features.ID, pa.binary()),
            ("split", pa.string()),
            (features.LABEL, pa.string()),
            ("predicted", pa.string()),
            ("probabilities", pa.list_(pa.float32())),
            *([] if export.threshold is None else [("answered", pa.bool_())]),
            *head_columns.fields(export.heads),
        ],
        metadata={**metadata, **head_columns.metadata(export.heads)},
    )


def _record_batch(
    schema: pa.Schema,
    ids: list[bytes],
    split: str,
    labels: list[str],
    answer: Answer,
    truths: Mapping[Head, npt.NDArray[Any]],
) -> pa.RecordBatch:
    columns = [
        pa.array(ids, pa.binary()),
        pa.array([split] * len(ids), pa.string()),
        pa.array(labels, pa.string()),
        pa.array(answer.labels, pa.string()),
        head_columns.lists(answer.probabilities),
        *([] if answer.answered is None else [pa.array(answer.answered, pa.bool_())]),
    ]
    for head, truth in truths.items():
        columns += head_columns.arrays(truth, answer.heads[head.name])
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _flush(writer: pq.ParquetWriter, waiting: list[pa.RecordBatch]) -> None:
    writer.write_table(pa.Table.from_batches(waiting))
    waiting.clear()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip() if lines else ''}".rstrip(".: ")
