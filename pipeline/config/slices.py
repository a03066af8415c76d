"""What evaluation can be sliced by, and what evaluate.slices asks of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.errors import did_you_mean
from pipeline.features import SLICE

if TYPE_CHECKING:
    from pipeline.config.data import Ingest
    from pipeline.config.judging import Evaluate

# Known of any image, from the facts that ingest records; all else is a column of a manifest.
FACTS: Final = (
    "brightness",
    "contrast",
    "sharpness",
    "resolution",
    "aspect_ratio",
    "format",
    "source",
    "span",
)


def columns(evaluate: Evaluate) -> tuple[str, ...]:
    """Returns the columns of a manifest that evaluate.slices names.

    `slice_<column>` names a column that is called like a fact.
    """
    asked = (name for name in evaluate.slices or () if name not in FACTS)
    return tuple(dict.fromkeys(name.removeprefix(SLICE) for name in asked))


def with_columns(evaluate: Evaluate, ingest: Ingest) -> Ingest:
    """Returns the section with the columns of evaluate.slices to be carried along.

    Ingest then refuses one that the manifest does not have, long before anything is trained.

    Raises:
      ValueError: the data is said to be no manifest, and so has no such column.
    """
    asked = columns(evaluate)
    if not asked:
        return ingest
    if ingest.form not in ("auto", "manifest"):
        raise ValueError(
            f"evaluate.slices names {asked[0]!r}, which is no fact about an image and so a column "
            f"of a manifest, and ingest.form is {ingest.form!r}.{did_you_mean(asked[0], FACTS)}"
        )
    return ingest.model_copy(update={"slices": tuple(dict.fromkeys((*ingest.slices, *asked)))})
