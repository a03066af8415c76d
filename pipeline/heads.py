"""What a model answers: the label's head, and those of train.heads beside it.

Plain Python. Every stage that handles more than the label asks here which heads there are, under
which names their targets stand in the examples and behind the transform graph, and what each
gives. docs/heads.md follows a head through the stages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pipeline import features
from pipeline.config import Config, Train
from pipeline.errors import ConfigError, bounded

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

    @property
    def feature(self) -> str:
        """The target's name in the tf.Examples: bytes for a class head, float for regression."""
        if self.name == LABEL:
            return features.LABEL
        return (features.CLASS if self.kind == "class" else features.TARGET) + self.column

    @property
    def score(self) -> str:
        """The output with a class head's best probability, float32 [batch]."""
        return features.OUT_SCORE if self.name == LABEL else f"{self.name}_score"

    @property
    def names(self) -> str:
        """The output with a class head's classes, string [batch, classes]."""
        return features.OUT_CLASSES if self.name == LABEL else f"{self.name}_classes"

    @property
    def probabilities(self) -> str:
        """The output with a class head's probabilities, float32 [batch, classes]."""
        return features.OUT_PROBABILITIES if self.name == LABEL else f"{self.name}_probabilities"

    def facts(self) -> dict[str, Any]:
        """Returns what model.json and the schema of predictions.parquet say of it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "column": self.column,
            "classes": list(self.classes),
            "minimum": self.minimum,
            "maximum": self.maximum,
        }


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
    return (label, *beside(train.heads, more))


def beside(
    configured: Iterable[Mapping[str, Any]], more: Mapping[str, Sequence[str]] | None = None
) -> tuple[Head, ...]:
    """Returns the heads beside the label.

    Args:
      configured: train.heads.
      more: the classes of the class heads, by the head's name.
    """
    return tuple(
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
        for head in configured
    )


def from_facts(facts: Mapping[str, Any]) -> tuple[Head, ...]:
    """Returns all heads of an exported model, the label's first.

    Args:
      facts: a model.json; one written before there were heads has the label's alone.
    """
    label = Head(name=LABEL, kind="class", classes=tuple(facts["classes"]))
    return (label, *parsed(facts.get("heads", ())))


def parsed(told: Iterable[Mapping[str, Any]]) -> tuple[Head, ...]:
    """Returns heads from what `Head.facts` gave, also after a way through JSON."""
    return tuple(
        Head(
            name=one["name"],
            kind=one["kind"],
            column=one["column"],
            classes=tuple(one["classes"]),
            minimum=one["minimum"],
            maximum=one["maximum"],
        )
        for one in told
    )


def data_options(train: Train) -> list[dict[str, Any]]:
    """Returns what the stages of data need of train.heads: a change of a loss re-runs none."""
    kept = ("name", "kind", "column", "minimum", "maximum")
    return [{key: head[key] for key in kept if key in head} for head in train.heads]  # type: ignore[literal-required]


def check_form(config: Config, form: str) -> None:
    """Refuses heads for data that has no columns.

    Args:
      config: the configuration.
      form: of the data, as it was found: folders, splits, manifest or tfrecords.

    Raises:
      ConfigError: there are heads, and the data is no manifest.
    """
    if config.train.heads and form != "manifest":
        names = bounded([repr(head["name"]) for head in config.train.heads])
        raise ConfigError(
            f"train.heads asks for {names}, whose targets are columns of a manifest, and "
            f"ingest.form is {form!r} for this data. Describe the images in a manifest.csv "
            "(docs/ingest.md), or leave train.heads out."
        )
