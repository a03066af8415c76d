"""Which version of a model is served, and how each one came to be: `registry.json`.

A push is a journal entry: the intent is written, the model is copied to `.<version>.incoming`,
renamed to `<version>`, and the entry is committed. Whatever instant a process dies at, `open`
finds either the old state or the new one and finishes or undoes what it finds; nothing
half-written ever stands under a number that TF Serving would load.

Only the holder of the workdir may `open` a registry, because that repairs it; anybody may `read`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline import versions
from pipeline.errors import NotBlessed, SafelightError, UsageError, bounded
from pipeline.features import MODEL_FACTS
from pipeline.registry import repair
from pipeline.registry.entries import Origin, Pin, RunInputs, live
from pipeline.registry.repair import FILE
from pipeline.versions import Entry

__all__ = ["FILE", "FORMAT", "Origin", "Pin", "Registry", "RunInputs", "open", "read"]

FORMAT = 1


class Registry:
    """The versions of one model below `serving/<model>/`; made by `open` or `read`."""

    def __init__(
        self, root: Path, entries: list[Entry], current: int | None, pinned: Pin | None = None
    ) -> None:
        self.root = root
        self.entries = entries
        self.current = current
        self.pinned = pinned

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
        before = RunInputs(
            tuple(champion.inputs["known_classes"]),
            known_columns=champion.inputs.get("known_columns", {}),
        )
        if (champion.data, champion.config, champion.code) == (data, config, code):
            version = champion.inputs["champion"]
            return before if version is None else self._beside(before, version)
        if champion.data == data:
            return self._beside(before, champion.version)
        columns = versions.known_columns(self.path(champion.version))
        inputs = RunInputs(tuple(champion.classes), known_columns=columns)
        return self._beside(inputs, champion.version)

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
        ours = (origin.data, origin.config, origin.code, origin.inputs())
        theirs = (champion.data, champion.config, champion.code, champion.inputs)
        return champion if theirs == ours else None

    def pushed_by(self, run_id: str) -> Entry | None:
        """Returns the version that a run published, or None; a rollback's is the operator's."""
        return next(
            (one for one in self.entries if (one.run_id, one.restores) == (run_id, None)), None
        )

    def publish(self, source: Path, origin: Origin, served: int | None = None) -> Entry:
        """Copies the export at `source` to the next version, makes it current, and returns it.

        Args:
          source: the export.
          origin: where it comes from.
          served: the version that was served when its run was given what to be judged against, 0
            for none; None where the workdir was held since then, so that it can't have changed.

        Raises:
          NotBlessed: what is served is pinned, or no longer is what it was when the run began, or
            this model was rolled back.
          SafelightError: `source` is no export, or it can't be copied; then nothing has changed.
        """
        self._check_pin()
        self._check_served(served)
        entry = self._entry(source, origin)
        self._check_not_rolled_back(entry)
        self._place(source, entry)
        return entry

    def rollback(self, by: str, why: str, to: int | None = None) -> Entry:
        """Publishes an older model again as the next version, and returns its entry.

        What was served until now is marked `rolled_back`: its model is never published again.

        Args:
          by: who asks for it.
          why: the reason.
          to: the version to restore; by default the newest before the current one that was not
            rolled back and is another model.

        Raises:
          UsageError: there is no such version, or none to go back to.
          NotBlessed: what is served is pinned.
          SafelightError: the model can't be copied; then nothing has changed.
        """
        bad, good = self.rollback_between(to)
        entry = replace(
            self._entry(self.path(good.version), Origin(by, why, "", "", "", "")),
            run_id=good.run_id,
            metrics=good.metrics,
            data=good.data,
            code=good.code,
            config=good.config,
            inputs=good.inputs,
            model_uri=good.model_uri,
            restores=good.version,
            rolls_back=bad.version,
        )
        self._place(self.path(good.version), entry)
        return entry

    def rollback_between(self, to: int | None) -> tuple[Entry, Entry]:
        """Returns what `rollback` would take away and what it would restore, and changes nothing.

        Raises:
          UsageError: there is no such version, or none to go back to.
          NotBlessed: what is served is pinned.
        """
        bad = self.champion()
        if bad is None:
            raise UsageError(f"Nothing is served from {self.root} yet: there is nothing to undo.")
        self._check_pin()
        return bad, self._target(bad, to)

    def pin(self, by: str, why: str) -> Pin:
        """Holds the version that is served against any push and rollback, until `unpin`."""
        if self.current is None:
            raise UsageError(f"Nothing is served from {self.root} yet: there is nothing to pin.")
        self.pinned = Pin(self.current, by, why, _now())
        self.write()
        return self.pinned

    def unpin(self) -> Pin | None:
        """Takes the pin away, and returns it; None where there was none."""
        pinned, self.pinned = self.pinned, None
        self.write()
        return pinned

    def _check_pin(self) -> None:
        if self.pinned is not None:
            raise NotBlessed(
                f"Version {self.pinned.version} is pinned since {self.pinned.since} by "
                f"{self.pinned.by} ({self.pinned.why}): nothing else may be served. "
                "Take the pin away with: safelight unpin --workdir DIR"
            )

    def _check_served(self, then: int | None) -> None:
        now = self.current or 0
        if then is not None and then != now:
            before = f"version {then}" if then else "nothing"
            after = f"version {now}" if now else "nothing"
            raise NotBlessed(
                f"When this run began, {before} was served; now {after} is, which this model was "
                "not compared with. It is not published. Run again, to be judged against what is "
                "served now."
            )

    def _check_not_rolled_back(self, entry: Entry) -> None:
        for one in self.entries:
            if one.status == "rolled_back" and one.model_fingerprint == entry.model_fingerprint:
                raise NotBlessed(
                    f"This very model was version {one.version}, which was rolled back: it is not "
                    "published again. Change the data or the configuration, and train another."
                )

    def _target(self, bad: Entry, to: int | None) -> Entry:
        banned = {one.model_fingerprint for one in self.entries if one.status == "rolled_back"}
        banned.add(bad.model_fingerprint)
        there = set(versions.models(self.root))
        good = [
            one
            for one in self.entries
            if one.version in there and one.model_fingerprint not in banned
        ]
        if to is not None:
            good = [one for one in good if one.version == to]
        if good:
            return good[-1]
        wanted = "any older version" if to is None else f"version {to}"
        raise UsageError(
            f"Can't go back to {wanted} of {self.root}: it has to be another model than version "
            f"{bad.version}, with its directory, and not rolled back. There is: "
            f"{bounded([f'{one.version} ({one.status})' for one in self.entries], limit=20)}."
        )

    def _place(self, source: Path, entry: Entry) -> None:
        """Copies the model to its version directory and commits the entry."""
        incoming = self.root / f".{entry.version}.incoming"
        try:
            self.write(intent={"version": entry.version, "source": str(source)})
            versions.copy(source, incoming)
            versions.write_json(incoming / "assets.extra" / versions.PUBLISHED, asdict(entry))
            os.rename(incoming, self.path(entry.version))
        except OSError as error:
            shutil.rmtree(incoming, ignore_errors=True)
            with contextlib.suppress(OSError):  # a full disk: the next `open` drops the intent
                self.write()
            raise SafelightError(
                f"Version {entry.version} could not be published to {self.root}: {error}. "
                f"What is served has not changed. Free some space or mend the folder's "
                "permissions, and run the same command again."
            ) from error
        try:
            versions.sync(self.root)
            self.commit(entry)
        except OSError as error:
            raise SafelightError(
                f"Version {entry.version} stands in {self.root} and is served, but {FILE} could "
                f"not be written ({error}). Free some space: the next command puts it right."
            ) from error

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
            published=_now(),
            by=origin.by,
            why=origin.why,
            run_id=origin.run_id,
            metrics=dict(origin.metrics),
            data=origin.data,
            code=origin.code,
            config=origin.config,
            classes=list(facts["classes"]),
            inputs=origin.inputs(),
            model_uri=origin.model_uri,
            model_fingerprint=facts["fingerprint"],
            status="live",
        )

    def commit(self, entry: Entry) -> None:
        """Makes an entry, whose model stands in its place, the one that is served."""
        known = [one for one in self.entries if one.version != entry.version]
        self.entries = live([*known, entry], entry.version)
        self.current = entry.version
        self.write()

    def write(self, intent: Mapping[str, Any] | None = None) -> None:
        """Replaces registry.json; `intent` is the push that is about to be made."""
        content = {
            "format": FORMAT,
            "model": self.root.name,
            "current": self.current,
            "versions": [asdict(entry) for entry in self.entries],
            "pinned": None if self.pinned is None else asdict(self.pinned),
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
        kept = repair.put_aside(root)
        repair.remove_incoming(root)
        registry = read(root)
        repair.rebuilt(registry, kept)
        return registry
    registry = _parsed(root, content)
    intent = content["intent"] if content else None
    if intent is not None:
        repair.finish(registry, intent["version"])
    repair.remove_incoming(root)
    repair.agree(registry)
    return registry


def read(root: Path) -> Registry:
    """Returns the registry as it stands, without repairing anything: for those who only look.

    Raises:
      SafelightError: it was written by a newer Safelight.
    """
    content = _read_content(root)
    if content is None:
        found = [versions.recovered(root, version) for version in sorted(versions.models(root))]
        last = found[-1].version if found else None
        return Registry(root, live(found, last), last)
    return _parsed(root, content)


def _parsed(root: Path, content: Mapping[str, Any] | None) -> Registry:
    if content is None:
        return Registry(root, [], None)
    entries = [versions.entry_from(one) for one in content["versions"]]
    pinned = content.get("pinned")
    return Registry(root, entries, content["current"], None if pinned is None else Pin(**pinned))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


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
        intent, current, pinned = content["intent"], content["current"], content.get("pinned")
        if pinned is not None:
            Pin(**pinned)
        if intent is not None and not isinstance(intent["version"], int):
            return None
    except (TypeError, KeyError, ValueError):
        return None
    known = {entry.version for entry in entries} | {None}
    return content if written == FORMAT and current in known else None
