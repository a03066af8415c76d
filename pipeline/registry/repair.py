"""What a dead process left of a push, and a registry that is damaged, are put right here.

Whatever is found is settled by the version directories: they are what TF Serving serves.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline import events, versions
from pipeline.registry.entries import live

if TYPE_CHECKING:
    from pipeline.registry import Registry

FILE: Final = "registry.json"


def finish(registry: Registry, version: int) -> None:
    """Commits a push whose model stands in its place; drops one whose model does not."""
    if version in versions.models(registry.root):
        registry.commit(versions.recovered(registry.root, version))
    else:
        registry.write()


def agree(registry: Registry) -> None:
    """Makes `current` what TF Serving serves: the highest version that is there."""
    models = set(versions.models(registry.root))
    known = {entry.version for entry in registry.entries}
    strange = sorted(models - known)
    highest = max(models, default=None)
    if highest == registry.current and not strange:
        return
    for version in strange:
        registry.entries.append(versions.recovered(registry.root, version))
    registry.entries.sort(key=lambda entry: entry.version)
    events.warn(
        f"{registry.root / FILE} did not agree with the version directories beside it: it said "
        f"version {registry.current} is served, and the highest there is {highest}. "
        "It follows the directories now."
    )
    _make_current(registry, highest)


def put_aside(root: Path) -> str:
    """Keeps a damaged file under another name; returns a sentence on it, "" without one."""
    damaged = root / FILE
    if not damaged.exists():
        return ""
    os.replace(damaged, root / f"{FILE}.damaged")
    return f" The old file is kept as {FILE}.damaged."


def rebuilt(registry: Registry, kept: str) -> None:
    """Writes a registry that was read from the version directories, and warns; `kept` is told."""
    _make_current(registry, registry.current)
    events.warn(
        f"{registry.root / FILE} was missing or damaged. It was rebuilt from the version "
        f"directories beside it: {len(registry.entries)} found, version {registry.current} is "
        f"served. A pin, if there was one, is lost.{kept}"
    )


def remove_incoming(root: Path) -> None:
    """Removes what a push that was never finished had copied."""
    for path in root.glob(".*.incoming"):
        shutil.rmtree(path)


def _make_current(registry: Registry, version: int | None) -> None:
    registry.current = version
    registry.entries = live(registry.entries, version)
    registry.write()
