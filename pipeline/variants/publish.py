"""Publishes blessed variants: `exports/<variant>/<version>/`, beside what is served.

A version's number is the SavedModel's. A variant is copied to `.<version>.incoming`, and renamed
once the disk has it: a client sees all of it or nothing. What stands under a number never changes.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any, Final

from pipeline import events, versions
from pipeline.errors import SafelightError

PUBLISHED: Final = "published.json"
_FILE: Final = "variants.json"


def publish(made: Path, exports: Path, version: int, model: str, run_id: str) -> dict[str, str]:
    """Publishes each blessed variant, unless it stands there already.

    Args:
      made: variants.json, and a folder for each variant.
      exports: `exports/` of the workdir.
      version: of the SavedModel that they were made from.
      model: that SavedModel's fingerprint.
      run_id: who publishes.

    Returns:
      {variant: its directory}.

    Raises:
      SafelightError: another model's variant stands under this number, or it can't be copied.
    """
    content = versions.read_object(made / _FILE)
    if content is None:
        raise SafelightError(f"{made / _FILE} is missing or damaged. Run again.")
    found = {}
    for name, entry in content["variants"].items():
        if not entry["blessed"]:
            continue
        told = {
            "variant": name,
            "version": version,
            "model": model,
            "run_id": run_id,
            "published": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **entry,
        }
        found[name] = str(_placed(made / name, exports / name, told))
    return found


def _placed(source: Path, root: Path, told: dict[str, Any]) -> Path:
    target = root / str(told["version"])
    if target.is_dir():
        _check_same(target, told)
        return target
    incoming = root / f".{told['version']}.incoming"
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(incoming, ignore_errors=True)  # of a run that was killed
        versions.copy(source, incoming)
        versions.write_json(incoming / PUBLISHED, told)
        os.rename(incoming, target)
        versions.sync(root)
    except OSError as error:
        shutil.rmtree(incoming, ignore_errors=True)
        raise SafelightError(
            f"{told['variant']} could not be published to {target}: {error}. The model itself is "
            "served. Free some space or mend the folder's permissions, and run again."
        ) from error
    return target


def _check_same(target: Path, told: dict[str, Any]) -> None:
    """Refuses to take another model's variant for ours; says where ours is a newer one."""
    there = versions.read_object(target / PUBLISHED) or {}
    if there.get("model") != told["model"]:
        raise SafelightError(
            f"{target} holds a variant of the model {there.get('model', 'unknown')}, and version "
            f"{told['version']} is {told['model']}. Models of two names share this workdir, or "
            "serving/ was put back: move the folder away, and run again."
        )
    before = {key: there.get(key) for key in ("accuracy", "bytes")}
    if before != {key: told[key] for key in ("accuracy", "bytes")}:
        events.note(
            f"{told['variant']} of version {told['version']} stays as it was published: what has "
            "a number does not change. The next version gets what the settings now ask for."
        )
