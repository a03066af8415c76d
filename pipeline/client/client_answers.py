"""What a server says of an image, by REST or gRPC: the label's answer, and each further head's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.features import OUT_CLASSES, OUT_LABEL, OUT_PROBABILITIES, OUT_SCORE
from pipeline.heads import Head


@dataclass(frozen=True)
class HeadPrediction:
    """What a class head beside the label says; `probabilities` in the order of its classes."""

    label: str
    score: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Prediction:
    """The answer for one image; `probabilities` in the model's class order.

    `label` is the most probable class, or `unknown` from a model with a threshold that isn't sure
    enough; `score` is that class's probability in both cases.

    `heads` has what the heads beside the label say, by name: a class head's answer, or a
    regression head's number.
    """

    label: str
    score: float
    probabilities: dict[str, float]
    heads: dict[str, HeadPrediction | float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Returns the answer as JSON; without `heads` where the model has the label's alone."""
        told = asdict(self)
        return told if self.heads else {key: told[key] for key in told if key != "heads"}


def from_row(row: Mapping[str, Any]) -> Prediction:
    """Returns the answer that a row of REST's row format holds.

    Raises:
      KeyError, TypeError, ValueError: it is none of Safelight's.
    """
    label = _head_prediction(row, OUT_LABEL, OUT_SCORE, OUT_CLASSES, OUT_PROBABILITIES)
    told = {OUT_LABEL, OUT_SCORE, OUT_CLASSES, OUT_PROBABILITIES}
    further: dict[str, HeadPrediction | float] = {}
    for name in row:
        outputs = Head(name=name, kind="class")
        if name not in told and outputs.names in row:
            parts = (name, outputs.score, outputs.names, outputs.probabilities)
            further[name] = _head_prediction(row, *parts)
            told.update(parts)
    further.update({name: float(row[name]) for name in row if name not in told})
    return Prediction(label.label, label.score, label.probabilities, further)


def _head_prediction(
    row: Mapping[str, Any], label: str, score: str, classes: str, probabilities: str
) -> HeadPrediction:
    pairs = zip(row[classes], row[probabilities], strict=True)
    return HeadPrediction(row[label], float(row[score]), {name: float(p) for name, p in pairs})


def from_tensors(outputs: Mapping[str, Any]) -> list[Prediction]:
    """Returns the answers that the outputs of a PredictResponse hold (see `from_row`)."""
    import tensorflow as tf

    columns = {key: _decoded(tf.make_ndarray(value).tolist()) for key, value in outputs.items()}
    rows = zip(*columns.values(), strict=True)
    return [from_row(dict(zip(columns, row, strict=True))) for row in rows]


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(one) for one in value]
    return value.decode() if isinstance(value, bytes) else value
