"""Robustness: what the model and the champion say about test images that are spoiled on purpose."""

import functools
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Examples, Model
from tfx.utils import path_utils

from components import artifacts
from pipeline import events, features, images, model_json
from pipeline.blessing import robustness as spoiled
from pipeline.errors import SafelightError
from pipeline.evaluator import predictions as answers

# Of one request; all models answer one at the same time, and share this.
_ASKED = 256
# Of decoded pixels at once: 15 versions of each wait to be asked about.
_BATCH_BYTES = 8 * 2**20


@component
def Robustness(
    examples: InputArtifact[Examples],
    model: InputArtifact[Model],
    robustness: OutputArtifact[artifacts.Robustness],
    champion: Parameter[str],
    count: Parameter[int],
    confidence: Parameter[float],
    code: Parameter[str],
) -> None:
    """Writes robustness.json: accuracy by kind and strength, of the model and of the champion.

    Both answer through `serving_default`, about the very same files.

    Args:
      examples: with a split `test`.
      model: the export that would be pushed.
      robustness: the report.
      champion: a pushed version's directory, or "".
      count: images to spoil, at most.
      confidence: of each bound.
      code: fingerprint of the sources, for the cache key.

    Raises:
      SafelightError: a model can't be loaded or does not answer, or the split is empty.
    """
    del code
    from pipeline.blessing.corruptions import KINDS

    paths = [Path(path_utils.serving_model_path(model.uri))]
    if champion:
        paths.append(Path(champion))
    clean, right = _ask(paths, examples.uri, count)
    report = spoiled.report(KINDS, clean, right[0], right[1] if champion else None, confidence)
    folder = Path(robustness.uri)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / spoiled.FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


class _Batch(NamedTuple):
    """Some of the images: their files, those spoiled (bytes [images, kinds, strengths]), labels.

    `total` is how many images there are in all batches.
    """

    files: list[bytes]
    spoiled: np.ndarray
    truth: list[str]
    total: int


def _ask(paths: Sequence[Path], examples_uri: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Asks all models about the same files.

    Returns:
      What is right, bool: [images] by the first model of the images as they are, and [models,
      images, kinds, strengths].
    """
    side = max(int(model_json.read(path).get("image_size", 0)) for path in paths)
    batches = _spoiled(examples_uri, count, side, _ASKED // len(paths))
    clean: list[np.ndarray] = []
    right: list[np.ndarray] = []
    done = 0
    # The next images are spoiled while the models are loaded, and then asked about these, both at
    # once: none of the three keeps all cores busy by itself.
    with ThreadPoolExecutor(1 + len(paths)) as pool:
        coming = pool.submit(next, batches, None)
        exports = [answers.Export(path) for path in paths]
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            right.append(np.stack(list(pool.map(functools.partial(_right_of_all, batch), exports))))
            clean.append(_right(exports[0], batch.files, batch.truth))
            done += len(batch.files)
            events.progress("Robustness", done, batch.total, "images")
    return np.concatenate(clean), np.concatenate(right, axis=1)


def _right_of_all(batch: _Batch, export: answers.Export) -> np.ndarray:
    """Returns bool [images, kinds, strengths]."""
    versions = batch.spoiled.reshape(len(batch.truth), -1).T
    right = [_right(export, list(files), batch.truth) for files in versions]
    return np.stack(right, axis=1).reshape(batch.spoiled.shape)


def _right(export: answers.Export, files: list[bytes], truth: list[str]) -> np.ndarray:
    """Returns bool [files]: whether the most probable class is the true one."""
    said = export.serve(files).labels
    return np.array([name == label for name, label in zip(said, truth, strict=True)], np.bool_)


def _known(examples_uri: str) -> tuple[list[bytes], list[str]]:
    """Returns ids and labels of the test images, in the order of the records."""
    names: list[bytes] = []
    labels: list[str] = []
    for parsed in _records(examples_uri, (features.ID, features.LABEL)):
        names += parsed[features.ID].numpy().tolist()
        labels += [answers.text(label) for label in parsed[features.LABEL].numpy()]
    if not names:
        raise SafelightError(
            f"The split {features.TEST!r} of {examples_uri} holds no images; expected at least "
            "one. Give the data more images, or `ingest.split` a larger share for it."
        )
    return names, labels


def _spoiled(examples_uri: str, count: int, side: int, together: int) -> Iterator[_Batch]:
    """Picks `count` images and yields them, at most so many together."""
    from pipeline.blessing.corruptions import corrupted

    names, labels = _known(examples_uri)
    wanted = set(spoiled.pick(names, labels, count))
    for batch in _batches(examples_uri, wanted, together):
        rows, files, pixels = zip(*batch, strict=True)
        truth = [labels[row] for row in rows]
        spoilt = corrupted(pixels, [names[row] for row in rows], side)
        yield _Batch(list(files), spoilt, truth, len(wanted))


def _batches(
    examples_uri: str, wanted: set[int], count: int
) -> Iterator[list[tuple[int, bytes, images.Pixels]]]:
    """Yields the wanted images: (row, file, pixels), a bounded number of pixels at once."""
    batch: list[tuple[int, bytes, images.Pixels]] = []
    size = row = 0
    for parsed in _records(examples_uri, (features.IMAGE,)):
        for data in parsed[features.IMAGE].numpy().tolist():
            if row in wanted:
                # Ingest has checked it: these are the pixels that TensorFlow decodes.
                pixels = images.prepare(data, min_side=1, max_pixels=1 << 62).pixels
                batch.append((row, data, pixels))
                size += pixels.nbytes
            row += 1
            if len(batch) == count or size > _BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _records(examples_uri: str, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    import tensorflow as tf

    spec = {name: tf.io.FixedLenFeature([], tf.string) for name in names}
    files = answers.split_files(examples_uri, features.TEST)
    for batch in tf.data.TFRecordDataset(files).batch(answers.at_once(files)).prefetch(2):
        yield tf.io.parse_example(batch, spec)
