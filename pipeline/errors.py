"""Every error that Safelight raises on purpose.

    SafelightError            exit 1  something went wrong that the message explains
    ├── UsageError            exit 2  the command or the configuration is not as it should be
    │   └── ConfigError       exit 2  an unknown key, a wrong value, keys that can't go together
    ├── NotBlessed            exit 3  the run finished, and the model stays out
    ├── DataRefused           exit 4  there is nothing to train on, or validation refused the data
    └── Busy                  exit 5  somebody else holds the workdir

A message says what was wrong, what was expected, what was received and what to do.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Final

_SPACE: Final = "Free some space"
_RIGHTS: Final = "Mend its permissions or those of its folder"
_DISK: Final = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "Raise the limit of a file's size (ulimit -f)",
    errno.EROFS: "Mount it for writing, or name another folder",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EIO: "See the system's log for what ails the disk",
}


class SafelightError(Exception):
    """The root of the tree; `reasons` are the single findings behind the message."""

    exit_code = 1

    def __init__(self, message: str, reasons: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.reasons = list(reasons)


class UsageError(SafelightError):
    """The command line asks for something that can't be done as it was asked."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key or value is refused."""


class NotBlessed(SafelightError):
    """The final gate kept the model out."""

    exit_code = 3


class DataRefused(SafelightError):
    """The data can't be trained on, or a check set to `fail` found something."""

    exit_code = 4


class Busy(SafelightError):
    """Another process holds the workdir."""

    exit_code = 5


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ' Did you mean X?' for the nearest known name, or a list of what there is."""
    options = sorted(known)
    near = get_close_matches(name, options, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else f" There is: {bounded(options, limit=20)}."


def bounded(items: Sequence[object], limit: int = 5) -> str:
    """Joins the first `limit` items with commas and counts the rest."""
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def known_cause(error: BaseException) -> SafelightError | None:
    """Returns the error of ours that this one is, or that Beam and TFX wrapped; None without."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SafelightError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def of_disk(error: BaseException) -> SafelightError | None:
    """Returns what an error of the file system means for the person; None for any other."""
    if not isinstance(error, OSError) or error.errno not in _DISK:
        return None
    place = "A file" if error.filename is None else f"{error.filename}"
    return SafelightError(f"{place} can't be read or written ({error.strerror}). {advice(error)}")


def advice(error: OSError) -> str:
    """Returns what to do about an error of the file system, in a sentence."""
    mend = _DISK.get(error.errno or 0, f"{_SPACE}, or mend the permissions of the folder")
    return f"{mend}, and run the same command again."


def first_line(error: BaseException) -> str:
    """Returns a library's error in one line: its kind, and the first line of what it says."""
    line = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {line[:300].rstrip('.')}."
