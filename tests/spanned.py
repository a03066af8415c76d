"""Workdirs and spans for what retraining decides, without a training."""

from __future__ import annotations

import time
from pathlib import Path

from pipeline import config, registry
from pipeline.retrain.book import Book
from pipeline.retrain.ledger import Ledger
from pipeline.retrain.rounds import Rounds
from pipeline.workdir import Workdir, open_workdir
from tests import made
from tests.test_registry import FIRST, export

COUNTS = {"blue": 4, "red": 4}
HELD = ("retrain.new_spans=0", "retrain.max_age_days=0")


def pushed(root: Path) -> Workdir:
    """Makes root/work, whose served version is of now: no training is due in it."""
    workdir = open_workdir(root / "work")
    registry.open(workdir.serving("model")).publish(export(root / "export"), FIRST)
    return workdir


def rounds(workdir, root: Path, *overrides: str, clock=time.time, **more) -> Rounds:
    effective = config.load(overrides=[*HELD, *overrides])
    return Rounds(workdir, root, effective, lambda event: None, clock, **more)


def decided(one: Rounds):
    """Takes, decides and records as a round does, and leaves the training out."""
    with one.workdir.lock():
        return one._decide("").done


def span(root: Path, number: int, complete: bool = True) -> Path:
    folder = made.class_folders(root / f"span-{number}", COUNTS)
    if complete:
        (folder / "_SUCCESS").touch()
    return folder


def take(one: Rounds) -> Book:
    """Takes the spans into the book, without the processes that look into them."""
    with one.workdir.lock():
        one._arrivals(Book(one.folder)).take()
    return Book(one.folder)


def kinds(workdir) -> list[str]:
    return [line["kind"] for line in Ledger(workdir.root / "retrain").read()]
