"""Cutting the images into pieces of work that are the same for the same data, wherever they run."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline import features
from pipeline.ingest.entries import Entry, Listing, path_hash
from pipeline.ingest.splits import Rule

# Shards of 100 to 200 MB, as large files are read best; the last of a split may be smaller.
SHARD_BYTES = 150_000_000
SHARD_MOST = 200_000_000
# What a record adds to its image: facts, names, framing.
RECORD_OVERHEAD = 600


def pieces(found: Listing, rule: Rule, shard_bytes: int = SHARD_BYTES) -> list[list[Entry]]:
    """Returns the entries in pieces whose training part makes about one shard each.

    Within and across pieces, images are ordered by the hash of their ids, so that every shard
    mixes the classes.
    """
    ordered = sorted(found.entries, key=lambda entry: path_hash(entry.id))
    target = shard_bytes / _training_share(ordered, rule)
    cut: list[list[Entry]] = []
    total = target + 1.0
    for entry in ordered:
        size = entry.size + RECORD_OVERHEAD
        if total + size > target:
            cut.append([])
            total = 0.0
        cut[-1].append(entry)
        total += size
    return cut


def save(cut: Sequence[Sequence[Entry]], folder: Path) -> None:
    """Writes each piece's entries to `folder`, for the workers to pick up by number."""
    for number, entries in enumerate(cut):
        with open(folder / f"plan-{number:05d}.pickle", "wb") as file:
            pickle.dump([tuple(entry) for entry in entries], file, protocol=5)


def load(folder: Path, number: int) -> list[Entry]:
    """Reads the entries of one piece."""
    with open(folder / f"plan-{number:05d}.pickle", "rb") as file:
        return [Entry(*values) for values in pickle.load(file)]


def groups_of_shards(
    sizes: Sequence[int], least: int = 100_000_000, most: int = SHARD_MOST
) -> Iterator[list[int]]:
    """Yields runs of neighbouring parts (by index) that make one shard each.

    A run is closed at `least` bytes, and before it would pass `most`; a small rest joins the run
    before it where it fits.
    """
    runs: list[list[int]] = []
    total = most + 1
    for index, size in enumerate(sizes):
        if total >= least or total + size > most:
            runs.append([])
            total = 0
        runs[-1].append(index)
        total += size
    if len(runs) > 1:
        rest = sum(sizes[index] for index in runs[-1])
        before = sum(sizes[index] for index in runs[-2])
        if rest < least and before + rest <= most:
            tail = runs.pop()
            runs[-1] += tail
    yield from runs


def _training_share(entries: Sequence[Entry], rule: Rule) -> float:
    if not rule.held_out:
        return max(rule.shares)
    training = sum(entry.split not in rule.held_out for entry in entries)
    return max(0.2, training / max(1, len(entries)))


SPLIT_CODES = {name: code for code, name in enumerate(features.SPLITS_WITH_CALIB)}
