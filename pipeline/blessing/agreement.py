"""Is what is served what was trained? The export's answers beside training's own way.

Training's way is the transform graph in tf.data, as Trainer reads its splits, then the Keras
network that model.json describes, with the weights beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline import model_json
from pipeline.blessing import differences
from pipeline.blessing.differences import Difference
from pipeline.errors import SafelightError, bounded
from pipeline.evaluator.predictions import Predictions, text
from pipeline.heads import LABEL

if TYPE_CHECKING:
    import keras

    from pipeline.records import Input

_BATCH: Final = 32  # of a large network on large images, what fits anywhere


def check(
    model_dir: Path,
    transform_graph: Path,
    records: Sequence[bytes],
    expected: Predictions,
    rows: Sequence[int],
    tolerance: float,
) -> dict[str, Any]:
    """Returns `agreement` of serving_check.json.

    Args:
      model_dir: the export.
      transform_graph: the artifact that training read the images through.
      records: the serialized tf.Examples of `rows`, in their order.
      expected: what the export answered about all of the split.
      rows: the images to compare.
      tolerance: the largest difference of a probability, or of a value relative to those beyond 1.

    Raises:
      SafelightError: the export has no model.json. Weights that can't be read are no error here.
    """
    report: dict[str, Any] = {
        "images": len(rows),
        "label_mismatches": None,
        "max_difference": None,
        "tolerance": tolerance,
        "passed": False,
    }
    try:
        said = answers(model_dir, transform_graph, records)
    except SafelightError as error:
        return {**report, "message": f"The network can't be built again: {error}"}
    found: dict[str, Difference] = {}
    for name, columns in differences.by_head(expected).items():
        key = "probabilities" if hasattr(columns, "probabilities") else "values"
        try:
            given = {key: said[name]}
            found[name] = differences.differ(columns, rows, given, tie=2 * tolerance)
        except (KeyError, ValueError) as error:
            message = f"The network gives {error} for the head {name!r} and {len(rows)} images."
            return {**report, "message": message}
    message = _message(expected, rows, found, tolerance)
    return {**report, **differences.told(found, tolerance), "message": message}


def answers(model_dir: Path, transform_graph: Path, records: Sequence[bytes]) -> dict[str, Any]:
    """Returns what the network says by way of training: by head, float [images, classes] or
    [images].

    In float32, as the export computes, whatever precision it was trained in; of a calibrated model
    the label's probabilities are at its temperature.

    Args:
      model_dir: the export; only model.json and what lies beside it is read.
      transform_graph: of TensorFlow Transform.
      records: serialized tf.Examples with all heads' targets.

    Raises:
      SafelightError: the weights are not those of the network.
    """
    from pipeline import export, heads
    from pipeline.blessing import calibration
    from pipeline.records import Input

    facts = model_json.read(model_dir)
    network = export.load_weights(model_dir)
    source = Input(transform_graph, facts["image_size"], facts["channels"], heads.from_facts(facts))
    batches = list(_said(network, source, records))
    said = {name: np.concatenate([one[name] for one in batches]) for name in batches[0]}
    # The temperature is in the served graph, not in the network.
    said[LABEL] = calibration.tempered(said[LABEL], facts.get("temperature"))
    return said


def _said(
    network: keras.Model, source: Input, records: Sequence[bytes]
) -> Iterator[Mapping[str, Any]]:
    import tensorflow as tf

    from pipeline.records import unpacked

    serialized = tf.data.Dataset.from_tensor_slices(list(records)).batch(_BATCH)
    for pixels, _ in source.mapped(serialized).prefetch(1):
        said = unpacked(network(pixels, training=False))
        yield {name: np.asarray(values) for name, values in said.items()}


def _message(
    expected: Predictions, rows: Sequence[int], found: Mapping[str, Difference], tolerance: float
) -> str:
    for name, one in found.items():
        if one.wrong:
            images = bounded([text(expected.ids[row]) for row in sorted(one.wrong)])
            label = "label" if name == LABEL else name
            return (
                f"What is served is not what was trained: by way of training, {len(one.wrong)} of "
                f"{len(rows)} images get another {label} ({images}); numbers differ by up to "
                f"{one.most:.2g}."
            )
    for name, one in found.items():
        if not one.most <= tolerance:
            return (
                f"What is served is not what was trained: {differences.what(expected, name)} "
                f"differ from training's way by up to {one.most:.2g} on {len(rows)} images; at "
                f"most {tolerance:.2g} is allowed (serving.agreement_tolerance)."
            )
    most = max(one.most for one in found.values())
    return (
        f"What is served is what was trained: {len(rows)} images get the same answers by way of "
        f"training (they differ by at most {most:.2g})."
    )
