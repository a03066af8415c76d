"""`safelight gc`: frees the artifacts and checkpoints that nothing needs any more.

Kept are those of the newest runs, of runs without an end, of every version that can be served
again (current, pinned, older ones that were not rolled back), and of spans that can still be
trained on. What goes is first renamed, so that no cache hit points at a half, then marked in ML
Metadata, then deleted; on a full disk, where nothing can be marked, it is emptied before.
gc_checkpoints.py says which checkpoints go.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import console, registry, runs
from pipeline.commands import gc_checkpoints
from pipeline.errors import SafelightError, first_line
from pipeline.retrain.book import Book
from pipeline.retrain.rounds import FOLDER
from pipeline.runs import RunDir
from pipeline.workdir import Workdir, open_workdir

if TYPE_CHECKING:
    from ml_metadata.metadata_store import MetadataStore

_GOING = ".going"
_NOTHING = "nothing has gone"
# SQLite's journal takes less than that.
_ROOM = 1024**2


@dataclass(frozen=True)
class Plan:
    """What is freed: artifacts and how many bytes these give back, and each checkpoint's bytes."""

    going: tuple[Path, ...]
    kept: int
    bytes: int
    checkpoints: Mapping[Path, int] = field(default_factory=dict)

    @property
    def all_bytes(self) -> int:
        """What artifacts and checkpoints give back together."""
        return self.bytes + sum(self.checkpoints.values())


def command(
    workdir: Path, keep: int, dry_run: bool = False, wait: bool = False, as_json: bool = False
) -> int:
    """Frees what nothing needs, says how much that was, and returns the exit code.

    Args:
      workdir: a workdir.
      keep: newest runs whose artifacts all stay.
      dry_run: only say what would go.
      wait: for the workdir, where somebody else holds it.
      as_json: print one JSON object.

    Raises:
      Busy: a run holds the workdir.
      SafelightError: ML Metadata can't be reached; then nothing has gone.
    """
    place = open_workdir(workdir, create=False)
    with place.lock(wait):
        found = plan(place, keep)
        if not dry_run:
            free(place, found)
    _tell(found, dry_run, as_json)
    return 0


def _tell(found: Plan, dry_run: bool, as_json: bool) -> None:
    if as_json:
        facts = {
            "freed": [str(one) for one in found.going],
            "kept": found.kept,
            "checkpoints": {str(path): size for path, size in found.checkpoints.items()},
            "bytes": found.all_bytes,
            "dry_run": dry_run,
        }
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    verb = "would go" if dry_run else "are gone"
    console.stdout.print(
        f"{len(found.going)} artifacts {verb} ({found.bytes / 1e6:.1f} MB); {found.kept} stay."
    )
    if found.checkpoints:
        console.stdout.print(
            f"{len(found.checkpoints)} checkpoints of training that nothing goes on with {verb} "
            f"({sum(found.checkpoints.values()) / 1e6:.1f} MB):"
        )
    for path, size in found.checkpoints.items():
        console.stdout.print(f"  {path.name}  {size / 1e6:.1f} MB", markup=False)


def plan(workdir: Workdir, keep: int) -> Plan:
    """Returns what would go; the workdir must be held."""
    everything = list(runs.all_runs(workdir.runs))
    needed = needed_uris(workdir, keep)
    going, kept = [], 0
    for path in _artifacts(workdir.artifacts):
        if str(path) in needed:
            kept += 1
        else:
            going.append(path)
    unused = gc_checkpoints.abandoned(workdir, everything, keep)
    sizes = {path: _bytes([path]) for path in unused}
    return Plan(tuple(going), kept, _bytes(going), sizes)


