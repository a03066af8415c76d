"""Predictor: what the challenger and the champion say about each test image, written once."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Examples, Model
from tfx.utils import path_utils

from components.artifacts import Predictions
from pipeline import events
from pipeline.blessing import intact
from pipeline.errors import SafelightError
from pipeline.evaluator import predictions as answers
from pipeline.features import TEST
from pipeline.window_data import OLDER

# Of one request; both models answer one at the same time, and share this.
_ASKED = 256


@component
def Predictor(
    examples: InputArtifact[Examples],
    model: InputArtifact[Model],
    predictions: OutputArtifact[Predictions],
    champion_predictions: OutputArtifact[Predictions],
    champion: Parameter[str],
    code: Parameter[str],
) -> None:
    """Writes predictions.parquet of split `test` for the model, and for a champion.

    Args:
      examples: with a split `test`.
      model: an export; its `serving_examples` signature answers.
      predictions: the model's answers; in `older/` those about the test images of a window's
        older spans, where it has any.
      champion_predictions: the champion's answers about the same images, in the same order; an
        empty directory without a champion.
      champion: a pushed version's directory, or "".
      code: fingerprint of the sources, for the cache key.

    Raises:
      SafelightError: a model can't be loaded or does not answer, or the split is empty.
    """
    del code
    Path(champion_predictions.uri).mkdir(parents=True, exist_ok=True)
    count = _ASKED // 2 if champion else _ASKED
    done = _Done()
    # While one model is loaded, or gathers its images, the other one is asked.
    with ThreadPoolExecutor(1) as pool:
        ours = answers.Export(Path(path_utils.serving_model_path(model.uri)))
        writing = pool.submit(_write, ours, examples.uri, predictions.uri, count, done)
        if champion:
            try:
                theirs = answers.Export(Path(champion))
                _write(theirs, examples.uri, champion_predictions.uri, count, done)
            except SafelightError as error:
                writing.result()
                raise SafelightError(
                    f"The champion can't be compared with: {error} {intact.ADVICE}"
                ) from error
        writing.result()


def _write(
    export: answers.Export, examples_uri: str, target: str, batch_size: int, done: "_Done"
) -> None:
    for split, folder in ((TEST, Path(target)), (OLDER, Path(target) / OLDER)):
        if split == OLDER and not answers.split_files(examples_uri, OLDER):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        batches = answers.answer_split(export, examples_uri, split, batch_size)
        answers.write(folder, done.told(batches), export)


class _Done:
    """Counts the answers of both models, and says how many there are."""

    def __init__(self) -> None:
        self._answers = 0
        self._lock = threading.Lock()

    def told(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Passes batches on and counts them."""
        for batch in batches:
            yield batch
            with self._lock:
                self._answers += batch.num_rows
                events.progress("Predictor", self._answers, None, "answers")
