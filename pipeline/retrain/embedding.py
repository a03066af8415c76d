"""What the champion sees in images: features before its last layer, and its answers.

Its network is built anew from model.json and its weights, and fed through the transform graph of
the run that trained it. What it sees in its own held-out images is kept in the workdir's cache.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline import events, export, model_json, records
from pipeline.errors import SafelightError, first_line
from pipeline.evaluator import predictions
from pipeline.features import EVAL, LABEL, SPLITS, TEST
from pipeline.records import Input
from pipeline.retrain import distance, labels

# More images tell no more than these, and the distance takes the square of their number.
_MOST = 1000
_SEED = 17
# Wider features are projected to so many: at random, which keeps distances (Johnson and
# Lindenstrauss, 1984).
_WIDTH = 512
# The layer that answers with the label's probabilities (pipeline/models).
_LAST = "probabilities"
_BATCH = 256

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """Features, float32 [images, features]; answers, float32 [images, classes]; labels [images]."""

    features: Floats
    answers: Floats
    labels: Sequence[str]


class Network:
    """The champion's network, ready to look at a split's records."""

    def __init__(self, champion: Path, transform_graph: Path) -> None:
        """Builds it.

        Args:
          champion: a version's directory.
          transform_graph: of the run that trained it.

        Raises:
          SafelightError: it is no export, or its weights or the graph are gone.
        """
        facts = model_json.read(champion)
        self.classes: tuple[str, ...] = tuple(facts["classes"])
        self.fingerprint: str = facts["fingerprint"]
        model = export.load_weights(champion)
        last = model.get_layer(_LAST)
        self._model = keras.Model(model.inputs, [last.input, last.output])
        try:
            self._source = Input(transform_graph, facts["image_size"], facts["channels"])
        except (OSError, ValueError) as error:
            raise SafelightError(
                f"The transform graph {transform_graph} of {champion} can't be read: "
                f"{first_line(error)}"
            ) from None

    def see(self, examples_uri: str, splits: Sequence[str]) -> Seen:
        """Looks at up to 1,000 images of these splits, evenly chosen."""
        files = [name for split in splits for name in predictions.split_files(examples_uri, split)]
        count = records.scan(files).examples
        step = max(1, -(-count // _MOST))
        spec = {LABEL: tf.io.FixedLenFeature([], tf.string)}
        features, answers, names = [], [], []
        for batch in tf.data.TFRecordDataset(files).shard(step, 0).batch(_BATCH):
            pixels, _ = self._source.transform(batch)
            found, said = self._model.predict_on_batch(pixels)
            features.append(_narrow(np.asarray(found, np.float32).reshape(len(said), -1)))
            answers.append(np.asarray(said, np.float32))
            told = tf.io.parse_example(batch, spec)[LABEL].numpy()
            names += [name.decode() for name in told]
        return Seen(np.concatenate(features), np.concatenate(answers), names)


def _narrow(features: Floats) -> Floats:
    width = features.shape[1]
    if width <= _WIDTH:
        return features
    draw = np.random.default_rng(_SEED)
    found: Floats = features @ (draw.standard_normal((width, _WIDTH), np.float32) / _WIDTH**0.5)
    return found


def compare(
    champion: Path, made: Mapping[str, Mapping[str, str]], examples_uri: str, cache: Path
) -> dict[str, Any]:
    """Returns what a span looks like to the champion, against its own held-out images.

    Args:
      champion: a version's directory.
      made: where the outputs of its run's nodes are.
      examples_uri: the span's.
      cache: the workdir's folder for what can be made again.

    Returns:
      `moved` and `chance` (`distance.Moved`), and `labels` (`labels.Contradicted`); nothing where
      what the champion was trained on is gone.
    """
    try:
        graph = Path(made["Transform"]["transform_graph"])
        own = made["ImageExampleGen"]["examples"]
        network = Network(champion, graph)
        known = _known(network, own, cache)
    except (KeyError, OSError, SafelightError) as error:
        events.warn(f"The span is not compared in the champion's features: {first_line(error)}")
        return {}
    new = network.see(examples_uri, SPLITS)
    if len(known.labels) < 4:
        return {}
    found = distance.moved(
        known.features,
        known.answers.argmax(axis=1),
        new.features,
        new.answers.argmax(axis=1),
        _SEED,
    )
    doubts = labels.contradicted(
        network.classes, (known.answers, known.labels), (new.answers, new.labels)
    )
    return {"moved": found.distance, "chance": found.chance, "labels": doubts.to_dict()}


def _known(network: Network, examples_uri: str, cache: Path) -> Seen:
    """Returns what the network sees in its run's splits eval and test, which it was not fitted to.

    Images that it was fitted to would look better known than any new one.
    """
    path = cache / "features" / f"{network.fingerprint}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as stored:
                names = json.loads(stored["labels"].tobytes())
                return Seen(stored["features"], stored["answers"], names)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            path.unlink()  # cut short: made again below
    seen = network.see(examples_uri, (EVAL, TEST))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    with open(beside, "wb") as file:
        text = np.frombuffer(json.dumps(list(seen.labels)).encode(), np.uint8)
        np.savez(file, features=seen.features, answers=seen.answers, labels=text)
    beside.replace(path)
    return seen
