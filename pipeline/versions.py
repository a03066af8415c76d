"""Version directories on the disk: what each tells of itself, and how one is put there for good."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.features import MODEL_FACTS

# A copy of its entry that each version carries, so that a registry can be rebuilt without loss.
PUBLISHED = "published.json"

Status = Literal["live", "retired", "rolled_back"]


@dataclass(frozen=True)
class Entry:
    """One version as `registry.json` records it.

    `restores` is the older version that this one publishes again, `rolls_back` the bad one that it
    took the place of; both are None for a model that a run pushed.
    """

    version: int
    published: str
    by: str
    why: str
    run_id: str
    metrics: dict[str, float]
    data: str
    code: str
    config: str
    classes: list[str]
    inputs: dict[str, Any]
    model_uri: str
    model_fingerprint: str
    status: Status
    restores: int | None = None
    rolls_back: int | None = None


def recovered(root: Path, version: int) -> Entry:
    """Returns the entry that a version directory tells of itself."""
    extra = root / str(version) / "assets.extra"
    published = read_object(extra / PUBLISHED)
    if published is not None:
        try:
            return replace(entry_from(published), version=version)
        except (TypeError, KeyError, ValueError):
            pass
    facts = read_object(extra / MODEL_FACTS) or {}
    when = time.gmtime((root / str(version)).stat().st_mtime)
    return Entry(
        version=version,
        published=time.strftime("%Y-%m-%dT%H:%M:%SZ", when),
        by="unknown",
        why="found among the version directories",
        run_id="",
        metrics={},
        data="",
        code="",
        config="",
        classes=[str(name) for name in facts.get("classes", [])],
        inputs={"known_classes": [], "champion": None},
        model_uri="",
        model_fingerprint=str(facts.get("fingerprint", "")),
        status="live",
    )


def entry_from(values: Any) -> Entry:
    """Returns an entry as JSON holds it.

    Raises:
      TypeError, KeyError, ValueError: a key is missing, or a value is of another type.
    """
    typed = (
        isinstance(values["version"], int)
        and isinstance(values["classes"], list)
        and isinstance(values["metrics"], dict)
        and isinstance(values["inputs"], dict)
        and {"known_classes", "champion"} <= values["inputs"].keys()
        and isinstance(values.get("rolls_back"), (int, type(None)))
    )
    if not typed:
        raise ValueError("an entry's values are of other types than they should be")
    # What an older registry did not know yet has a default.
    known = [one.name for one in fields(Entry) if one.name in values or one.default is MISSING]
    return Entry(**{name: values[name] for name in known})


def read_object(path: Path) -> dict[str, Any] | None:
    """Returns the JSON object in a file; None where there is no such file, or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def known_columns(path: Path) -> dict[str, list[str]]:
    """Returns the classes of the class heads beside the label, by column, of an export."""
    facts = read_object(path / "assets.extra" / MODEL_FACTS) or {}
    return {
        head["column"]: list(head["classes"])
        for head in facts.get("heads", ())
        if head["kind"] == "class"
    }


def numbers(root: Path) -> list[int]:
    """Returns the numbers of the version directories, whatever they hold."""
    if not root.is_dir():
        return []
    return [int(entry.name) for entry in root.iterdir() if entry.name.isdecimal()]


def models(root: Path) -> list[int]:
    """Returns the versions that TF Serving can load."""
    return [
        version for version in numbers(root) if (root / str(version) / "saved_model.pb").is_file()
    ]


def copy(source: Path, target: Path) -> None:
    """Copies a directory and waits until the disk holds it."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_dir():
            copy(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)
            sync(target / path.name)
    sync(target)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes beside `path`, then renames, and waits until the disk holds it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until the disk holds a file, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
