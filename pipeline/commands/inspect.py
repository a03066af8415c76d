"""`safelight inspect DATA`: what ingest would see, without running anything.

The data is listed as ingest lists it, and images are decoded by the same children: all of them, or
an even sample of a large collection. Neither TensorFlow nor TFX is imported.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline import console, images
from pipeline.config import Ingest
from pipeline.errors import UsageError, bounded
from pipeline.ingest import corrections, decide, listing, records, wire
from pipeline.ingest.child import Bad, Good
from pipeline.ingest.entries import (
    LINE_BREAK,
    MULTI_LABEL,
    Entry,
    Listing,
    Problem,
    path_hash,
    shown,
)
from pipeline.ingest.pool import Pool, chunks, settings_for, worker_count
from pipeline.ingest.scan import fingerprint
from pipeline.ingest.splits import Rule, group_key

SAMPLE = 5000
SHEET_CLASSES = 20
SHEET_IMAGES = 10
_EXAMPLES = 5
_CELL = 96
_MARGIN = 150
_ROW = 8


@dataclass(frozen=True)
class Found:
    """A kind of problem: how many images have it, and the first few of them."""

    count: int
    examples: list[str]


@dataclass(frozen=True)
class Inspection:
    """What ingest would see.

    Attributes:
      data: as it was given.
      form: folders, splits, manifest or tfrecords.
      splits: a sentence on where the splits come from.
      files: images that the data names.
      bytes: their size.
      looked_at: how many of them were decoded.
      per_class: images by class and split, of those that were decoded and would be kept.
      formats: by what the files are.
      converted: images that would be stored as PNG instead, by why.
      channels: images by 1 (grey) and 3 (colour).
      width: smallest, median and largest, in pixels.
      height: smallest, median and largest, in pixels.
      problems: what would be quarantined, by reason.
      duplicates: images whose pixels stand in the data more than once, beyond the first.
      ignored: names of stray files, the first 20.
      ignored_count: how many there are.
      advice: sentences on what would stop a run, or make a poor one.
      fingerprint: of the data.
    """

    data: str
    form: str
    splits: str
    files: int
    bytes: int
    looked_at: int
    per_class: dict[str, dict[str, int]]
    formats: dict[str, int]
    converted: dict[str, int]
    channels: dict[str, int]
    width: tuple[int, int, int] | None
    height: tuple[int, int, int] | None
    problems: dict[str, Found]
    duplicates: int
    ignored: list[str]
    ignored_count: int
    advice: list[str]
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-serializable values."""
        return asdict(self)


def inspect(
    data: str,
    options: Ingest,
    sample: int = SAMPLE,
    sheet: Path | None = None,
    verify: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_copied: Callable[[int, int], None] = lambda done, total: None,
) -> Inspection:
    """Looks at DATA as ingest would.

    Args:
      data: a folder, a manifest or a TFRecord file; a path, or an address in a bucket.
      options: the `ingest` section.
      sample: decode at most this many images, spread evenly by hash; 0 decodes all.
      sheet: where to write a contact sheet (PNG), if anywhere.
      verify: whether the fingerprint reads every file's content.
      on_progress: is called with (images done, images to do).
      on_copied: is called with (bytes here, bytes in all) while data in a bucket is copied.

    Raises:
      DataRefused: the data can't be trained on, whatever its images hold.
      SafelightError: data in a bucket can't be read or copied.
    """
    with listing.readable(data):
        found = listing.read(data, options, on_copied)
    entries = found.entries
    if sample and len(entries) > sample:
        entries = sorted(entries, key=lambda entry: path_hash(entry.id))[:sample]
    look = _Look(found, options, fingerprint(found, verify), sheet is not None)
    with tempfile.TemporaryDirectory(prefix="safelight-") as unpacked:
        records.unpack_all(found, Path(unpacked))
        settings = settings_for(found, options, Path(unpacked))
        workers = worker_count(options.workers, len(entries))
        with Pool(workers, settings, options.file_seconds) as pool:
            coming = iter(entries)
            for results in pool.map(chunks(entries)):
                for result in results:
                    look.take(next(coming), result)
                on_progress(look.taken, len(entries))
    if sheet is not None:
        contact_sheet(look.shown, sheet)
    return look.result(data)


