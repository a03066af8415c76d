"""One look at the spans: what is new, what the policy says, and the training that is due.

The workdir's lock is held for a whole round: two daemons, or a daemon and a person, never train
or push at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pipeline import registry
from pipeline.config import Config, Effective
from pipeline.errors import DataRefused, SafelightError
from pipeline.ingest.scan import Scan, scan
from pipeline.registry import Registry
from pipeline.retrain import budget, policy, spans, windows
from pipeline.retrain.book import Book, Record
from pipeline.retrain.intake import EVIDENCE
from pipeline.retrain.ledger import Ledger
from pipeline.retrain.policy import Champion, Decision, Situation, SpanEvidence
from pipeline.runners import local
from pipeline.runners.local import Watcher
from pipeline.runs import Request, Result, RunDir, new_run_id
from pipeline.workdir import Workdir

FOLDER = "retrain"
_INTAKE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Round:
    """What a round came to: the decision, what held it back ("" for nothing), and the run's end."""

    decision: Decision
    held: str
    window: tuple[str, ...]
    waiting: tuple[str, ...]
    result: Result | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-serializable values."""
        return {
            "due": self.decision.due,
            "held": self.held,
            "reasons": self.decision.reasons,
            "notes": list(self.decision.notes),
            "window": list(self.window),
            "waiting": list(self.waiting),
            "result": json.loads(self.result.to_json()) if self.result else None,
        }


class Rounds:
    """Rounds over one folder of spans, in one workdir."""

    def __init__(
        self,
        workdir: Workdir,
        root: Path,
        effective: Effective,
        watch: Watcher,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepares rounds; nothing is read yet.

        Args:
          workdir: where the models are.
          root: the folder of spans.
          effective: the configuration of the trainings, and `retrain`.
          watch: called with each event of a training.
          clock: seconds since 1970.
        """
        self.workdir = workdir
        self.root = root.expanduser().absolute()
        self.effective = effective
        self.config: Config = effective.config
        self.folder = workdir.root / FOLDER
        self.ledger = Ledger(self.folder)
        self._watch = watch
        self._clock = clock

    def round(
        self, lock: int, *, dry_run: bool = False, asked_for: str = "", log_to_screen: bool = False
    ) -> Round:
        """Looks, decides, and trains where a training is due and nothing holds it back.

        Args:
          lock: the workdir's, held by the caller.
          dry_run: decide and say so, but train and record nothing.
          asked_for: an operator's reason to train now.
          log_to_screen: what TensorFlow and TFX print goes to standard error.

        Raises:
          SafelightError: the spans or the registry can't be read.
        """
        book = Book(self.folder)
        self._close_attempts(book)
        waiting = self._take(book)
        serving = registry.open(self.workdir.serving(self.config.push.model_name))
        evidence = self._evidence(book, serving)
        now = self._clock()
        usable = book.usable()
        decision = policy.decide(
            Situation(
                now=now,
                champion=self._champion(serving),
                new=evidence,
                usable=len(usable),
                scheduled=_scheduled(self.config.retrain.cron, now),
                attempted=max((one.at for one in self.ledger.attempts()), default=None),
                asked_for=asked_for,
                alarm=self._alarm(serving),
            ),
            self.config.retrain,
        )
        window = windows.resolve(usable, self.config.retrain) if decision.due else []
        held = self._held(serving, now, asked_for) if decision.due else ""
        done = Round(decision, held, tuple(one.name for one in window), tuple(waiting))
        if dry_run:
            return done
        self.ledger.add(now, "decision", **{**decision.to_dict(), **_brief(done)})
        if not decision.due or held:
            return done
        return replace(done, result=self._train(book, window, decision, lock, log_to_screen))

    def _held(self, serving: Registry, now: float, asked_for: str) -> str:
        if serving.pinned is not None:
            return f"Version {serving.pinned.version} is pinned: {serving.pinned.why}."
        if asked_for:
            return ""
        return budget.hold(self.ledger.attempts(), now, self.config.retrain)

    def _take(self, book: Book) -> list[str]:
        """Takes every complete span into the book; returns what is said of the others."""
        waiting = []
        for span in spans.find(self.root, self.config.retrain.pattern):
            try:
                found = scan(str(span.path), self.config.ingest)
                complete = self._complete(book, span, found)
            except DataRefused as error:
                # Half a span may look like none: it is refused once it is complete.
                if spans.marked(span) or self._settled(book, span, f"refused: {error}"):
                    self._quarantine_unread(book, span, str(error))
                else:
                    waiting.append(f"{span.name}: {error}")
                continue
            except FileNotFoundError:
                continue  # deleted while it was looked at
            if complete:
                book.take(span.number, span.path, found.to_dict(), self._clock())
            else:
                waiting.append(f"{span.name} is not complete yet")
        return waiting

    def _complete(self, book: Book, span: spans.Span, found: Scan) -> bool:
        return spans.marked(span) or self._settled(book, span, found.fingerprint)

    def _settled(self, book: Book, span: spans.Span, fingerprint: str) -> bool:
        seconds = self.config.retrain.settle_minutes * 60
        now = self._clock()
        if now - spans.last_change(span) >= 0 and now - spans.last_change(span) >= seconds:
            return True
        return book.settled(span.number, fingerprint, now, seconds)

    def _quarantine_unread(self, book: Book, span: spans.Span, reason: str) -> None:
        known = [one for one in book.latest() if one.number == span.number]
        mark = f"refused: {reason}"
        if known and known[-1].reason == mark:
            return
        facts = {"fingerprint": mark, "files": 0, "bytes": 0}
        record = book.take(span.number, span.path, facts, self._clock())
        self._quarantine(book, record, mark)

    def _quarantine(self, book: Book, record: Record, reason: str) -> None:
        book.quarantine(record, reason)
        self.ledger.add(
            self._clock(),
            "quarantine",
            span=record.number,
            revision=record.revision,
            reason=reason,
        )

    def _evidence(self, book: Book, serving: Registry) -> list[SpanEvidence]:
        """Returns what is known of each new span; a broken one goes into quarantine."""
        new = book.new()
        champion = serving.champion()
        if not new:
            return []
        if champion is None:
            return [SpanEvidence(one.number, one.images) for one in new]
        found = self._look(new, champion.run_id)
        evidence = []
        for record in new:
            facts = found.get(record.name, {"failed": "it was not looked at"})
            if "refused" in facts:
                self._quarantine(book, record, facts["refused"])
            elif "failed" in facts:
                self.ledger.add(self._clock(), "unread", span=record.number, reason=facts["failed"])
            else:
                evidence.append(_evidence_of(record, facts))
        return evidence

    def _look(self, new: Sequence[Record], champion_run: str) -> dict[str, Any]:
        """Runs the intake of spans that it has not looked at with this champion."""
        known: dict[str, Any] = {}
        for record in new:
            file = self._evidence_file(record, champion_run)
            if file.is_file():
                known[record.name] = json.loads(file.read_text(encoding="utf-8"))
        missing = [record for record in new if record.name not in known]
        if not missing:
            return known
        request = self._request(missing, new_run_id(), None)
        request = replace(request, inputs={**request.inputs, "champion_run": champion_run})
        run = RunDir(self.folder / "intake" / request.run_id)
        run.write_request(request)
        with open(run.log, "ab") as log:
            subprocess.run(
                [sys.executable, "-m", "pipeline.retrain.intake", self.workdir.root, run.root],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=_INTAKE_SECONDS,
                check=False,
            )
        file = run.root / EVIDENCE
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        for record in missing:
            facts = found.get(record.name)
            if facts is None:
                raise SafelightError(
                    f"The new spans could not be read; {run.log} has the last words of the "
                    "process that tried. Run the same command again."
                )
            if "failed" not in facts:
                file = self._evidence_file(record, champion_run)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(facts), encoding="utf-8")
            known[record.name] = facts
        return known

    def _champion(self, serving: Registry) -> Champion | None:
        entry = serving.champion()
        if entry is None:
            return None
        published = datetime.strptime(entry.published, "%Y-%m-%dT%H:%M:%SZ")
        run = RunDir(self.workdir.runs / entry.run_id) if entry.run_id else None
        result = run.read_result() if run else None
        return Champion(
            version=entry.version,
            published=published.replace(tzinfo=timezone.utc).timestamp(),
            accuracy=entry.metrics.get("accuracy"),
            test_images=result.examples.get("test", 0) if result else 0,
        )

    def _alarm(self, serving: Registry) -> str:
        """Returns the newest alarm about what is served that no training has followed."""
        alarm = ""
        for line in self.ledger.read():
            if line["kind"] == "monitor" and line["version"] == serving.current:
                alarm = line["reason"]
            elif line["kind"] == "attempt":
                alarm = ""
        return alarm

    def _evidence_file(self, record: Record, champion_run: str) -> Path:
        return self.folder / "evidence" / f"{record.fingerprint[:32]}-{champion_run}.json"

    def _request(
        self, window: Sequence[Record], run_id: str, golden: Scan | None, by: str = ""
    ) -> Request:
        whole = windows.scan_of(str(self.root), window, golden)
        asked = local.request(self.workdir, self.effective, whole, run_id)
        listed = [one.to_dict() for one in windows.members(window, golden)]
        lineage = {**asked.lineage, "by": by} if by else asked.lineage
        return replace(asked, spans=listed, lineage=lineage)

    def _train(
        self,
        book: Book,
        window: Sequence[Record],
        decision: Decision,
        lock: int,
        log_to_screen: bool,
    ) -> Result:
        golden = self.config.retrain.golden
        golden_scan = scan(golden, self.config.ingest) if golden else None
        run_id = new_run_id()
        by = f"safelight retrain: {decision.reasons[0]}"
        request = self._request(window, run_id, golden_scan, by)
        run = RunDir(self.workdir.runs / run_id)
        run.write_request(request)
        self.ledger.add(self._clock(), "attempt", run_id=run_id)
        try:
            result = local.execute(self.workdir, run, lock, self._watch, log_to_screen)
        except KeyboardInterrupt:
            # Whoever stops a training does not want the pause that a failure brings.
            self.ledger.add(self._clock(), "outcome", run_id=run_id, outcome="stopped")
            raise
        self._close(book, result, window)
        return result

    def _close_attempts(self, book: Book) -> None:
        """Ends the attempts of a process that died behind their end and before its record."""
        ended = {one["run_id"] for one in self.ledger.read() if one["kind"] == "outcome"}
        for entry in list(self.ledger.read()):
            if entry["kind"] != "attempt" or entry["run_id"] in ended:
                continue
            run = RunDir(self.workdir.runs / entry["run_id"])
            result = run.read_result() if run.request.is_file() else None
            if result is not None:
                fingerprints = {one["fingerprint"] for one in run.read_request().spans}
                window = [one for one in book.latest() if one.fingerprint in fingerprints]
                self._close(book, result, window)

    def _close(self, book: Book, result: Result, window: Sequence[Record]) -> None:
        """Records how a training ended, and what that means for its spans."""
        if result.outcome == "invalid_data":
            reason = result.reasons[0] if result.reasons else "validation refused the data"
            for record in window:
                if not record.trained:
                    self._quarantine(book, record, f"{reason} (run {result.run_id})")
        elif result.outcome != "failed":
            book.mark_trained({record.fingerprint for record in window})
        self.ledger.add(
            self._clock(),
            "outcome",
            run_id=result.run_id,
            outcome=result.outcome,
            version=result.version,
            reasons=result.reasons,
        )


def _brief(done: Round) -> dict[str, Any]:
    return {"held": done.held, "window": list(done.window), "waiting": list(done.waiting)}


def _evidence_of(record: Record, facts: dict[str, Any]) -> SpanEvidence:
    return SpanEvidence(
        number=record.number,
        images=facts["images"],
        label_drift=facts.get("label_drift"),
        fact_drift=facts.get("fact_drift", {}),
        new_classes=tuple(facts.get("new_classes", ())),
        asked=facts.get("asked", 0),
        correct=facts.get("correct", 0),
    )


def _scheduled(cron: str, now: float) -> float | None:
    """Returns the last time that the expression names at or before `now` (UTC)."""
    if not cron:
        return None
    from croniter import croniter

    at = datetime.fromtimestamp(now, timezone.utc)
    previous: float = croniter(cron, at).get_prev(float)
    return now if croniter.match(cron, at) else previous
