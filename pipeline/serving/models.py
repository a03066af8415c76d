"""The versions of one model that are being served: found, loaded, called and dropped.

As TF Serving's version policy `latest { num_versions: 2 }` does: the highest numbers below the
model's folder are served, a new one is loaded before an old one is dropped, and one that can't be
loaded leaves the others as they are.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy.typing as npt
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from pipeline.features import SERVING_SIGNATURE

KEPT: Final = 2
_POLL_SECONDS: Final = 1.0

State = Literal["LOADING", "AVAILABLE", "END"]
Code = Literal["NOT_FOUND", "INVALID_ARGUMENT"]


class Refused(Exception):
    """A request that can't be answered; `code` is gRPC's name of the reason."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Status:
    """Where one version stands; `error` is empty unless it could not be loaded."""

    version: int
    state: State
    error: str = ""


class Version:
    """One loaded SavedModel."""

    def __init__(self, number: int, path: Path) -> None:
        self.number = number
        content = saved_model_pb2.SavedModel()
        content.ParseFromString((path / "saved_model.pb").read_bytes())
        self.signature_defs: Mapping[str, meta_graph_pb2.SignatureDef] = {
            name: signature
            for name, signature in content.meta_graphs[0].signature_def.items()
            if not name.startswith("__saved_model")
        }
        # Kept alive: the functions hold their variables by weak references only.
        self._model = tf.saved_model.load(str(path))

    def signature(self, name: str) -> meta_graph_pb2.SignatureDef:
        """Returns the signature of this name ("" is the default one).

        Raises:
          Refused: there is none.
        """
        name = name or SERVING_SIGNATURE
        if name not in self.signature_defs:
            known = ", ".join(sorted(self.signature_defs))
            raise Refused(
                "INVALID_ARGUMENT", f'Serving signature name: "{name}" not found. There is: {known}'
            )
        return self.signature_defs[name]

    def predict(self, name: str, inputs: Mapping[str, tf.Tensor]) -> dict[str, npt.NDArray[Any]]:
        """Runs a signature; returns its outputs by name, strings as arrays of bytes.

        Raises:
          Refused: the inputs are not those of the signature, or the graph refused their values.
        """
        wanted = set(self.signature(name).inputs)
        if set(inputs) != wanted:
            raise Refused(
                "INVALID_ARGUMENT",
                f"input keys: expected {', '.join(sorted(wanted))}; "
                f"received {', '.join(sorted(inputs)) or 'none'}",
            )
        try:
            outputs = self._model.signatures[name or SERVING_SIGNATURE](**inputs)
        except (tf.errors.InvalidArgumentError, ValueError, TypeError) as error:
            raise Refused("INVALID_ARGUMENT", str(error)) from None
        return {key: value.numpy() for key, value in outputs.items()}


class Versions:
    """The latest versions below one folder. Any thread may ask; `refresh` loads and drops."""

    def __init__(self, name: str, base: Path, kept: int = KEPT) -> None:
        self.name = name
        self._base = base
        self._kept = kept
        self._lock = threading.Lock()
        self._refreshing = threading.Lock()
        self._loaded: dict[int, Version] = {}
        self._states: dict[int, Status] = {}

    def refresh(self) -> None:
        """Loads the versions that have come, highest first, then drops those that are too old."""
        with self._refreshing:
            wanted = self._wanted()
            for number in wanted:
                if number not in self._states:
                    self._load(number)
            # While the newest can't be loaded, the one that answers now stays.
            available = [number for number in wanted if number in self._loaded]
            if available or not wanted:
                self._drop_all_but(wanted)

    def get(self, version: int | None = None) -> Version:
        """Returns this version, or the highest one.

        Raises:
          Refused: it isn't served.
        """
        with self._lock:
            number = max(self._loaded, default=None) if version is None else version
            if number is None or number not in self._loaded:
                which = (
                    f"Latest({self.name})"
                    if version is None
                    else f"Specific({self.name}, {version})"
                )
                raise Refused("NOT_FOUND", f"Servable not found for request: {which}")
            return self._loaded[number]

    def states(self, version: int | None = None) -> list[Status]:
        """Returns where each version stands, or this one alone; the highest first.

        Raises:
          Refused: there is none, or not this one.
        """
        with self._lock:
            found = [self._states[number] for number in sorted(self._states, reverse=True)]
        found = [one for one in found if version is None or one.version == version]
        if not found:
            which = f"version {version}" if version is not None else "any versions"
            raise Refused("NOT_FOUND", f"Could not find {which} of model {self.name}")
        return found

    def watch(self, stop: threading.Event) -> None:
        """Refreshes once a second until `stop` is set."""
        while not stop.wait(_POLL_SECONDS):
            # A folder that can't be read now (another user's copy, a network's disk) may be again.
            with contextlib.suppress(OSError):
                self.refresh()

    def _wanted(self) -> list[int]:
        if not self._base.is_dir():
            return []
        numbers = [
            int(entry.name)
            for entry in self._base.iterdir()
            if entry.name.isdecimal() and (entry / "saved_model.pb").is_file()
        ]
        return sorted(numbers, reverse=True)[: self._kept]

    def _load(self, number: int) -> None:
        self._tell(Status(number, "LOADING"))
        try:
            loaded = Version(number, self._base / str(number))
        except Exception as error:  # noqa: BLE001 - a bad version must not end the others
            self._tell(Status(number, "END", f"{type(error).__name__}: {error}"))
            return
        with self._lock:
            self._loaded[number] = loaded
            self._states[number] = Status(number, "AVAILABLE")

    def _drop_all_but(self, wanted: list[int]) -> None:
        with self._lock:
            for number in set(self._states) - set(wanted):
                self._loaded.pop(number, None)
                del self._states[number]

    def _tell(self, status: Status) -> None:
        with self._lock:
            self._states[status.version] = status
