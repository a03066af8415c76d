"""What is taken out once every image has been seen: duplicates and contradictions.

All decisions are removals, so that a shard without one is finished as it was first written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.ingest.entries import Problem, shown

# Codes of a decision.
KEEP, DUPLICATE, SPLIT_DUPLICATE, GROUP_STRADDLES, NEAR_DUPLICATE, CONFLICT = range(6)
KINDS = ("keep", "duplicate", "split_duplicate", "group_straddles", "near_duplicate", "conflict")


@dataclass(frozen=True)
class Index:
    """What the decisions look at; one element for each image that was decoded.

    Attributes:
      sha256: of the pixels, uint64 [images, 4].
      labels: codes, int32 [images].
      splits: codes, int8 [images]; the higher, the further from training.
      groups: codes, int32 [images]; -1 without a group.
      ids: returns the id of an image by its position.
      label_names: of the codes.
      group_names: of the codes.
    """

    sha256: npt.NDArray[np.uint64]
    labels: npt.NDArray[np.int32]
    splits: npt.NDArray[np.int8]
    groups: npt.NDArray[np.int32]
    ids: Callable[[int], bytes]
    label_names: list[str]
    group_names: list[str]


@dataclass
class Decisions:
    """The outcome.

    Attributes:
      codes: int8 [images], KEEP or why not.
      pairs: (removed, kept) positions of duplicates.
      problems: what the conflicts add to the quarantine.
    """

    codes: npt.NDArray[np.int8]
    pairs: list[tuple[int, int]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def count(self, *codes: int) -> int:
        """Returns how many images got one of these codes."""
        return int(np.isin(self.codes, codes).sum())


def decide(index: Index) -> Decisions:
    """Finds duplicates, `label_conflict`, `group_conflict` and groups that stand in two splits.

    Of equal images, the one furthest from training is kept; then one that has a group; then the
    first by id. In which order the images came plays no part.
    """
    decisions = Decisions(np.zeros(len(index.labels), np.int8))
    for same in _equal_runs(index.sha256):
        if _conflict(index, same, index.labels, index.label_names, "label_conflict", decisions):
            continue
        if _conflict(index, same, index.groups, index.group_names, "group_conflict", decisions):
            continue
        kept = min(
            (int(position) for position in same),
            key=lambda p: (-index.splits[p], index.groups[p] < 0, index.ids(p)),
        )
        for position in same:
            if position != kept:
                alike = index.splits[position] == index.splits[kept]
                decisions.codes[position] = DUPLICATE if alike else SPLIT_DUPLICATE
                decisions.pairs.append((int(position), kept))
    _drop_straddling_groups(index, decisions)
    return decisions


def _equal_runs(sha256: npt.NDArray[np.uint64]) -> Iterator[npt.NDArray[np.int64]]:
    """Yields the positions of each set of two or more equal images."""
    if len(sha256) < 2:
        return
    order = np.lexsort(sha256.T)
    ordered = sha256[order]
    new = np.empty(len(order), bool)
    new[0] = True
    np.any(ordered[1:] != ordered[:-1], axis=1, out=new[1:])
    starts = np.flatnonzero(new)
    ends = np.append(starts[1:], len(order))
    for run in np.flatnonzero(ends - starts > 1):
        yield order[starts[run] : ends[run]]


def _conflict(
    index: Index,
    same: npt.NDArray[np.int64],
    codes: npt.NDArray[np.int32],
    names: list[str],
    reason: str,
    decisions: Decisions,
) -> bool:
    """Quarantines all of `same` if they don't agree; a missing group agrees with any."""
    different = np.unique(codes[same])
    different = different[different >= 0]
    if len(different) < 2:
        return False
    by_id = sorted((int(position) for position in same), key=index.ids)
    # Thousands may be equal (blank pages, "no picture" pictures): each names the first that is
    # unlike it, and that is one of two.
    first = next(p for p in by_id if codes[p] >= 0)
    second = next(p for p in by_id if codes[p] >= 0 and codes[p] != codes[first])
    for position in by_id:
        other = second if codes[position] == codes[first] else first
        detail = (
            f"the same pixels stand under {names[codes[other]]!r} too: {shown(index.ids(other))}"
        )
        label = index.label_names[index.labels[position]]
        decisions.problems.append(Problem(index.ids(position), reason, detail, label))
    decisions.codes[same] = CONFLICT
    return True


def _drop_straddling_groups(index: Index, decisions: Decisions) -> None:
    """Drops from the training side what belongs to a group that stands in two given splits."""
    grouped = np.flatnonzero((index.groups >= 0) & (decisions.codes == KEEP))
    if not len(grouped):
        return
    furthest = np.full(len(index.group_names), -1, np.int8)
    np.maximum.at(furthest, index.groups[grouped], index.splits[grouped])
    nearer = grouped[index.splits[grouped] < furthest[index.groups[grouped]]]
    decisions.codes[nearer] = GROUP_STRADDLES
