"""Is the champion there to be compared with? Asked before a run begins, without TensorFlow."""

from __future__ import annotations

from pathlib import Path

from pipeline import model_json
from pipeline.errors import SafelightError

ADVICE = (
    "What is served is not what was pushed: restore its directory, or put an older version back "
    'with: safelight rollback --workdir DIR --reason "damaged".'
)


def check(champion: str) -> None:
    """Refuses a champion that lacks a file, before anything is trained to be held against it.

    What only loading can tell (a file cut short, say) Predictor tells.

    Args:
      champion: a pushed version's directory, or "" without one.

    Raises:
      SafelightError: a file is missing or empty, or its model.json can't be read.
    """
    if not champion:
        return
    folder = Path(champion)
    try:
        model_json.read(folder)
    except SafelightError as error:
        raise SafelightError(f"The champion can't be compared with: {error} {ADVICE}") from None
    wanted = [Path("saved_model.pb"), Path("variables") / "variables.index"]
    missing = [str(name) for name in wanted if not _holds(folder / name)]
    if not any(_holds(part) for part in folder.glob("variables/variables.data-*")):
        missing.append("variables/variables.data-*")
    if missing:
        raise SafelightError(
            f"The champion can't be compared with: {folder} is no whole SavedModel; missing or "
            f"empty: {', '.join(missing)}. {ADVICE}"
        )


def _holds(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
