"""Robustness: what the model and the champion say about test images that are spoiled on purpose."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Examples, Model
from tfx.utils import path_utils

from components import artifacts
from pipeline import events, features, images
from pipeline.blessing import robustness as spoiled
from pipeline.errors import SafelightError
from pipeline.evaluator import predictions as answers

_BATCH = 256
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

    exports = [answers.Export(Path(path_utils.serving_model_path(model.uri)))]
    if champion:
        exports.append(answers.Export(Path(champion)))
    clean, right = _ask(exports, examples.uri, count)
    report = spoiled.report(
        KINDS, clean[0], right[0], right[1] if len(exports) > 1 else None, confidence
    )
    folder = Path(robustness.uri)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / spoiled.FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _ask(
    exports: list[answers.Export], examples_uri: str, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what is right: bool [models, images], and [models, images, kinds, strengths]."""
    from pipeline.blessing.corruptions import KINDS, STRENGTHS, corrupted

    names, labels = _known(examples_uri)
    wanted = set(spoiled.pick(names, labels, count))
    side = max(int(export.facts.get("image_size", 0)) for export in exports)
    clean: list[np.ndarray] = []
    right: list[np.ndarray] = []
    for batch in _batches(examples_uri, wanted):
        files = np.stack([corrupted(pixels, names[row], side) for row, _, pixels in batch])
        truth = [labels[row] for row, _, _ in batch]
        as_they_are = [data for _, data, _ in batch]
        clean.append(np.stack([_right(export, as_they_are, truth) for export in exports]))
        said = np.zeros((len(exports), len(batch), len(KINDS), STRENGTHS), np.bool_)
        for kind in range(len(KINDS)):
            for strength in range(STRENGTHS):
                for number, export in enumerate(exports):
                    sent = list(files[:, kind, strength])
                    said[number, :, kind, strength] = _right(export, sent, truth)
        right.append(said)
        done = sum(part.shape[1] for part in right)
        events.progress("Robustness", done, len(wanted), "images")
    return np.concatenate(clean, axis=1), np.concatenate(right, axis=1)


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


def _batches(
    examples_uri: str, wanted: set[int]
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
            if len(batch) == _BATCH or size > _BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _records(examples_uri: str, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    import tensorflow as tf

    spec = {name: tf.io.FixedLenFeature([], tf.string) for name in names}
    files = answers.split_files(examples_uri, features.TEST)
    for batch in tf.data.TFRecordDataset(files).batch(_BATCH).prefetch(2):
        yield tf.io.parse_example(batch, spec)
