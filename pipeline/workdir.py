"""The workdir: all that belongs to one lineage of runs, and who may write to it.

safelight.json                    the marker: format and the path it was made at
artifacts/                        what TFX's components wrote
metadata.sqlite                   ML Metadata, unless metadata.url says otherwise
checkpoints/<fingerprint>/        training that can be resumed
index.html                        all runs, with links to their reports
runs/<run id>/                    run.json, events.jsonl, log.txt, result.json, report.html
serving/<model>/<version>/        what TF Serving serves, and registry.json beside
exports/<variant>/<version>/      smaller forms of that version, for devices
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.errors import Busy, SafelightError, UsageError, advice, bounded

FORMAT = 1
_NEW_MARKER: Final = ".safelight.json.new"
_OF_PATTERNS: Final = frozenset("*?[]\\")


@dataclass(frozen=True)
class Workdir:
    """Paths below one workdir; `open_workdir` makes or checks it."""

    root: Path

    @property
    def marker(self) -> Path:
        return self.root / "safelight.json"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def metadata(self) -> Path:
        return self.root / "metadata.sqlite"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def cache(self) -> Path:
        """What can be made again at any time, and be deleted at any time."""
        return self.root / "cache"

    @property
    def index(self) -> Path:
        """The page that lists all runs; it links to each report."""
        return self.root / "index.html"

    def serving(self, model_name: str) -> Path:
        """Returns the directory that TF Serving watches for this model."""
        return self.root / "serving" / model_name

    @property
    def models(self) -> list[Path]:
        """The serving directories of all models, by name; empty before the first push."""
        folder = self.root / "serving"
        return sorted(one for one in folder.iterdir() if one.is_dir()) if folder.is_dir() else []

    def served(self, model: str | None) -> Path:
        """Returns the serving directory of a model, by default the only one.

        Raises:
          UsageError: there is none, or several and none is named.
        """
        found = {one.name: one for one in self.models}
        names = list(found)
        if model is None and len(names) == 1:
            return found[names[0]]
        if model in found:
            return found[model]
        if not names:
            raise UsageError(f"Nothing has been pushed to {self.root} yet.")
        raise UsageError(f"Name the model with --model-name. There is: {bounded(names, limit=20)}.")

    @contextmanager
    def lock(self, wait: bool = False) -> Iterator[int]:
        """Holds the workdir; yields the lock's file descriptor, for a worker to inherit.

        The lock belongs to the open file, so that a worker that outlives its parent still holds it.

        Raises:
          Busy: somebody else holds it, and `wait` is False.
          SafelightError: nothing can be written there.
        """
        import filelock  # its import costs a tenth of what --help takes

        lock = filelock.UnixFileLock(self.root / ".lock", timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise Busy(
                f"The workdir {self.root} is busy: {self._holder()}. "
                "Wait for it to end, or run again with --wait."
            ) from None
        except OSError as error:
            raise SafelightError(
                f"The workdir {self.root} can't be written to ({error.strerror}). {advice(error)}"
            ) from error
        holder = self.root / ".holder.json"
        try:
            # On a full disk the lock alone has to do: gc, which frees space, takes it too.
            with contextlib.suppress(OSError):
                holder.write_text(_me())
            descriptor = lock._context.lock_file_fd
            assert descriptor is not None
            yield descriptor
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def _holder(self) -> str:
        try:
            holder = json.loads((self.root / ".holder.json").read_text())
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
            return f"process {holder['pid']} on {holder['host']} holds it since {since}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process holds it"


def _me() -> str:
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()})


def open_workdir(path: Path, create: bool = True) -> Workdir:
    """Returns the workdir at `path`, made if it isn't there yet.

    Raises:
      UsageError: the path is a file, a folder with other things in it, a workdir made at another
        path or by another format, or (create=False) not there; or it has a pattern's characters.
      SafelightError: it can't be made.
    """
    root = _absolute(path)
    workdir = Workdir(root)
    if workdir.marker.is_file():
        return _as_made(workdir)
    if root.exists() and not root.is_dir():
        raise UsageError(f"--workdir {path} is a file; expected a directory.")
    # A marker that could not be written whole, on a full disk say, is ours.
    if root.exists() and any(one.name != _NEW_MARKER for one in root.iterdir()):
        raise UsageError(
            f"--workdir {path} holds other files and is no workdir of Safelight's "
            "(safelight.json is missing). Name an empty or a new directory."
        )
    if not create:
        raise UsageError(
            f"There is no workdir at {path}. Make one with: safelight run DATA --workdir {path}"
        )
    _check_characters(path, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = root / _NEW_MARKER
        temporary.write_text(json.dumps({"format": FORMAT, "path": str(root)}, indent=2) + "\n")
        temporary.replace(workdir.marker)
    except OSError as error:
        raise SafelightError(
            f"The workdir {root} can't be made ({error.strerror}). {advice(error)}"
        ) from error
    return workdir


def refuse_inside(path: Path, data: str) -> None:
    """Refuses a workdir in the folder of the images, where all that is written would be data.

    Args:
      path: the workdir, made or not.
      data: DATA; of a bucket, nothing is refused.

    Raises:
      UsageError: it is that folder, or lies below it.
    """
    root, images = _absolute(path).resolve(), Path(data).expanduser().resolve()
    if images.is_dir() and (root == images or images in root.parents):
        raise UsageError(
            f"--workdir {path} lies in the data, {data}: its files would be read as images of "
            f"that folder. Name one outside, as in --workdir {images.parent / 'work'}"
        )


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise UsageError(
            f"--workdir {path} begins with ~, and no such home directory is known. "
            f"Name the whole path, or ./{path} for a folder of that name."
        ) from None


def _check_characters(path: Path, root: Path) -> None:
    found = sorted(set(str(root)) & _OF_PATTERNS)
    if found:
        raise UsageError(
            f"--workdir {path} is the path {root}, and TFX takes a path with {' '.join(found)} for "
            "a pattern: it would not find its own files there. Name a folder without * ? [ ] and "
            "\\ in its whole path."
        )


def _as_made(workdir: Workdir) -> Workdir:
    """Returns the workdir by the path that it was made at: ML Metadata knows it by no other.

    Through a symbolic link, or from within one, the same directory has another path.
    """
    try:
        marker = json.loads(workdir.marker.read_text())
        made_at, made_as = Path(marker["path"]), marker["format"]
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"{workdir.marker} is damaged; expected JSON with `format` and `path`. "
            "Restore it, or start with a new --workdir."
        ) from None
    if made_as != FORMAT:
        raise UsageError(
            f"The workdir {workdir.root} has format {made_as}; this version reads {FORMAT}. "
            "Use the version of Safelight that made it, or start with a new --workdir."
        )
    if made_at == workdir.root:
        return workdir
    with contextlib.suppress(OSError):
        if made_at.samefile(workdir.root):
            return Workdir(made_at)
    raise UsageError(
        f"The workdir {workdir.root} was made at {made_at}, and ML Metadata records paths. "
        f"Move it back there, or start with a new --workdir; its models under serving/ stay "
        "usable by `safelight predict --model DIR`."
    )
