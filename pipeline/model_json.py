"""`assets.extra/model.json`: what an exported model says of itself, read in one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from pipeline import features
from pipeline.errors import SafelightError

FORMAT: Final = 2
# Format 1 knew presets alone: it has no `architecture`, and no heads beside the label.
_READ: Final = (1, FORMAT)
ASSETS: Final = "assets.extra"


def read(path: Path) -> dict[str, Any]:
    """Returns the model.json of the export at `path`.

    Raises:
      SafelightError: it is missing, damaged, or of another format.
    """
    file = path / ASSETS / features.MODEL_FACTS
    try:
        facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        whole = isinstance(facts["classes"], list) and isinstance(facts["fingerprint"], str)
        written_as = facts["format"]
    except (OSError, ValueError, KeyError, TypeError):
        whole, written_as = False, None
    if not whole:
        raise SafelightError(
            f"There is no model at {path}: {ASSETS}/{features.MODEL_FACTS} is missing or damaged. "
            "Expected a SavedModel of Safelight's, with its classes in that file. Name a version "
            "directory that Safelight pushed (serving/<model>/<version>)."
        )
    if written_as not in _READ:
        raise SafelightError(
            f"{file} has format {written_as}; this version reads {' and '.join(map(str, _READ))}. "
            "Use the version of Safelight that exported the model."
        )
    return facts