def free(workdir: Workdir, found: Plan) -> None:
    """Frees what the plan names, and what an earlier, interrupted call left behind.

    Raises:
      SafelightError: ML Metadata can't be reached; then nothing has gone, unless the disk is full.
    """
    store = _store(workdir) if found.going or _left(workdir) else None
    going = {
        path: path.with_name(f".{path.name}{_GOING}") for path in (*found.going, *found.checkpoints)
    }
    for path, hidden in going.items():
        path.rename(hidden)
    left = _left(workdir)
    unknown = list(workdir.checkpoints.glob(f".*{_GOING}"))  # to ML Metadata
    try:
        _mark(store, left)
    except SafelightError:
        if shutil.disk_usage(workdir.root).free > _ROOM:
            for path, hidden in going.items():
                hidden.rename(path)
            raise
        # Full: a database takes room to write, and what goes makes it. The folders stay, by which
        # the next call knows what is left to mark.
        for path in (*left, *unknown):
            _empty(path)
        _mark(_store(workdir), left, "the files are gone, and it does not know so yet")
    for path in (*left, *unknown):
        shutil.rmtree(path)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _left(workdir: Workdir) -> list[Path]:
    return list(workdir.artifacts.glob(f"*/*/.*{_GOING}"))


def needed_uris(workdir: Workdir, keep: int) -> set[str]:
    """Returns the artifacts that must stay."""
    everything = list(runs.all_runs(workdir.runs))
    names = {run.root.name for run in everything[-keep:]}
    names |= {run.root.name for run in everything if not run.result.is_file()}
    needed: set[str] = set()
    for root in workdir.models:
        for entry in registry.read(root).entries:
            if entry.status != "rolled_back":
                names.add(entry.run_id)
                needed.add(entry.model_uri)
    for run in everything:
        if run.root.name in names:
            needed |= _uris(run)
    return needed | _span_uris(workdir)


def _uris(run: RunDir) -> set[str]:
    try:
        return {uri for outputs in run.read_artifacts().values() for uri in outputs.values()}
    except SafelightError as error:
        raise SafelightError(
            f"What a run needs can't be told, so that nothing has gone. {error}"
        ) from None


def _span_uris(workdir: Workdir) -> set[str]:
    """Returns what was made of spans that a later window may hold."""
    usable = {record.name for record in Book(workdir.root / FOLDER).usable()}
    return {
        str(path)
        for path in _artifacts(workdir.artifacts)
        if path.parts[-3].partition(".")[2] in usable
    }


def _artifacts(root: Path) -> Iterator[Path]:
    """Yields <root>/<node>/<output>/<execution>."""
    for path in sorted(root.glob("*/*/*")):
        if path.name.isdecimal() and not path.parts[-2].startswith("."):
            yield path


def _bytes(paths: Iterable[Path]) -> int:
    """Returns what their deletion gives back: a file that others link to as well gives nothing."""
    total = 0
    found: Counter[tuple[int, int]] = Counter()
    for path in paths:
        for folder, _, files in os.walk(path):
            for name in files:
                status = Path(folder, name).lstat()
                file = (status.st_dev, status.st_ino)
                found[file] += 1
                total += status.st_size if found[file] == status.st_nlink else 0
    return total


def _store(workdir: Workdir) -> MetadataStore:
    from ml_metadata import metadata_store

    from pipeline.runners.metadata import connection_config

    config = connection_config(_metadata_url(workdir), workdir.metadata)
    with _told():
        return metadata_store.MetadataStore(config)


def _mark(store: MetadataStore, renamed: list[Path], so: str = _NOTHING) -> None:
    """Marks the artifacts as deleted in ML Metadata, where it knows them; `so` is `_told`'s."""
    if not renamed:
        return
    from ml_metadata.proto import metadata_store_pb2

    gone = []
    with _told(so):
        for path in renamed:
            uri = path.with_name(path.name.removeprefix(".").removesuffix(_GOING))
            for artifact in store.get_artifacts_by_uri(str(uri)):
                artifact.state = metadata_store_pb2.Artifact.DELETED
                gone.append(artifact)
        if gone:
            store.put_artifacts(gone)


@contextmanager
def _told(so: str = _NOTHING) -> Iterator[None]:
    """Makes an error of ML Metadata one of ours; `so` says what has gone until then."""
    from ml_metadata import errors

    try:
        yield
    except (errors.StatusError, RuntimeError) as error:
        raise SafelightError(
            f"ML Metadata can't be reached ({first_line(error)}): {so}. Start its server or mend "
            "its file, and run the same command again."
        ) from error


def _metadata_url(workdir: Workdir) -> str:
    """Returns where the newest run kept its metadata; "" for the workdir's own file."""
    newest = list(runs.all_runs(workdir.runs))[-1:]
    if not newest:
        return ""
    url: str = newest[0].read_request().config["metadata"]["url"]
    return url
