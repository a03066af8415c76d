"""The quarantine: everything that is kept out, with a reason, and how much of it is too much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import features
from pipeline.errors import DataRefused, bounded
from pipeline.ingest import corrections, decide, piece, shards, thumbnail, wire
from pipeline.ingest.entries import LINE_BREAK, MULTI_LABEL, Problem, shown
from pipeline.ingest.rows import Rows


def table(
    listed: Sequence[Problem], decisions: decide.Decisions, rows: Rows, parts: Path, pieces: int
) -> pa.Table:
    """Returns all rows of quarantine.parquet (`piece.BAD`), in the order of their paths.

    Args:
      listed: what was known before anything was read.
      decisions: with the conflicts.
      rows: of all pieces.
      parts: the folder with the pieces' files.
      pieces: how many there are.
    """
    found = [pq.read_table(parts / f"bad-{number:05d}.parquet") for number in range(pieces)]
    pictures = _conflict_pictures(decisions, rows, parts)
    known: list[tuple[Any, ...]] = [(*problem, None) for problem in listed]
    known += [(*problem, pictures.get(problem.path)) for problem in decisions.problems]
    columns = list(zip(*known, strict=True)) if known else [()] * len(piece.BAD)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, piece.BAD, strict=True)]
    found.append(pa.table(arrays, schema=piece.BAD))
    return pa.concat_tables(found).sort_by("path")


def reasons(bad: pa.Table) -> dict[str, int]:
    """Returns how many there are of each reason."""
    return dict(sorted(Counter(bad["reason"].to_pylist()).items()))


def hold_budget(bad: pa.Table, total: int, budget: float) -> None:
    """Refuses data of which too much is bad.

    Args:
      bad: the quarantine.
      total: images that the data names.
      budget: the share of them that may be bad.

    Raises:
      DataRefused: more than that is bad, or an image has several labels or one with a line break.
    """
    _refuse_labels(bad)
    # What a person has left out is not the data's fault.
    bad = bad.filter(pc.not_equal(bad["reason"], corrections.REMOVED))
    if bad.num_rows <= budget * total:
        return
    counts = reasons(bad)
    told = []
    for reason, count in counts.items():
        examples = bad.filter(pc.equal(bad["reason"], reason))["path"].slice(0, 5).to_pylist()
        more = f" and {count - len(examples)} more" if count > len(examples) else ""
        told.append(f"{count} {reason}: {bounded([shown(path) for path in examples])}{more}")
    summed = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    raise DataRefused(
        f"{bad.num_rows} of {total} files are bad ({bad.num_rows / total:.1%}), more than "
        f"ingest.error_budget allows ({budget:.1%}): {summed}. Repair or remove them "
        "(`safelight inspect` lists them), or raise ingest.error_budget.",
        told,
    )


def _refuse_labels(bad: pa.Table) -> None:
    for reason, why in (
        (MULTI_LABEL, ". This is multi-label data, which Safelight does not train on."),
        (LINE_BREAK, ""),
    ):
        found = bad.filter(pc.equal(bad["reason"], reason)).slice(0, 1).to_pylist()
        if found:
            raise DataRefused(f"{shown(found[0]['path'])}: {found[0]['detail']}{why}")


def _conflict_pictures(decisions: decide.Decisions, rows: Rows, parts: Path) -> dict[bytes, bytes]:
    """Draws the first conflicting images, by their ids, from the records that were written."""
    conflicts = np.flatnonzero(decisions.codes == decide.CONFLICT)[: piece.DRAWN_PER_REASON]
    found = {}
    for position, record in shards.read(rows, conflicts.tolist(), parts):
        encoded = wire.unpack(record)[features.IMAGE][0]
        assert isinstance(encoded, bytes)
        picture = thumbnail.draw(encoded)
        if picture is not None:
            found[rows.index.ids(position)] = picture
    return found