class _Look:
    """Gathers what the children answer."""

    def __init__(self, found: Listing, options: Ingest, of_data: str, showing: bool) -> None:
        self.taken, self._showing = 0, showing
        self.shown: dict[str, list[bytes]] = {}
        self._found = found
        self._options = options
        self._fingerprint = of_data
        self._rule = Rule(options.shares, found.given)
        self._problems = list(found.problems)
        self._kept: list[tuple[bytes, bytes, str, str, str | None]] = []
        self._formats: Counter[str] = Counter()
        self._converted: Counter[str] = Counter()
        self._channels: Counter[str] = Counter()
        self._sizes: list[tuple[int, int]] = []

    def take(self, entry: Entry, result: Good | Bad) -> None:
        """Takes one image's outcome."""
        self.taken += 1
        if isinstance(result, Bad):
            self._problems.append(Problem(entry.id, result.reason, result.detail, result.label))
            return
        key = result.sha256 if result.group is None else group_key(result.group)
        split = self._rule.split_of(entry.split, key)
        self._kept.append((entry.id, bytes(result.sha256), result.label, split, result.group))
        original = result.converted if result.converted in ("webp", "tiff", "bmp", "gif") else None
        self._formats[original or result.format] += 1
        if result.converted is not None:
            self._converted[result.converted] += 1
        self._channels[str(result.channels)] += 1
        self._sizes.append((result.width, result.height))
        if self._showing:
            self._show(result)

    def _show(self, image: Good) -> None:
        pictures = self.shown.setdefault(image.label, [])
        if len(self.shown) > SHEET_CLASSES:  # that is all the sheet has, and files may be large
            del self.shown[max(self.shown)]
        if len(pictures) < SHEET_IMAGES:
            encoded = wire.unpack(image.record)["image"][0]
            assert isinstance(encoded, bytes)
            pictures.append(encoded)

    def result(self, data: str) -> Inspection:
        """Returns all that was seen."""
        decisions = decide.decide(_index(self._kept))
        problems = [*self._problems, *decisions.problems]
        per_class: dict[str, dict[str, int]] = {}
        for row, code in zip(self._kept, decisions.codes, strict=True):
            if code == decide.KEEP:
                counts = per_class.setdefault(row[2], {"train": 0, "eval": 0, "test": 0})
                counts[row[3]] += 1
        found = self._found
        widths, heights = (
            (sorted(side) for side in zip(*self._sizes, strict=True)) if (self._sizes) else ([], [])
        )
        return Inspection(
            data=data,
            form=found.form,
            splits=self._rule.describe(),
            files=len(found.entries),
            bytes=sum(entry.size for entry in found.entries),
            looked_at=self.taken,
            per_class=dict(sorted(per_class.items())),
            formats=dict(self._formats.most_common()),
            converted=dict(self._converted.most_common()),
            channels=dict(self._channels.most_common()),
            width=_spread(widths),
            height=_spread(heights),
            problems=_by_reason(problems),
            duplicates=decisions.count(decide.DUPLICATE, decide.SPLIT_DUPLICATE),
            ignored=found.ignored.names,
            ignored_count=found.ignored.count,
            advice=_advice(self._options, per_class, problems, self.taken, found),
            fingerprint=self._fingerprint,
        )


def command(
    data: str,
    options: Ingest,
    sample: int,
    sheet: Path | None,
    as_json: bool = False,
    verify: bool = False,
) -> None:
    """Runs `safelight inspect`: what was seen goes to standard output, progress to standard error.

    Raises:
      DataRefused: the data can't be trained on, whatever its images hold.
      UsageError: `sheet` is no .png file, or in a folder that is not there.
    """
    _check_sheet(sheet)
    with console.stderr.status(f"looking at {escape(data)}") as status:

        def tell(done: int, total: int) -> None:
            status.update(f"{done:,} of {total:,} images")

        def tell_copied(done: int, total: int) -> None:
            status.update(f"copying {escape(data)}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")

        seen = inspect(data, options, sample, sheet, verify, tell, tell_copied)
    if as_json:
        sys.stdout.write(json.dumps(seen.to_dict()) + "\n")
    else:
        show(seen, console.stdout)


def _check_sheet(sheet: Path | None) -> None:
    if sheet is None:
        return
    if sheet.suffix.lower() != ".png":
        raise UsageError(f"--sheet {sheet} is not a .png file; name one, as in sheet.png.")
    if sheet.is_dir():
        raise UsageError(f"--sheet {sheet} is a folder; name a file, as in sheet.png.")
    if not sheet.absolute().parent.is_dir():
        raise UsageError(f"--sheet {sheet}: there is no folder {sheet.absolute().parent}.")


def show(seen: Inspection, screen: Console) -> None:
    """Prints an inspection for people."""
    size = f"{seen.bytes / 1e6:,.1f} MB"
    screen.print(f"[bold]{escape(seen.data)}[/]: {seen.form}, {seen.files:,} images, {size}")
    if seen.looked_at < seen.files:
        screen.print(f"  looked into {seen.looked_at:,} of them, spread evenly")
    screen.print(f"  splits: {escape(seen.splits)}")
    for title, counts in (("formats", seen.formats), ("stored as PNG", seen.converted)):
        if counts:
            screen.print(f"  {title}: " + ", ".join(f"{n:,} {name}" for name, n in counts.items()))
    if seen.width and seen.height:
        screen.print(f"  width {_range(seen.width)}, height {_range(seen.height)} pixels")
    grey, colour = seen.channels.get("1", 0), seen.channels.get("3", 0)
    screen.print(f"  {colour:,} in colour, {grey:,} grey; {seen.duplicates:,} exact duplicates")
    if seen.ignored_count:
        screen.print(f"  ignored: {escape(bounded(seen.ignored))} ({seen.ignored_count:,})")
    screen.print(_class_table(seen))
    if seen.problems:
        screen.print(_problem_table(seen))
    for line in seen.advice:
        screen.print(f"  [yellow]note:[/] {escape(line)}")
    screen.print(f"  fingerprint {seen.fingerprint}", style="dim", soft_wrap=True)


