"""DATA in a bucket: a local copy of what a gs:// or s3:// address holds, brought up to date.

Ingest, inspection and the fingerprint read that copy as they read any folder, so that all forms of
data work by address too (docs/decisions/0008-buckets.md). A file of the copy counts as up to date
by its size and modification time, which is the object's, its nanoseconds standing for the ETag:
what a broken download left behind has neither, and is fetched again.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import filelock

from pipeline.errors import DataRefused, SafelightError
from pipeline.ingest import manifest
from pipeline.ingest.entries import cut

# The extra to install, and where its library finds credentials.
_EXTRAS = {
    "gs": ("gcs", "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`"),
    "s3": ("s3", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_ENDPOINT_URL"),
}
_BATCH_FILES = 512
_BATCH_BYTES = 256 * 2**20
_SPARE_DISK = 200 * 2**20
_LONGEST_NAME = 255

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Object:
    """An object of the bucket, and where its copy lies."""

    remote: str
    path: bytes
    size: int
    mtime_ns: int

    def is_here(self) -> bool:
        try:
            state = os.lstat(self.path)
        except OSError:
            return False
        return (state.st_size, state.st_mtime_ns) == (self.size, self.mtime_ns)


def is_remote(data: str) -> bool:
    """Says whether DATA is an address rather than a path."""
    scheme, separator, _ = data.partition("://")
    return bool(separator) and scheme != "file"


def fetch(url: str, copies: str, on_progress: Progress = lambda done, total: None) -> Path:
    """Brings the copy of `url` up to date and returns its path: a folder or a file.

    A manifest brings what lies in its folder along.

    Args:
      url: gs://… or s3://…
      copies: the folder of all copies; "" for the user's cache.
      on_progress: is called with (bytes here, bytes in all).

    Raises:
      DataRefused: nothing lies there, or the address is of another kind.
      SafelightError: the package is missing, access is denied, the network fails, or the disk is
        too small.
    """
    scheme = url.partition("://")[0]
    if scheme not in _EXTRAS:
        raise DataRefused(
            f"DATA {url} is no path that Safelight reads; expected a local path, gs:// or s3://. "
            "Copy the data to a local folder."
        )
    store = _file_system(url, scheme)
    place = folder_of_copies(copies) / scheme
    path = url.partition("://")[2].strip("/")
    listed = _listed(store, url, path)
    tree = path
    if path in listed and manifest.is_manifest(path):
        tree = path.rpartition("/")[0]
        listed = _listed(store, url, tree)
    objects = _objects(listed, place)
    place.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(str(place / f".{path.partition('/')[0]}.lock")):
        _remove_all_but({item.path for item in objects}, place / tree)
        _download(store, url, objects, place, on_progress)
    return place / path


def folder_of_copies(given: str) -> Path:
    """Returns the folder that holds all copies: `given`, or the user's cache."""
    if given:
        return Path(given).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "safelight"


def _file_system(url: str, scheme: str) -> Any:
    extra, _ = _EXTRAS[scheme]
    try:
        import fsspec

        # Neither a listing nor a client of an earlier call may answer for what is there now.
        return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
    except ImportError:
        raise SafelightError(
            f"DATA {url} lies in object storage, and no file system for {scheme}:// is installed. "
            f"Install it with `make setup EXTRAS={extra}` (or `pip install 'safelight[{extra}]'`), "
            "or copy the data to a local folder."
        ) from None
    except Exception as error:  # noqa: BLE001 - a library's own word on credentials
        raise _denied(url, error) from None


def _listed(store: Any, url: str, path: str) -> Mapping[str, Mapping[str, Any]]:
    try:
        found: Mapping[str, Mapping[str, Any]] = store.find(path, detail=True)
    except FileNotFoundError:
        found = {}
    except Exception as error:  # noqa: BLE001 - as many kinds as there are libraries and networks
        raise _denied(url, error) from None
    if not found:
        raise DataRefused(
            f"There is nothing at {url}: no such bucket, folder or object. Expected a folder of "
            "class folders, a manifest or TFRecords."
        )
    return found


