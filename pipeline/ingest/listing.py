"""What DATA holds, found without opening an image: its form, its files, their labels and splits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline.config import Ingest
from pipeline.config.slices import FACTS
from pipeline.errors import DataRefused, bounded, did_you_mean
from pipeline.ingest import buckets, corrections, manifest, records, walk
from pipeline.ingest.entries import (
    SPLIT_NAMES,
    Entry,
    Ignored,
    Listing,
    Problem,
    class_name,
    path_hash,
    shown,
)
from pipeline.ingest.splits import given_splits

_ARCHIVE = re.compile(r"\.(zip|tar|tgz|tar\.\w+|rar|7z)$", re.IGNORECASE)
_EXPECTED = (
    "Expected a folder with one folder of images for each class (DATA/<class>/…), split folders "
    "(DATA/train/<class>/…), a manifest (CSV or JSON lines) or TFRecords"
)


def read(
    data: str, options: Ingest, on_progress: buckets.Progress = lambda done, total: None
) -> Listing:
    """Lists DATA, in the order of the paths, at most `options.max_images` of it.

    Args:
      data: a folder, a manifest or a TFRecord file; a path, or an address in a bucket.
      options: the `ingest` section.
      on_progress: is called with (bytes here, bytes in all) while data in a bucket is copied.

    Raises:
      DataRefused: there is nothing that could be trained on, or ingest.corrections name what is
        not there.
      ConfigError: there is no such file as ingest.corrections names.
      SafelightError: data in a bucket can't be read or copied.
    """
    remote = buckets.is_remote(data)
    root = buckets.fetch(data, options.copies, on_progress) if remote else local(data)
    ignored = Ignored()
    form = _form(root, options)
    if form == "manifest":
        listing = manifest.read(_manifest_of(root, options), options, ignored)
    elif options.slices:
        raise DataRefused(_no_manifest(data, options.slices[0]))
    elif form == "tfrecords":
        listing = records.read(root, ignored, options.follow_links)
    else:
        listing = _read_folders(root, form, options, ignored)
    listing = corrections.apply(listing, options)
    _refuse_the_untrainable(listing, data)
    return _limited(listing, options.max_images)


@contextmanager
def readable(data: str) -> Iterator[None]:
    """Turns what the system refuses of DATA itself into an answer: `scan` raises its OSError.

    Raises:
      DataRefused: DATA, or the manifest in it, may not be read, is gone, or is a device.
    """
    try:
        yield
    except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
        raise DataRefused(
            f"{error.filename or data} can't be read: {error.strerror}. Expected data that this "
            "user may read; mend its permissions, or name another place."
        ) from error


def _no_manifest(data: str, column: str) -> str:
    return (
        f"evaluate.slices or ingest.slices names {column!r}, which is no fact about an image and "
        f"so a column of a manifest, and {data} has no manifest.{did_you_mean(column, FACTS)}"
    )


def local(data: str) -> Path:
    """Returns the absolute path of DATA, or raises DataRefused if nothing is there."""
    path = Path(data.removeprefix("file://")).expanduser().absolute()
    if not path.exists():
        raise DataRefused(f"There is no folder {data}. {_EXPECTED}.")
    return path


def _form(root: Path, options: Ingest) -> str:
    if options.form != "auto":
        return options.form
    if root.is_file():
        if manifest.is_manifest(root.name):
            return "manifest"
        if records.is_records(root.name):
            return "tfrecords"
        hint = " Unpack the archive first." if _ARCHIVE.search(root.name) else ""
        raise DataRefused(f"DATA {root} is a single file.{hint} {_EXPECTED}.")
    if options.manifest or manifest.default_manifest(root) is not None:
        return "manifest"
    if records.holds_records(root):
        return "tfrecords"
    return "splits" if _is_split(root) else "folders"


def _is_split(root: Path) -> bool:
    """Says whether the folders at the root are train, val, test and the like, and only those."""
    names = walk.folders(root)
    splits = [name for name in names if name.casefold() in SPLIT_NAMES]
    if not splits:
        return False
    others = [name for name in names if name.casefold() not in SPLIT_NAMES]
    if others:
        raise DataRefused(
            f"{root} mixes split folders ({bounded(splits)}) with others ({bounded(others)}): is "
            f"{splits[0]!r} a split or a class? Say so with --set ingest.form=splits (the others "
            "are then ignored) or --set ingest.form=folders (all of them are then classes)."
        )
    return True


def _manifest_of(root: Path, options: Ingest) -> Path:
    if root.is_file():
        return root
    found = root / options.manifest if options.manifest else manifest.default_manifest(root)
    if found is None or not found.is_file():
        raise DataRefused(
            f"There is no manifest {options.manifest or 'manifest.csv'} in {root}. Name one with "
            "--set ingest.manifest=FILE (relative to DATA), or give the file itself as DATA."
        )
    return found


def _read_folders(root: Path, form: str, options: Ingest, ignored: Ignored) -> Listing:
    if not root.is_dir():
        raise DataRefused(f"DATA {root} is a file, and ingest.form is {form}; expected a folder.")
    found, problems = walk.files(root, options.follow_links, ignored)
    places = _Places(1 if form == "splits" else 0, options.label_from)
    entries: list[Entry] = []
    kept_problems: list[Problem] = []
    for file in found:
        place = places.of(file.path)
        if place is None:
            _unplaced(file.path, form, kept_problems, ignored)
            continue
        split, label = place
        entries.append(Entry(file.path, file.size, file.mtime_ns, label, split))
    for problem in problems:
        place = places.of(problem.path)
        kept_problems.append(problem._replace(label=place[1] if place else None))
    given = given_splits({entry.split for entry in entries} | _empty_splits(root, places.depth))
    return Listing(form, root, entries, kept_problems, ignored, given)


class _Places:
    """What folders mean: the split and the class, worked out once for each folder."""

    def __init__(self, depth: int, label_from: str) -> None:
        self.depth = depth
        self._label_from = label_from
        self._known: dict[bytes, tuple[str | None, str] | None] = {}

    def of(self, path: bytes) -> tuple[str | None, str] | None:
        """Returns (split, class) of a file, or None where its folders don't say."""
        folder = path.rpartition(b"/")[0]
        if folder not in self._known:
            self._known[folder] = self._meaning(folder)
        return self._known[folder]

    def _meaning(self, folder: bytes) -> tuple[str | None, str] | None:
        parts = folder.split(b"/")
        if not folder or len(parts) <= self.depth:
            return None
        split = None
        if self.depth:
            split = SPLIT_NAMES.get(parts[0].decode("utf-8", "replace").casefold())
            if split is None:
                return None
        top = self._label_from == "top"
        return split, class_name(parts[self.depth] if top else b"/".join(parts[self.depth :]))


