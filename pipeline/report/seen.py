"""Images as the model sees them: through the transform graph, once for each graph and images.

Applying the graph takes TensorFlow, which takes seconds to import, and another second to load the
graph. What came out is kept below the workdir's `cache/`, named by the content of what went in: a
run that found everything in the cache, and `safelight report`, need no TensorFlow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipeline import runs
from pipeline.report import pictures
from pipeline.report.pictures import Picture

_KEPT = 16
_FORMAT = b"1"


@dataclass(frozen=True)
class Seen:
    """Pictures after the transform graph, and the range of the values that the model gets."""

    pictures: list[Picture]
    low: float
    high: float


def of(transform_graph: Path, encoded: Sequence[bytes], cache: Path) -> Seen:
    """Returns what the model sees of these images.

    Args:
      transform_graph: the artifact of Transform.
      encoded: files as they are stored in the examples.
      cache: the folder that remembers; made if it isn't there.
    """
    path = cache / f"seen-{_key(transform_graph, encoded)}.json"
    if path.is_file():
        told = json.loads(path.read_text(encoding="utf-8"))
        return Seen([Picture(**it) for it in told["pictures"]], told["low"], told["high"])
    found = _apply(transform_graph, encoded)
    cache.mkdir(exist_ok=True)
    runs.write_json(path, asdict(found))
    newest_first = sorted(cache.glob("seen-*.json"), key=lambda it: -it.stat().st_mtime)
    for old in newest_first[_KEPT:]:
        old.unlink(missing_ok=True)
    return found


def _apply(transform_graph: Path, encoded: Sequence[bytes]) -> Seen:
    """Decodes, resizes and normalizes by the graph itself.

    Values outside 0-1 (`transform.normalize = "standard"`) are stretched to what can be shown.
    """
    import tensorflow as tf
    import tensorflow_transform as tft

    from pipeline import transform

    layer = tft.TFTransformOutput(str(transform_graph)).transform_features_layer()
    values = transform.serving_pixels(layer, tf.constant(list(encoded))).numpy()
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        values = (values - low) / ((high - low) or 1.0)
    shown = np.rint(values * 255).astype(np.uint8)
    return Seen([pictures.of_pixels(image) for image in shown], low, high)


def _key(transform_graph: Path, encoded: Sequence[bytes]) -> str:
    """Returns a name for the content of the graph (its constants and variables too) and images."""
    digest = hashlib.sha256(_FORMAT)
    files = sorted(path for path in transform_graph.rglob("*") if path.is_file())
    for content in (*(path.read_bytes() for path in files), *encoded):
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:24]
