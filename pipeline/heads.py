"""What a model answers: the label's head, and those of train.heads beside it.

Plain Python. Every stage that handles more than the label asks here which heads there are, under
which names their targets stand in the examples and behind the transform graph, and what each
gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pipeline import features
from pipeline.config import Train

# The head that every model has; its targets are `features.LABEL_ID`.
LABEL: Final = "label"


@dataclass(frozen=True, kw_only=True)
class Head:
    """One answer.

    Attributes:
      name: `label`, or the one in train.heads.
      kind: `class` (probabilities) or `regression` (a number).
      column: the manifest's column; "" for the label.
      classes: of a class head, in the order of its probabilities; () for regression.
      weight: of its loss.
      loss: of train.heads; "" for the label, whose loss train.loss and the preset say.
      minimum: what a target of a regression head may not be below, if anything.
      maximum: what it may not be above.
    """

    name: str
    kind: Literal["class", "regression"]
    column: str = ""
    classes: tuple[str, ...] = ()
    weight: float = 1.0
    loss: str = ""
    minimum: float | None = None
    maximum: float | None = None

    @property
    def target(self) -> str:
        """The target's name behind the transform graph: int64 (-1: unknown) or float32 [batch]."""
        if self.name == LABEL:
            return features.LABEL_ID
        return f"{self.name}_id" if self.kind == "class" else f"{self.name}_value"


def of(
    train: Train, classes: Sequence[str], more: Mapping[str, Sequence[str]] | None = None
) -> tuple[Head, ...]:
    """Returns the label's head and those of train.heads, in order.

    Args:
      train: the configuration.
      classes: the label's.
      more: the classes of the other class heads, by the head's name.
    """
    label = Head(name=LABEL, kind="class", classes=tuple(classes), weight=train.label_weight)
    return (
        label,
        *(
            Head(
                name=head["name"],
                kind=head["kind"],
                column=head.get("column", head["name"]),
                classes=tuple((more or {}).get(head["name"], ())),
                weight=head.get("weight", 1.0),
                loss=head.get("loss", "cross-entropy" if head["kind"] == "class" else "mse"),
                minimum=head.get("minimum"),
                maximum=head.get("maximum"),
            )
            for head in train.heads
        ),
    )
