"""Images as the model sees them: through the transform graph, once for each graph and images.

With train.augment they are shown a second time, as one step of training would have them, by the
code that training uses. Applying the graph takes TensorFlow, which takes seconds to import, and
another second to load the graph. What came out is kept below the workdir's `cache/`, named by the
content of what went in: a run that found everything in the cache, and `safelight report`, need no
TensorFlow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import images, runs
from pipeline.report import pictures
from pipeline.report.pictures import Picture

_KEPT = 16
_FORMAT = b"2"


@dataclass(frozen=True)
class Seen:
    """Pictures after the transform graph, and the range of the values that the model gets.

    `augmented` are the same pictures with train.augment; empty without it.
    """

    pictures: list[Picture]
    low: float
    high: float
    augmented: list[Picture] = field(default_factory=list)


def of(
    transform_graph: Path, encoded: Sequence[bytes], cache: Path, policy: Mapping[str, Any]
) -> Seen:
    """Returns what the model sees of these images.

    Args:
      transform_graph: the artifact of Transform.
      encoded: files as they are stored in the examples.
      cache: the folder that remembers; made if it isn't there.
      policy: the run's section train, of which `augment` and `seed` are looked at.
    """
    told = {"augment": policy.get("augment") or [], "seed": policy["seed"]}
    path = cache / f"seen-{_key(transform_graph, encoded, told)}.json"
    if path.is_file():
        return _read(path)
    found = _apply(transform_graph, encoded, told)
    cache.mkdir(exist_ok=True)
    runs.write_json(path, asdict(found))
    newest_first = sorted(cache.glob("seen-*.json"), key=lambda it: -it.stat().st_mtime)
    for old in newest_first[_KEPT:]:
        old.unlink(missing_ok=True)
    return found


def _read(path: Path) -> Seen:
    told = json.loads(path.read_text(encoding="utf-8"))
    shown, augmented = ([Picture(**it) for it in told[key]] for key in ("pictures", "augmented"))
    return Seen(shown, told["low"], told["high"], augmented)


def _apply(transform_graph: Path, encoded: Sequence[bytes], policy: Mapping[str, Any]) -> Seen:
    """Decodes, resizes and normalizes by the graph itself, and augments where that is asked for.

    What is shown counts from black to white behind the graph: with `transform.normalize =
    "standard"` that is another range than 0-1, and another one in each channel.
    """
    import tensorflow as tf
    import tensorflow_transform as tft

    from pipeline import transform

    layer = tft.TFTransformOutput(str(transform_graph)).transform_features_layer()
    extremes = [images.to_png(np.full((8, 8, 3), level, np.uint8)) for level in (0, 255)]
    values = transform.serving_pixels(layer, tf.constant([*encoded, *extremes])).numpy()
    values, black, white = values[:-2], values[-2, :1, :1], values[-1, :1, :1]
    pixels = np.clip((values - black) / (white - black), 0, 1).astype(np.float32)
    augmented = _augmented(pixels, policy) if policy["augment"] else []
    return Seen(_shown(pixels), float(values.min()), float(values.max()), augmented)


def _augmented(pixels: npt.NDArray[np.float32], policy: Mapping[str, Any]) -> list[Picture]:
    from pipeline.config import Train
    from pipeline.trainer import augment

    steps = Train.model_validate(dict(policy)).augment
    return _shown(augment.preview(steps, pixels, policy["seed"]))


def _shown(pixels: npt.NDArray[np.float32]) -> list[Picture]:
    levels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return [pictures.of_pixels(image) for image in levels]


def _key(transform_graph: Path, encoded: Sequence[bytes], policy: Mapping[str, Any]) -> str:
    """Returns a name for the content of graph (its constants and variables too) and images."""
    digest = hashlib.sha256(_FORMAT + json.dumps(policy, sort_keys=True).encode())
    files = sorted(path for path in transform_graph.rglob("*") if path.is_file())
    for content in (*(path.read_bytes() for path in files), *encoded):
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:24]
