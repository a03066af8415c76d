"""A quick look at DATA before a run: what it is, how much, and a fingerprint. No pixel is decoded.

It runs in the command's own process, which imports neither TensorFlow nor TFX; the worker gets
the result as JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

from pipeline.config import Ingest
from pipeline.ingest import buckets, listing
from pipeline.ingest.entries import Entry, Listing, Problem, absolute
from pipeline.ingest.splits import Rule

SAMPLED = 256


@dataclass(frozen=True)
class Scan:
    """What DATA looks like from outside.

    Attributes:
      data: the absolute path, or the address in a bucket.
      form: folders, splits, manifest or tfrecords.
      classes: the names found, sorted; None where only the records themselves know (TFRecords).
      per_class: images by class name, before anything is decoded; empty for TFRecords.
      files: images to be read.
      bytes: their size.
      fingerprint: SHA-256 (hexadecimal) of every relative path, size and modification time;
        where the contents were verified, `+` and the SHA-256 of them behind it.
      verified: whether the contents were read for the fingerprint.
      splits: a sentence on where the splits come from.
      given: the splits that the data gives itself, sorted.
      sizes: (width, height, channels) of up to SAMPLED images, spread evenly.
      majority: the most frequent of `sizes`, or None if no header could be read.
      ignored: names of stray files and folders, the first 20.
      ignored_count: how many there are.
      problems: what is known to be quarantined, by reason.
    """

    data: str
    form: str
    classes: tuple[str, ...] | None
    per_class: dict[str, int]
    files: int
    bytes: int
    fingerprint: str
    verified: bool
    splits: str
    given: tuple[str, ...]
    sizes: tuple[tuple[int, int, int], ...]
    majority: tuple[int, int, int] | None
    ignored: tuple[str, ...]
    ignored_count: int
    problems: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Returns the scan as JSON-serializable values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scan:
        """Returns the scan that `to_dict` gave, also after a way through JSON."""
        classes, majority = values["classes"], values["majority"]
        return replace(
            cls(**values),
            classes=None if classes is None else tuple(classes),
            given=tuple(values["given"]),
            sizes=tuple(tuple(size) for size in values["sizes"]),
            majority=None if majority is None else tuple(majority),
            ignored=tuple(values["ignored"]),
        )


def scan(
    data: str,
    options: Ingest,
    verify: bool = False,
    on_progress: buckets.Progress = lambda done, total: None,
) -> Scan:
    """Looks at DATA without decoding an image.

    Args:
      data: a folder, a manifest or a TFRecord file; a path, or an address in a bucket.
      options: the `ingest` section.
      verify: whether the fingerprint reads every file's content.
      on_progress: is called with (bytes here, bytes in all) while data in a bucket is copied.

    Raises:
      DataRefused: there is no such folder, no class or only one, no image, or an empty split.
      SafelightError: data in a bucket can't be read or copied.
    """
    found = listing.read(data, options, on_progress)
    labels = Counter(entry.label for entry in found.entries)
    known = None not in labels
    sizes = sampled_sizes(found)
    return Scan(
        data=data if buckets.is_remote(data) else str(listing.local(data)),
        form=found.form,
        classes=tuple(sorted(map(str, labels))) if known else None,
        per_class={str(label): labels[label] for label in sorted(labels, key=str)} if known else {},
        files=len(found.entries),
        bytes=sum(entry.size for entry in found.entries),
        fingerprint=fingerprint(found, verify),
        verified=verify,
        splits=Rule(options.shares, found.given).describe(),
        given=tuple(sorted(found.given)),
        sizes=sizes,
        majority=Counter(sizes).most_common(1)[0][0] if sizes else None,
        ignored=tuple(found.ignored.names),
        ignored_count=found.ignored.count,
        problems=dict(Counter(problem.reason for problem in found.problems)),
    )


def fingerprint(found: Listing, verify: bool = False) -> str:
    """Returns a SHA-256 (hexadecimal) over what is listed.

    With `verify`, a `+` and the SHA-256 over the contents stand behind it: what is listed can then
    be compared without reading them again (`same_listing`).
    """
    total = sha256(found.form.encode())
    for entry in found.entries:
        total.update(_line(entry))
    for problem in found.problems:
        total.update(_problem_line(problem))
    if found.corrected is not None:
        total.update(f"corrected {found.corrected.fingerprint}\n".encode())
    return f"{total.hexdigest()}+{_contents(found)}" if verify else total.hexdigest()


def same_listing(one: str, other: str) -> bool:
    """Says whether two fingerprints, verified or not, are of the same paths, sizes and times."""
    return one.partition("+")[0] == other.partition("+")[0]


def _contents(found: Listing) -> str:
    """Returns the SHA-256 (hexadecimal) over the content of every file, in the listing's order."""
    total = sha256()
    for path in dict.fromkeys(entry.path for entry in found.entries):
        total.update(_content(absolute(found.root, path)))
    return total.hexdigest()


def sampled_sizes(found: Listing) -> tuple[tuple[int, int, int], ...]:
    """Returns (width, height, channels) of up to SAMPLED files, from their headers alone."""
    files = [entry for entry in _evenly(found.entries, SAMPLED) if entry.offset < 0]
    if not files:
        return ()
    # Pillow takes a tenth of a second to import; `safelight --help` never comes here.
    from pipeline import images

    sizes = []
    for entry in files:
        try:
            with open(absolute(found.root, entry.path), "rb") as file:
                sizes.append(images.size_of(file))
        except (OSError, images.BadImage):
            continue
    return tuple(sizes)


def _evenly(entries: Sequence[Entry], most: int) -> list[Entry]:
    step = max(1, len(entries) // most)
    return list(entries[::step][:most])


def _line(entry: Entry) -> bytes:
    head = b"%s\0%d\0%d\0%d\0" % (entry.path, entry.offset, entry.size, entry.mtime_ns)
    if entry.label is None and entry.group is None and not entry.extra:
        return head + b"\n"
    rest = repr((entry.label, entry.split, entry.group, entry.extra))
    return head + rest.encode("utf-8", "surrogatepass") + b"\n"


def _problem_line(problem: Problem) -> bytes:
    return b"!%s\0%s\n" % (problem.path, problem.reason.encode())


def _content(path: bytes) -> bytes:
    total = sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    except OSError as error:
        total.update(f"!{error.errno}".encode())
    return total.digest()
