"""Which version of a model is served, and how each one came to be: `registry.json`.

A push is a journal entry: the intent is written, the model is copied to `.<version>.incoming`,
renamed to `<version>`, and the entry is committed. Whatever instant a process dies at, `open`
finds either the old state or the new one and finishes or undoes what it finds; nothing
half-written ever stands under a number that TF Serving would load.

Only the holder of the workdir may `open` a registry, because that repairs it; anybody may `read`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline import events, versions
from pipeline.errors import SafelightError
from pipeline.features import MODEL_FACTS
from pipeline.versions import Entry

FORMAT = 1
FILE = "registry.json"


@dataclass(frozen=True)
class Origin:
    """Where a model that is to be published comes from.

    `data`, `config` and `code` are the fingerprints of its run; `known_classes` and `champion`
    (a version) are what that run was given.
    """

    by: str
    why: str
    run_id: str
    data: str
    config: str
    code: str
    known_classes: tuple[str, ...] = ()
    champion: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    model_uri: str = ""


@dataclass(frozen=True)
class RunInputs:
    """What a run is given: class names whose order it keeps, and the version to beat.

    `champion_uri` is the directory of that version, "" where there is none.
    """

    known_classes: tuple[str, ...] = ()
    champion_version: int | None = None
    champion_uri: str = ""


class Registry:
    """The versions of one model below `serving/<model>/`; made by `open` or `read`."""

    def __init__(self, root: Path, entries: list[Entry], current: int | None) -> None:
        self.root = root
        self.entries = entries
        self.current = current

    def path(self, version: int) -> Path:
        """Returns the directory that TF Serving loads this version from."""
        return self.root / str(version)

    def champion(self) -> Entry | None:
        """Returns the version that is served now, or None before the first push."""
        return next((entry for entry in self.entries if entry.version == self.current), None)

    def resolve_inputs(self, data: str, config: str, code: str) -> RunInputs:
        """Returns what a run with these fingerprints is given.

        A run equal to the champion's own gets what that one was given: it finds every node in the
        cache. A run on the champion's data keeps that run's class order; any other run keeps the
        champion's. Both are judged against the champion.
        """
        champion = self.champion()
        if champion is None:
            return RunInputs()
        before = RunInputs(tuple(champion.inputs["known_classes"]))
        if (champion.data, champion.config, champion.code) == (data, config, code):
            version = champion.inputs["champion"]
            return before if version is None else self._beside(before, version)
        if champion.data == data:
            return self._beside(before, champion.version)
        return self._beside(RunInputs(tuple(champion.classes)), champion.version)

    def _beside(self, inputs: RunInputs, version: int) -> RunInputs:
        path = self.path(version)
        if not path.is_dir():
            return inputs
        return replace(inputs, champion_version=version, champion_uri=str(path))

    def published(self, origin: Origin, model_fingerprint: str) -> Entry | None:
        """Returns the current version if it is this very model from this very run, else None.

        So a run that was killed between the push and its record does not push twice.
        """
        champion = self.champion()
        if champion is None or champion.model_fingerprint != model_fingerprint:
            return None
        inputs = {"known_classes": list(origin.known_classes), "champion": origin.champion}
        theirs = (champion.data, champion.config, champion.code, champion.inputs)
        return champion if theirs == (origin.data, origin.config, origin.code, inputs) else None

    def publish(self, source: Path, origin: Origin) -> Entry:
        """Copies the export at `source` to the next version, makes it current, and returns it.

        Raises:
          SafelightError: `source` is no export, or it can't be copied; then nothing has changed.
        """
        entry = self._entry(source, origin)
        self._write(intent={"version": entry.version, "source": str(source)})
        incoming = self.root / f".{entry.version}.incoming"
        try:
            versions.copy(source, incoming)
            versions.write_json(incoming / "assets.extra" / versions.PUBLISHED, asdict(entry))
            os.rename(incoming, self.path(entry.version))
        except OSError as error:
            shutil.rmtree(incoming, ignore_errors=True)
            self._write(intent=None)
            raise SafelightError(
                f"Version {entry.version} could not be published to {self.root}: {error}. "
                f"What is served has not changed. Free some space or mend the folder's "
                "permissions, and run the same command again."
            ) from error
        versions.sync(self.root)
        self._commit(entry)
        return entry

    def _entry(self, source: Path, origin: Origin) -> Entry:
        facts = versions.read_object(source / "assets.extra" / MODEL_FACTS)
        if facts is None or not (source / "saved_model.pb").is_file():
            raise SafelightError(
                f"{source} is no model that can be published: expected saved_model.pb and "
                f"assets.extra/{MODEL_FACTS} in it. Remove the artifact and train again."
            )
        taken = [entry.version for entry in self.entries] + list(versions.numbers(self.root))
        return Entry(
            version=max(taken, default=0) + 1,
            published=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            by=origin.by,
            why=origin.why,
            run_id=origin.run_id,
            metrics=dict(origin.metrics),
            data=origin.data,
            code=origin.code,
            config=origin.config,
            classes=list(facts["classes"]),
            inputs={"known_classes": list(origin.known_classes), "champion": origin.champion},
            model_uri=origin.model_uri,
            model_fingerprint=facts["fingerprint"],
            status="live",
        )

    def _commit(self, entry: Entry) -> None:
        known = [one for one in self.entries if one.version != entry.version]
        self.entries = [*_retired(known), entry]
        self.current = entry.version
        self._write(intent=None)

    def _write(self, intent: Mapping[str, Any] | None) -> None:
        content = {
            "format": FORMAT,
            "model": self.root.name,
            "current": self.current,
            "versions": [asdict(entry) for entry in self.entries],
            "intent": intent,
        }
        self.root.mkdir(parents=True, exist_ok=True)
        versions.write_json(self.root / FILE, content)


def open(root: Path) -> Registry:
    """Returns the registry below `root`, after finishing or undoing what a dead process left.

    A registry that is damaged, or that disagrees with the version directories, is put right from
    these, and a warning says so. `root` need not exist yet.

    Raises:
      SafelightError: the registry was written by a newer Safelight.
    """
    if not root.is_dir():
        return Registry(root, [], None)
    content = _read_content(root)
    if content is None and ((root / FILE).exists() or versions.models(root)):
        return _rebuild(root)
    registry = _parsed(root, content)
    intent = content["intent"] if content else None
    if intent is not None:
        _finish(registry, intent["version"])
    _remove_incoming(root)
    _agree(registry)
    return registry


def read(root: Path) -> Registry:
    """Returns the registry as it stands, without repairing anything: for those who only look.

    Raises:
      SafelightError: it was written by a newer Safelight.
    """
    content = _read_content(root)
    if content is None:
        entries = [versions.recovered(root, version) for version in sorted(versions.models(root))]
        return Registry(root, entries, entries[-1].version if entries else None)
    return _parsed(root, content)


def _finish(registry: Registry, version: int) -> None:
    """Commits a push whose model stands in its place; drops one whose model does not."""
    if version in versions.models(registry.root):
        registry._commit(versions.recovered(registry.root, version))
    else:
        registry._write(intent=None)


def _agree(registry: Registry) -> None:
    """Makes `current` what TF Serving serves: the highest version that is there."""
    models = set(versions.models(registry.root))
    known = {entry.version for entry in registry.entries}
    strange = sorted(models - known)
    highest = max(models, default=None)
    if highest == registry.current and not strange:
        return
    for version in strange:
        registry.entries.append(versions.recovered(registry.root, version))
    registry.entries.sort(key=lambda entry: entry.version)
    events.warn(
        f"{registry.root / FILE} did not agree with the version directories beside it: it said "
        f"version {registry.current} is served, and the highest there is {highest}. "
        "It follows the directories now."
    )
    _make_current(registry, highest)


def _rebuild(root: Path) -> Registry:
    damaged = root / FILE
    kept = ""
    if damaged.exists():
        os.replace(damaged, root / f"{FILE}.damaged")
        kept = f" The old file is kept as {FILE}.damaged."
    _remove_incoming(root)
    registry = read(root)
    _make_current(registry, registry.current)
    events.warn(
        f"{damaged} was missing or damaged. It was rebuilt from the version directories beside "
        f"it: {len(registry.entries)} found, version {registry.current} is served.{kept}"
    )
    return registry


def _make_current(registry: Registry, version: int | None) -> None:
    registry.current = version
    registry.entries = [
        replace(entry, status="live") if entry.version == version else entry
        for entry in _retired(registry.entries)
    ]
    registry._write(intent=None)


def _retired(entries: list[Entry]) -> list[Entry]:
    return [
        replace(entry, status="retired") if entry.status == "live" else entry for entry in entries
    ]


def _parsed(root: Path, content: Mapping[str, Any] | None) -> Registry:
    if content is None:
        return Registry(root, [], None)
    return Registry(
        root, [versions.entry_from(one) for one in content["versions"]], content["current"]
    )


def _read_content(root: Path) -> dict[str, Any] | None:
    """Returns what registry.json holds; None where it is missing or damaged."""
    content = versions.read_object(root / FILE)
    if content is None:
        return None
    written = content.get("format")
    if isinstance(written, int) and written > FORMAT:
        raise SafelightError(
            f"{root / FILE} has format {written}; this version of Safelight reads {FORMAT}. "
            "Use the version that wrote it."
        )
    try:
        entries = [versions.entry_from(one) for one in content["versions"]]
        intent, current = content["intent"], content["current"]
        if intent is not None and not isinstance(intent["version"], int):
            return None
    except (TypeError, KeyError, ValueError):
        return None
    known = {entry.version for entry in entries} | {None}
    return content if written == FORMAT and current in known else None


def _remove_incoming(root: Path) -> None:
    for path in root.glob(".*.incoming"):
        shutil.rmtree(path)