def contact_sheet(pictures: Mapping[str, Sequence[bytes]], path: Path) -> None:
    """Writes a PNG with a row of pictures for each class, the first SHEET_CLASSES by name."""
    rows = sorted(pictures.items())[:SHEET_CLASSES]
    size = (_MARGIN + SHEET_IMAGES * (_CELL + _ROW), max(1, len(rows)) * (_CELL + _ROW) + _ROW)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, (label, encoded) in enumerate(rows):
        top = _ROW + row * (_CELL + _ROW)
        name = label if len(label) <= 20 else label[:19] + "…"
        draw.text((_ROW, top + _CELL // 2 - 6), name, fill="black", font_size=13)
        for column, data in enumerate(encoded):
            kept = images.prepare(data, min_side=1, max_pixels=images.MOST_PIXELS)
            picture = images.to_image(kept.pixels).convert("RGB")
            scale = _CELL / max(picture.size)
            side = [max(1, round(length * scale)) for length in picture.size]
            small = picture.resize((side[0], side[1]), Image.Resampling.LANCZOS)
            left = _MARGIN + column * (_CELL + _ROW)
            sheet.paste(small, (left + (_CELL - side[0]) // 2, top + (_CELL - side[1]) // 2))
    sheet.save(path, "PNG")


def _index(kept: list[tuple[bytes, bytes, str, str, str | None]]) -> decide.Index:
    labels = sorted({row[2] for row in kept})
    groups = sorted({row[4] for row in kept if row[4] is not None})
    label_codes = {name: code for code, name in enumerate(labels)}
    group_codes = {name: code for code, name in enumerate(groups)}
    split_codes = {"train": 0, "eval": 1, "test": 2}
    return decide.Index(
        sha256=np.frombuffer(b"".join(row[1] for row in kept), np.uint64).reshape(-1, 4),
        labels=np.array([label_codes[row[2]] for row in kept], np.int32),
        splits=np.array([split_codes[row[3]] for row in kept], np.int8),
        groups=np.array([-1 if r[4] is None else group_codes[r[4]] for r in kept], np.int32),
        ids=lambda position: kept[position][0],
        label_names=labels,
        group_names=groups,
    )


def _by_reason(problems: Sequence[Problem]) -> dict[str, Found]:
    gathered: dict[str, list[str]] = {}
    for problem in sorted(problems, key=lambda problem: (problem.reason, problem.path)):
        gathered.setdefault(problem.reason, []).append(f"{shown(problem.path)}: {problem.detail}")
    return {reason: Found(len(lines), lines[:_EXAMPLES]) for reason, lines in gathered.items()}


def _advice(
    options: Ingest,
    per_class: dict[str, dict[str, int]],
    problems: Sequence[Problem],
    taken: int,
    found: Listing,
) -> list[str]:
    lines = []
    total = taken + len(found.problems)
    # What a person has left out counts against no budget.
    bad = sum(problem.reason != corrections.REMOVED for problem in problems)
    if bad > options.error_budget * total:
        lines.append(
            f"{bad} of {total} files are bad, more than ingest.error_budget "
            f"({options.error_budget:.1%}): a run would be refused (exit 4)."
        )
    label = next((one for one in problems if one.reason in (MULTI_LABEL, LINE_BREAK)), None)
    if label is not None:
        why = f"{shown(label.path)}: {label.detail}"
        lines.append(f"A run would be refused (exit 4) for one label. {why}")
    if len(per_class) < 2:
        lines.append("Fewer than two classes have a usable image: a run would be refused (exit 4).")
    missing = [
        f"{name} ({', '.join(split for split, count in counts.items() if not count)})"
        for name, counts in sorted(per_class.items())
        if not all(counts.values())
    ]
    if missing:
        lines.append(f"Classes without an image in a split: {bounded(missing)}.")
    sizes = [sum(counts.values()) for counts in per_class.values()]
    if sizes and max(sizes) > 20 * min(sizes):
        lines.append(f"The largest class has {max(sizes)} images, the smallest {min(sizes)}.")
    return lines


def _spread(ordered: Sequence[int]) -> tuple[int, int, int] | None:
    return (ordered[0], ordered[len(ordered) // 2], ordered[-1]) if ordered else None


def _range(spread: tuple[int, int, int]) -> str:
    low, middle, high = spread
    return f"{low}" if low == high else f"{low}–{high} (median {middle})"


def _class_table(seen: Inspection) -> Table:
    table = Table("class", "train", "eval", "test", title="what would be kept", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, counts in seen.per_class.items():
        table.add_row(escape(name), *(f"{counts[split]:,}" for split in ("train", "eval", "test")))
    return table


def _problem_table(seen: Inspection) -> Table:
    table = Table("problem", "files", "for example", title="what would be quarantined", box=None)
    for reason, found in seen.problems.items():
        table.add_row(reason, f"{found.count:,}", escape("\n".join(found.examples[:3])))
    return table
