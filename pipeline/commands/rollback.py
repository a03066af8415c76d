"""`safelight rollback`, `pin`, `unpin`, and the release of a span: what an operator decides."""

from __future__ import annotations

import getpass
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape

from pipeline import console, registry
from pipeline.errors import SafelightError, UsageError
from pipeline.registry import Registry
from pipeline.retrain.book import Book, Record
from pipeline.retrain.ledger import Ledger
from pipeline.retrain.rounds import FOLDER
from pipeline.versions import Entry
from pipeline.workdir import Workdir, open_workdir


def rollback(
    workdir: Path,
    reason: str,
    to: int | None = None,
    quarantine: int | None = None,
    model: str | None = None,
    wait: bool = False,
    as_json: bool = False,
) -> int:
    """Serves an older model again, and returns the exit code.

    The span goes into quarantine first, and the ledger is last: where the command dies between, the
    same command again does what is left, and goes back no further.

    Args:
      workdir: where the model is served from.
      reason: why.
      to: a version; by default the newest good one before the current.
      quarantine: the number of the span that caused it, never to be trained on again.
      model: its name, where there are several.
      wait: for the workdir, where somebody else holds it.
      as_json: print the new entry as one JSON object.

    Raises:
      UsageError: no reason, no such version or span, or nothing to go back to.
      NotBlessed: what is served is pinned.
      SafelightError: the span's quarantine or the model can't be written; it says what is served.
      Busy: somebody else holds the workdir.
    """
    _check_reason(reason)
    with _opened(workdir, model, wait) as (place, serving):
        book = Book(place.root / FOLDER)
        span = None if quarantine is None else book.find(quarantine)
        done = _unrecorded(place, serving, reason, to)
        if done is None:
            serving.rollback_between(to)  # what it refuses is refused before anything is written
        if span is not None:
            _put_aside(place, book, span, reason)
        entry = done or serving.rollback(operator(), reason, to)
        _record(
            place, "rollback", model=serving.root.name, version=entry.version, by=entry.by,
            why=reason, restores=entry.restores, rolls_back=entry.rolls_back,
        )  # fmt: skip
    if done is not None:
        console.stderr.print(
            "An earlier call had done it, and not recorded it: it is recorded now."
        )
    if as_json:
        sys.stdout.write(json.dumps(asdict(entry)) + "\n")
    else:
        console.stdout.print(
            f"Version {entry.version} is served: the model of version {entry.restores}. "
            f"Version {entry.rolls_back} will not come back."
        )
        if span is not None:
            console.stdout.print(f"Span {span.number} is in quarantine.")
    return 0


def _unrecorded(place: Workdir, serving: Registry, reason: str, to: int | None) -> Entry | None:
    """Returns the rollback that an earlier call like this one made and did not record, or None.

    To go back once more would ban the good version that it brought back.
    """
    entry = serving.champion()
    if entry is None or entry.rolls_back is None or entry.why != reason:
        return None
    if to not in (None, entry.restores):
        return None
    name = serving.root.name
    recorded = any(
        line["kind"] == "rollback"
        and line.get("version") == entry.version
        and line.get("model", name) == name
        for line in Ledger(place.root / FOLDER).read()
    )
    return None if recorded else entry


def _put_aside(place: Workdir, book: Book, span: Record, reason: str) -> None:
    try:
        book.quarantine(span, f"rolled back: {reason}")
    except OSError as error:
        raise SafelightError(
            f"Span {span.number} could not be put into quarantine ({error}): nothing has changed. "
            "Free some space or mend the folder's permissions, and run the same command again."
        ) from error
    _record(place, "quarantine", span=span.number, revision=span.revision, reason=reason)


def _record(place: Workdir, kind: str, **fields: Any) -> None:
    """Adds a line to the ledger; what it tells of is done, and stands without it."""
    try:
        Ledger(place.root / FOLDER).add(time.time(), kind, **fields)
    except OSError as error:
        console.stderr.print(
            f"[yellow]warning:[/] the {kind} is done, and the ledger does not have it: "
            f"{escape(str(error))}"
        )


def pin(workdir: Path, reason: str, model: str | None = None, wait: bool = False) -> int:
    """Holds what is served against pushes and rollbacks; the arguments are `rollback`'s."""
    _check_reason(reason)
    with _opened(workdir, model, wait) as (place, serving):
        pinned = serving.pin(operator(), reason)
        _record(place, "pin", version=pinned.version, by=pinned.by, why=reason)
    until = f"safelight unpin --workdir {shlex.quote(str(workdir))}"
    console.stdout.print(
        f"Version {pinned.version} is pinned until: {until}", markup=False, soft_wrap=True
    )
    return 0


def unpin(workdir: Path, model: str | None = None, wait: bool = False) -> int:
    """Takes the pin away; the arguments are `rollback`'s."""
    with _opened(workdir, model, wait) as (place, serving):
        pinned = serving.unpin()
        if pinned is not None:
            _record(place, "unpin", version=pinned.version, by=operator(), why=pinned.why)
    said = "Nothing was pinned." if pinned is None else f"Version {pinned.version} is free again."
    console.stdout.print(said)
    return 0


def release(workdir: Path, span: int, reason: str, wait: bool = False) -> int:
    """Takes a span out of quarantine, and returns the exit code.

    Args:
      workdir: with the book of spans.
      span: its number; an operator has looked at it.
      reason: why.
      wait: for the workdir, where somebody else holds it.

    Raises:
      UsageError: no reason, or no such span in quarantine.
      Busy: somebody else holds the workdir.
    """
    _check_reason(reason)
    place = open_workdir(workdir, create=False)
    with place.lock(wait):
        record = Book(place.root / FOLDER).release(span)
        _record(place, "release", span=span, revision=record.revision, by=operator(), why=reason)
    console.stdout.print(f"Span {span} is out of quarantine: the next round takes it as new.")
    return 0


def operator() -> str:
    """Returns the name of who runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


@contextmanager
def _opened(workdir: Path, model: str | None, wait: bool) -> Iterator[tuple[Workdir, Registry]]:
    place = open_workdir(workdir, create=False)
    with place.lock(wait):
        yield place, registry.open(place.served(model))


def _check_reason(reason: str) -> None:
    if not reason.strip():
        raise UsageError('A reason is needed, for whoever asks later: --reason "blurred images".')
