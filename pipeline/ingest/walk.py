"""Files below a folder, by `os.scandir`: what is regular, what is stray, what leads outside."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pipeline.ingest.entries import Ignored, Problem

_SYSTEM = {b".ds_store", b"thumbs.db", b"desktop.ini", b"ehthumbs.db", b"icon\r"}
_SYSTEM_FOLDERS = {b"__macosx", b"@eadir"}
_IMAGE_SUFFIXES = frozenset(
    b"jpg jpeg jpe jfif png apng gif bmp dib webp tif tiff heic heif avif jp2 jxl psd ico svg "
    b"ppm pgm pbm pnm tga exr raw dng".split()
)
# What lies beside images and was never meant to be one.
_COMPANIONS = frozenset(
    b"txt md rst csv tsv json jsonl ndjson xml yaml yml toml ini cfg log cache db sqlite pkl "
    b"pickle npy npz mat h5 hdf5 parquet zip gz tgz tar bz2 xz rar 7z pdf doc docx xls xlsx py "
    b"ipynb sh html htm license names data lst idx".split()
)


class File(NamedTuple):
    """A regular file: its path relative to the root, size in bytes, mtime in nanoseconds."""

    path: bytes
    size: int
    mtime_ns: int


def looks_like_image(path: bytes) -> bool:
    """Says whether a file's name ends as an image's does."""
    return _suffix(path) in _IMAGE_SUFFIXES


def folders(root: Path) -> list[str]:
    """Returns the names of the folders in `root` that are not hidden or a system's own, sorted."""
    with os.scandir(os.fsencode(root)) as listed:
        return sorted(
            os.fsdecode(entry.name)
            for entry in listed
            if not _is_stray(entry.name) and _is_folder(entry)
        )


def is_companion(path: bytes) -> bool:
    """Says whether a file's name is that of what lies beside images: labels.cache, README.md."""
    return _suffix(path) in _COMPANIONS


def files(
    root: Path,
    follow_links: bool,
    ignored: Ignored,
    is_stray: Callable[[bytes], bool] = is_companion,
) -> tuple[list[File], list[Problem]]:
    """Walks `root`; hidden and system files, and what `is_stray` says, go to `ignored`.

    Args:
      root: a folder.
      follow_links: whether a symbolic link may lead outside `root`.
      ignored: gets what is not wanted.
      is_stray: tells by a file's path that it is not wanted.

    Returns:
      The files in the order of their paths, and what is quarantined unread: `outside`, `missing`,
      `unreadable`. The labels of the problems are not filled in.
    """
    walk = _Walk(os.path.realpath(os.fsencode(root)), follow_links, ignored, is_stray)
    walk.folder(os.fsencode(root), b"")
    walk.found.sort()
    walk.problems.sort(key=lambda problem: problem.path)
    return walk.found, walk.problems


class _Walk:
    def __init__(
        self,
        real_root: bytes,
        follow_links: bool,
        ignored: Ignored,
        is_stray: Callable[[bytes], bool],
    ) -> None:
        self.found: list[File] = []
        self.problems: list[Problem] = []
        self._root = real_root
        self._follow = follow_links
        self._ignored = ignored
        self._is_stray = is_stray
        self._linked_folders: set[bytes] = set()

    def folder(self, place: bytes, prefix: bytes) -> None:
        """Walks one folder and those below it, without recursion: paths may be very deep."""
        pending = [(place, prefix)]
        while pending:
            place, prefix = pending.pop()
            try:
                with os.scandir(place) as listed:
                    children = list(listed)
            except OSError as error:
                self._bad(prefix.rstrip(b"/"), "unreadable", f"folder: {error.strerror}")
                continue
            for child in children:
                path = prefix + child.name
                if _is_stray(child.name):
                    self._ignored.add(path)
                elif child.is_symlink():
                    below = self._link(child, path)
                    if below is not None:
                        pending.append((below, path + b"/"))
                elif child.is_dir(follow_symlinks=False):
                    pending.append((child.path, path + b"/"))
                else:
                    self._file(child, path)

    def _file(self, child: os.DirEntry[bytes], path: bytes) -> None:
        if self._is_stray(path):
            self._ignored.add(path)
            return
        try:
            if not child.is_file():
                self._bad(path, "unreadable", "a device, pipe or socket; expected a regular file")
                return
            state = child.stat()
        except FileNotFoundError:
            self._bad(path, "missing", "the file vanished while the folder was listed")
            return
        except OSError as error:
            self._bad(path, "unreadable", error.strerror or str(error))
            return
        self.found.append(File(path, state.st_size, state.st_mtime_ns))

    def _link(self, child: os.DirEntry[bytes], path: bytes) -> bytes | None:
        """Follows a symbolic link; returns a folder that is to be walked."""
        target = os.path.realpath(child.path)
        if not os.path.exists(target):
            self._bad(path, "missing", "a symbolic link to nothing")
            return None
        inside = target == self._root or target.startswith(self._root + b"/")
        if not inside and not self._follow:
            self._bad(
                path,
                "outside",
                "a symbolic link that leaves the data; ingest.follow_links=true allows it",
            )
            return None
        if not os.path.isdir(target):
            self._file(child, path)
            return None
        # A folder inside is walked where it stands, and a loop must end.
        if inside or target in self._linked_folders:
            self._ignored.add(path)
            return None
        self._linked_folders.add(target)
        return child.path

    def _bad(self, path: bytes, reason: str, detail: str) -> None:
        self.problems.append(Problem(path, reason, detail, None))


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say: the walk quarantines it
        return False


def _suffix(path: bytes) -> bytes:
    name = path.rsplit(b"/", 1)[-1]
    return name.rsplit(b".", 1)[-1].lower() if b"." in name else b""


def _is_stray(name: bytes) -> bool:
    """Says whether a name is hidden (also macOS's `._x`) or an operating system's own."""
    return name.startswith(b".") or name.lower() in _SYSTEM | _SYSTEM_FOLDERS
