"""What is known of new spans: each is looked into once for each champion, in a process of its own.

retrain/evidence/<span>-<champion's run>-<how closely>.json    what was found
retrain/intake/<id>/                                           how, with the process's log
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.errors import DataRefused, SafelightError
from pipeline.ingest.scan import scan
from pipeline.retrain.book import Record
from pipeline.retrain.intake import EVIDENCE, looks_closely
from pipeline.retrain.labels import Contradicted
from pipeline.retrain.policy import SpanEvidence
from pipeline.runs import Request, RunDir, write_json
from pipeline.workdir import Workdir

_INTAKE_SECONDS = 24 * 3600

MakeRequest = Callable[[Sequence[Record]], Request]


class Evidence:
    """What spans look like to one champion."""

    def __init__(self, known: Path, workdir: Workdir, champion_run: RunDir, config: Config) -> None:
        """Prepares looking.

        Args:
          known: the workdir's folder `retrain`, with what was found before.
          workdir: what is read and found now is written to it; another one than that of `known`
            where nothing is to stay.
          champion_run: of the version that is served.
          config: its sections `ingest` and `retrain`.
        """
        self._known = known / "evidence"
        self._folder = workdir.root / known.name
        self._workdir = workdir
        self._champion = champion_run
        self._config = config
        closely = looks_closely(config.retrain.model_dump())
        self._suffix = f"{champion_run.root.name}{'-closely' if closely else ''}"

    def of(self, new: Sequence[Record], make_request: MakeRequest) -> dict[str, dict[str, Any]]:
        """Returns what is known of each span, by its name (`pipeline.retrain.intake`).

        Args:
          new: the spans.
          make_request: returns a request whose window these spans are.

        Raises:
          SafelightError: the process that looks died.
        """
        known: dict[str, dict[str, Any]] = {}
        for record in new:
            facts = _read(self._known / self._name(record))
            if facts is not None:
                known[record.name] = facts
        missing = [record for record in new if record.name not in known]
        if missing:
            known.update(self._look(missing, make_request(missing)))
        return known

    def _look(self, missing: Sequence[Record], request: Request) -> dict[str, dict[str, Any]]:
        inputs = {**request.inputs, "champion_artifacts": self._champion.read_artifacts()}
        run = RunDir(self._folder / "intake" / request.run_id)
        run.write_request(replace(request, inputs=inputs))
        with open(run.log, "ab") as log:
            subprocess.run(
                [sys.executable, "-m", "pipeline.retrain.intake", self._workdir.root, run.root],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=_INTAKE_SECONDS,
                check=False,
            )
        found = _read(run.root / EVIDENCE) or {}
        known: dict[str, dict[str, Any]] = {}
        for record in missing:
            facts = found.get(record.name)
            if facts is None:
                raise SafelightError(
                    f"The new spans could not be read; {run.log} has the last words of the "
                    "process that tried. Run the same command again."
                )
            if "refused" in facts and not self._as_taken(record):
                # Deleted or rewritten meanwhile: what is there next is looked at anew.
                facts = {"failed": f"{record.path} changed while it was read."}
            known[record.name] = facts
            if "failed" not in facts:
                place = self._folder / "evidence" / self._name(record)
                place.parent.mkdir(parents=True, exist_ok=True)
                write_json(place, facts)
        return known

    def _as_taken(self, record: Record) -> bool:
        try:
            return scan(record.path, self._config.ingest).fingerprint == record.fingerprint
        except (DataRefused, OSError):
            return False

    def _name(self, record: Record) -> str:
        return f"{record.fingerprint[:32]}-{self._suffix}.json"


def _read(file: Path) -> dict[str, Any] | None:
    """Returns what was found; None where nothing was, or where the file is damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def of_span(record: Record, facts: Mapping[str, Any]) -> SpanEvidence:
    """Returns the facts as the policy reads them."""
    doubts = facts.get("labels")
    return SpanEvidence(
        number=record.number,
        images=facts["images"],
        label_drift=facts.get("label_drift"),
        fact_drift=facts.get("fact_drift", {}),
        new_classes=tuple(facts.get("new_classes", ())),
        asked=facts.get("asked", 0),
        correct=facts.get("correct", 0),
        moved=facts.get("moved"),
        chance=facts.get("chance", 0.0),
        labels=None if doubts is None else Contradicted(**doubts),
    )