def _denied(url: str, error: Exception) -> SafelightError:
    told = " ".join(str(error).split()) or type(error).__name__
    return SafelightError(
        f"{url} can't be read: {type(error).__name__}: {told[:300]}. Expected an account that may "
        f"list and read it, from the environment: {_EXTRAS[url.partition('://')[0]][1]}. "
        "Correct that, and run the same command again: what is here already is kept."
    )


def _objects(listed: Mapping[str, Mapping[str, Any]], place: Path) -> list[_Object]:
    """Returns the objects, in the order of their names; what only marks a folder is left out."""
    folders = {name[:end] for name in listed for end in _slashes(name)}
    found = []
    for name, facts in sorted(listed.items()):
        size = int(facts.get("size") or 0)
        if facts.get("type") == "directory" or (name.endswith("/") and not size):
            continue
        local = os.path.join(os.fsencode(place), _local_name(name, folders))
        found.append(_Object(name, local, size, _modified(facts)))
    return found


def _slashes(name: str) -> Iterator[int]:
    return (place for place, char in enumerate(name) if char == "/")


def _local_name(name: str, folders: set[str]) -> bytes:
    """Returns the path of an object's copy; keys may be what no file system takes.

    An empty component and one of dots become escapes, a long one is cut, and an object that is
    called as a folder is gets a `%` behind it: everything has a place, and none outside.
    """
    parts = []
    for part in (name + "%" if name in folders else name).split("/"):
        raw = part.replace("\0", "%00").encode("utf-8", "surrogateescape")
        if part in ("", ".", ".."):
            raw = b"%" + part.replace(".", "%2E").encode()
        elif len(raw) > _LONGEST_NAME:
            raw = raw[:200] + b"%" + sha256(raw).hexdigest()[:16].encode() + raw[-8:]
        parts.append(raw)
    return b"/".join(parts)


def _modified(facts: Mapping[str, Any]) -> int:
    """Returns nanoseconds: the second of the last change, and below it a hash of the ETag."""
    when = facts.get("LastModified") or facts.get("mtime")  # s3fs, gcsfs
    tag = str(facts.get("ETag") or facts.get("etag") or "")
    second = int(when.timestamp()) if when is not None else 0
    return second * 10**9 + zlib.crc32(tag.encode()) % 10**9


def _remove_all_but(wanted: set[bytes], tree: Path) -> None:
    """Removes what the bucket no longer has."""
    if tree.is_file() and os.fsencode(tree) not in wanted:
        tree.unlink()
    for folder, _, names in os.walk(os.fsencode(tree), topdown=False):
        for name in names:
            path = os.path.join(folder, name)
            if path not in wanted:
                os.unlink(path)
        if not os.listdir(folder):
            os.rmdir(folder)


def _download(
    store: Any, url: str, objects: Sequence[_Object], place: Path, on_progress: Progress
) -> None:
    missing = [item for item in objects if not item.is_here()]
    total = sum(item.size for item in objects)
    needed = sum(item.size for item in missing)
    free = shutil.disk_usage(place).free
    if needed and needed + _SPARE_DISK > free:
        raise SafelightError(
            f"{url} has {needed / 1e9:.1f} GB to copy to {place}, where {free / 1e9:.1f} GB are "
            "free. Free some space, or name a folder on a larger disk with "
            "--set ingest.copies=FOLDER."
        )
    done = total - needed
    on_progress(done, total)
    for batch in cut(missing, _BATCH_FILES, _BATCH_BYTES):
        _get(store, url, batch)
        done += sum(item.size for item in batch)
        on_progress(done, total)


def _get(store: Any, url: str, batch: Sequence[_Object]) -> None:
    """Copies some objects, several at once, and stamps each when it is whole."""
    targets = [os.fsdecode(item.path) for item in batch]
    try:
        store.get([item.remote for item in batch], targets)
    except FileNotFoundError as error:
        raise SafelightError(
            f"{url} changed while it was copied: {error}. Run the same command again."
        ) from None
    except Exception as error:  # noqa: BLE001 - as many kinds as there are libraries and networks
        raise _denied(url, error) from None
    for item, target in zip(batch, targets, strict=True):
        size = os.path.getsize(target)
        if size != item.size:
            raise SafelightError(
                f"{url} changed while it was copied: {item.remote} has {size} bytes, and "
                f"{item.size} were listed. Run the same command again."
            )
        os.utime(target, ns=(item.mtime_ns, item.mtime_ns))