def _unplaced(path: bytes, form: str, problems: list[Problem], ignored: Ignored) -> None:
    inside_split = form == "splits" and SPLIT_NAMES.get(
        path.split(b"/")[0].decode("utf-8", "replace").casefold()
    )
    if walk.looks_like_image(path) and (form == "folders" or inside_split or b"/" not in path):
        problems.append(Problem(path, "no_label", "the image lies in no class folder", None))
    else:
        ignored.add(path)


def _empty_splits(root: Path, depth: int) -> set[str]:
    """Returns every split that has a folder, also one without an image: it is then refused."""
    if not depth:
        return set()
    return {SPLIT_NAMES[n.casefold()] for n in walk.folders(root) if n.casefold() in SPLIT_NAMES}


def _refuse_the_untrainable(listing: Listing, data: str) -> None:
    if not listing.entries:
        why = "no image"
        if listing.problems:
            counts = Counter(problem.reason for problem in listing.problems)
            found = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
            first = listing.problems[0]
            why = f"no usable image ({found}, such as {shown(first.path)}: {first.detail})"
        elif listing.ignored.count:
            why = f"no image (ignored: {bounded(listing.ignored.names)})"
        raise DataRefused(f"There is {why} in {data}. {_EXPECTED}.")
    for split in sorted(listing.given):
        if not any(entry.split == split for entry in listing.entries):
            raise DataRefused(
                f"The {split} split of {data} has no image; expected images of every class. "
                "Fill its folder or remove it."
            )
    if listing.given and "train" not in listing.given:
        raise DataRefused(
            f"{data} gives {bounded(sorted(listing.given))} and no train split: there is nothing "
            "to train on. Add train/<class>/…"
        )
    labels = {entry.label for entry in listing.entries}
    if len(labels) == 1 and None not in labels:
        (label,) = labels
        raise DataRefused(_one_class(listing, data, str(label)))


def _one_class(listing: Listing, data: str, label: str) -> str:
    message = f"{data} has one class, {label!r}; a classifier needs at least two."
    if listing.form == "folders":
        paths = [entry.path.split(b"/") for entry in listing.entries]
        inner = {parts[1] for parts in paths if len(parts) > 2}
        if len(inner) > 1:
            names = bounded(sorted(shown(name) for name in inner))
            inside = f"{data.rstrip('/')}/{label}"
            return f"{message} Did you mean the folder inside, {inside} ({names})?"
    return f"{message} {_EXPECTED}."


def _limited(listing: Listing, most: int) -> Listing:
    """Keeps the `most` entries with the smallest hashes, in the order of their paths.

    Known problems are thinned out alike, so that their share of the data stays what it is.
    """
    if not most or len(listing.entries) <= most:
        return listing
    ranked = sorted(listing.entries, key=lambda entry: path_hash(entry.id))[:most]
    last = path_hash(ranked[-1].id)
    return replace(
        listing,
        entries=sorted(ranked, key=lambda entry: (entry.path, entry.offset)),
        problems=[problem for problem in listing.problems if path_hash(problem.path) <= last],
    )
