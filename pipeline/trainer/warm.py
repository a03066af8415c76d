"""A warm start: a new model begins with the weights of the one that is served.

Where the champion's network is the same, its weights are taken; classes that it does not know grow
the head, and the rows of the others stay (their order is fixed: the champion's, then new names).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from pipeline import export, heads, model_json, models
from pipeline.config import Train
from pipeline.errors import SafelightError
from pipeline.heads import Head

Array = npt.NDArray[Any]

# How `start` begins where the champion's weights were taken.
TAKEN = "Warm start"


def start(model: keras.Model, train: Train, answers: Sequence[Head], champion: Path) -> str:
    """Sets the model's weights to the champion's where that can be; says what was done, and why.

    Args:
      model: new, built from `train`; left as it is for a cold start.
      train: the section, completed.
      answers: the model's heads.
      champion: a version's directory.
    """
    try:
        facts = model_json.read(champion)
        reason = _differs(facts, model, train, answers)
        if not reason:
            before = export.load_weights(champion).get_weights()
            taken = _grown(before, model.get_weights(), heads.from_facts(facts), answers)
            if taken is None:
                reason = "its weights have other shapes"
    except SafelightError as error:
        reason = str(error)
    if reason or taken is None:
        return f"Cold start, from new weights: {champion.name} can't be gone on from; {reason}."
    models.set_weights(model, taken)
    new = len(answers[0].classes) - len(facts["classes"])
    grown = f", and {new} new classes" if new else ""
    return f"{TAKEN} from the weights of version {champion.name}{grown}."


def _differs(
    facts: dict[str, Any], model: keras.Model, train: Train, answers: Sequence[Head]
) -> str:
    """Returns why the champion's weights don't fit; "" where they may."""
    mine = json.loads(json.dumps(models.architecture(train)))
    theirs = facts.get("architecture")
    if theirs != mine:
        return "its network is another"
    _, side, _, channels = model.input_shape
    if (facts["image_size"], facts["channels"]) != (side, channels):
        return f"its images are {facts['image_size']}x{facts['image_size']}x{facts['channels']}"
    known = heads.from_facts(facts)
    if [(one.name, one.kind) for one in known] != [(one.name, one.kind) for one in answers]:
        return "it has other heads"
    for old, new in zip(known, answers, strict=True):
        if new.classes[: len(old.classes)] != old.classes:
            return f"its classes of {old.name!r} are not the first of the new ones"
    return ""


def _grown(
    before: Sequence[Array], fresh: Sequence[Array], known: Sequence[Head], answers: Sequence[Head]
) -> list[Array] | None:
    """Returns the old weights in the new shapes, new ones for new classes; None if they don't fit.

    Only a head's kernel and bias end with one entry a class.
    """
    sizes = {(len(old.classes), len(new.classes)) for old, new in zip(known, answers, strict=True)}
    if len(before) != len(fresh):
        return None
    weights = []
    for old, new in zip(before, fresh, strict=True):
        if old.shape == new.shape:
            weights.append(old)
            continue
        fits = old.ndim == new.ndim and old.shape[:-1] == new.shape[:-1]
        if not fits or (old.shape[-1], new.shape[-1]) not in sizes:
            return None
        grown: Array = np.array(new)
        grown[..., : old.shape[-1]] = old
        weights.append(grown)
    return weights
