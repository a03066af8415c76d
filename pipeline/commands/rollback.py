"""`safelight rollback`, `pin`, `unpin`, and the release of a span: what an operator decides."""

from __future__ import annotations

import getpass
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from pipeline import console, registry
from pipeline.errors import UsageError
from pipeline.registry import Registry
from pipeline.retrain.book import Book
from pipeline.retrain.ledger import Ledger
from pipeline.retrain.rounds import FOLDER
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
      Busy: somebody else holds the workdir.
    """
    _check_reason(reason)
    with _opened(workdir, model, wait) as (place, serving):
        book = Book(place.root / FOLDER)
        span = None if quarantine is None else book.find(quarantine)
        entry = serving.rollback(operator(), reason, to)
        ledger = Ledger(place.root / FOLDER)
        ledger.add(
            time.time(), "rollback", version=entry.version, by=entry.by, why=reason,
            restores=entry.restores, rolls_back=entry.rolls_back,
        )  # fmt: skip
        if span is not None:
            book.quarantine(span, f"rolled back: {reason}")
            ledger.add(
                time.time(), "quarantine", span=span.number, revision=span.revision, reason=reason
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


def pin(workdir: Path, reason: str, model: str | None = None, wait: bool = False) -> int:
    """Holds what is served against pushes and rollbacks; the arguments are `rollback`'s."""
    _check_reason(reason)
    with _opened(workdir, model, wait) as (place, serving):
        pinned = serving.pin(operator(), reason)
        Ledger(place.root / FOLDER).add(
            time.time(), "pin", version=pinned.version, by=pinned.by, why=reason
        )
    console.stdout.print(f"Version {pinned.version} is pinned until: safelight unpin")
    return 0


def unpin(workdir: Path, model: str | None = None, wait: bool = False) -> int:
    """Takes the pin away; the arguments are `rollback`'s."""
    with _opened(workdir, model, wait) as (place, serving):
        pinned = serving.unpin()
        if pinned is not None:
            Ledger(place.root / FOLDER).add(
                time.time(), "unpin", version=pinned.version, by=operator(), why=pinned.why
            )
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
        Ledger(place.root / FOLDER).add(
            time.time(), "release", span=span, revision=record.revision, by=operator(), why=reason
        )
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
