"""One look at the spans: what is new, what the policy says, and the training that is due.

The workdir's lock is held for a whole round: two daemons, or a daemon and a person, never train
or push at once. A training on a cluster takes that lock itself, step by step: there it is held to
decide and to record, and an attempt without an end keeps others from starting.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pipeline import registry
from pipeline.config import Config, Effective
from pipeline.ingest.listing import readable
from pipeline.ingest.scan import Scan, scan
from pipeline.registry import Registry, RunInputs
from pipeline.retrain import budget, policy, windows
from pipeline.retrain.arrivals import Arrivals
from pipeline.retrain.book import Book, Record
from pipeline.retrain.evidence import Evidence, of_span
from pipeline.retrain.ledger import Ledger
from pipeline.retrain.on_cluster import Cluster
from pipeline.retrain.policy import Champion, Decision, Situation, SpanEvidence
from pipeline.runners import local
from pipeline.runners.local import Watcher
from pipeline.runs import Request, Result, RunDir, new_run_id
from pipeline.workdir import Workdir

FOLDER = "retrain"
# The kind of the one event that a training on a cluster gives: it has begun.
ON_CLUSTER = "on_cluster"


@dataclass(frozen=True)
class Round:
    """What a round came to: the decision, what held it back ("" for nothing), and the run's end.

    `quarantined` has a sentence for each span that was put aside.
    """

    decision: Decision
    held: str
    window: tuple[str, ...]
    waiting: tuple[str, ...]
    quarantined: tuple[str, ...] = ()
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
            "quarantined": list(self.quarantined),
            "result": json.loads(self.result.to_json()) if self.result else None,
        }


@dataclass(frozen=True)
class _Plan:
    """What is to be done: the round so far, and the window to train on; empty for no training."""

    done: Round
    window: tuple[Record, ...]
    book: Book


class Rounds:
    """Rounds over one folder of spans, in one workdir."""

    def __init__(
        self,
        workdir: Workdir,
        root: Path,
        effective: Effective,
        watch: Watcher,
        clock: Callable[[], float] = time.time,
        *,
        cluster: Cluster | None = None,
        scratch: Path | None = None,
    ) -> None:
        """Prepares rounds; nothing is read yet.

        Args:
          workdir: where the models are.
          root: the folder of spans.
          effective: the configuration of the trainings, and `retrain`.
          watch: called with each event of a training.
          clock: seconds since 1970.
          cluster: trains there; None trains on this machine.
          scratch: an empty folder; then rounds are only tried: nothing is trained, and nothing is
            written elsewhere.
        """
        self.workdir = workdir
        self.root = root.expanduser().absolute()
        self.effective = effective
        self.config: Config = effective.config
        self.folder = workdir.root / FOLDER
        self.ledger = Ledger(self.folder, keep=scratch is None)
        self._watch = watch
        self._clock = clock
        self._cluster = cluster
        self._scratch = None if scratch is None else Workdir(scratch)
        self._quarantined: list[str] = []
        self._unread: set[int] = set()

    def go(self, *, wait: bool = False, asked_for: str = "", log_to_screen: bool = False) -> Round:
        """Makes one round, with the workdir's lock where that is needed.

        Args:
          wait: for the workdir, where somebody else holds it.
          asked_for: an operator's reason to train now.
          log_to_screen: what TensorFlow and TFX print goes to standard error.

        Raises:
          Busy: somebody else holds the workdir.
          SafelightError: the spans or the registry can't be read, or the training can't begin.
        """
        if self._scratch is not None:
            done = self._decide(asked_for).done
            self._golden()  # as a training reads it: one that is not there is told now
            return done
        cluster = self._cluster
        if cluster is None:
            with self.workdir.lock(wait) as lock:
                return self.round(lock, asked_for=asked_for, log_to_screen=log_to_screen)
        with self.workdir.lock(wait):
            plan = self._decide(asked_for)
            if not plan.window:
                return plan.done
            server_run = self._start(cluster, plan.window)
        self._watch({"kind": ON_CLUSTER, "run": server_run})
        result = cluster.follow(server_run)
        with self.workdir.lock(wait=True):
            self._close(Book(self.folder), result, plan.window, server_run)
        return replace(plan.done, result=result)

    def round(self, lock: int, *, asked_for: str = "", log_to_screen: bool = False) -> Round:
        """Looks, decides, and trains here where a training is due and nothing holds it back.

        Args:
          lock: the workdir's, held by the caller.
          asked_for: as in `go`.
          log_to_screen: as in `go`.
        """
        plan = self._decide(asked_for)
        if not plan.window or self._scratch is not None:
            return plan.done
        return replace(plan.done, result=self._train(plan, lock, log_to_screen))

    def _decide(self, asked_for: str) -> _Plan:
        self._quarantined, self._unread = [], set()
        book = Book(self.folder, keep=self._scratch is None)
        running = self._close_attempts(book)
        arrivals = self._arrivals(book)
        waiting = arrivals.take()
        models = registry.read if self._scratch is not None else registry.open
        serving = models(self.workdir.serving(self.config.push.model_name))
        evidence = self._evidence(book, serving)
        now = self._clock()
        usable = [one for one in book.usable() if one.number not in self._unread]
        decision = policy.decide(
            Situation(
                now=now,
                champion=self._champion(serving),
                new=evidence,
                usable=len(usable),
                scheduled=policy.scheduled(self.config.retrain.cron, now),
                attempted=max((one.at for one in self.ledger.attempts()), default=None),
                asked_for=asked_for,
                alarm=self._alarm(serving),
            ),
            self.config.retrain,
        )
        decision = replace(decision, notes=(*decision.notes, *arrivals.gone()))
        window = windows.resolve(usable, self.config.retrain) if decision.due else []
        held = (running or self._held(serving, now, asked_for)) if decision.due else ""
        names = tuple(one.name for one in window)
        done = Round(decision, held, names, tuple(waiting), tuple(self._quarantined))
        self.ledger.decide(now, {**decision.to_dict(), **_brief(done)})
        return _Plan(done, () if held else tuple(window), book)

    def _held(self, serving: Registry, now: float, asked_for: str) -> str:
        if serving.pinned is not None:
            return f"Version {serving.pinned.version} is pinned: {serving.pinned.why}."
        if asked_for:
            return ""
        return budget.hold(self.ledger.attempts(), now, self.config.retrain)

    def _arrivals(self, book: Book) -> Arrivals:

        def put_aside(record: Record, reason: str) -> None:
            self._quarantine(book, record, reason)

        return Arrivals(self.root, self.config, book, put_aside, self._clock)

    def _quarantine(self, book: Book, record: Record, reason: str) -> None:
        book.quarantine(record, reason)
        self._quarantined.append(f"Span {record.number} is put aside: {reason}")
        self.ledger.add(
            self._clock(),
            "quarantine",
            span=record.number,
            revision=record.revision,
            reason=reason,
        )

    def _evidence(self, book: Book, serving: Registry) -> list[SpanEvidence]:
        """Returns what is known of each new span; a broken one goes into quarantine."""
        new = windows.new(book, self.config.retrain)
        champion = serving.champion()
        if not new:
            return []
        if champion is None:
            return [SpanEvidence(one.number, one.images) for one in new]
        place = self._scratch or self.workdir
        run = RunDir(self.workdir.runs / champion.run_id)
        looked = Evidence(self.folder, place, run, self.config)
        found = looked.of(new, lambda missing: self._request(missing, new_run_id(), None))
        evidence = []
        for record in new:
            facts = found[record.name]
            if "refused" in facts:
                self._quarantine(book, record, facts["refused"])
            elif "failed" in facts:
                self._unread.add(record.number)
                self.ledger.add(self._clock(), "unread", span=record.number, reason=facts["failed"])
            else:
                seen = of_span(record, facts)
                doubt = "" if record.released else policy.doubts(seen, self.config.retrain)
                if doubt:
                    self._quarantine(book, record, doubt)
                else:
                    evidence.append(seen)
        return evidence

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
            images=sum(result.examples.values()) if result else 0,
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

    def _request(
        self, window: Sequence[Record], run_id: str, golden: Scan | None, by: str = ""
    ) -> Request:
        whole = windows.scan_of(str(self.root), window, golden)
        if self._scratch is None:
            asked = local.request(self.workdir, self.effective, whole, run_id)
        else:
            asked = local.request(self._scratch, self.effective, whole, run_id, self._as_served)
        listed = [one.to_dict() for one in windows.members(window, golden)]
        lineage = {**asked.lineage, "by": by} if by else asked.lineage
        return replace(asked, spans=listed, lineage=lineage)

    def _as_served(self, _: Registry) -> RunInputs:
        """Returns what any run on new data is given, from the registry as it stands."""
        serving = registry.read(self.workdir.serving(self.config.push.model_name))
        return serving.resolve_inputs("", "", "")

    def _train(self, plan: _Plan, lock: int, log_to_screen: bool) -> Result:
        run_id = new_run_id()
        by = f"safelight retrain: {plan.done.decision.reasons[0]}"
        golden = self._golden()
        whole = windows.scan_of(str(self.root), plan.window, golden)
        local.check(self.workdir, self.effective, whole)
        request = self._request(plan.window, run_id, golden, by)
        run = RunDir(self.workdir.runs / run_id)
        run.write_request(request)
        local.keep_own_models(run, request)
        self.ledger.add(self._clock(), "attempt", run_id=run_id)
        try:
            result = local.execute(self.workdir, run, lock, self._watch, log_to_screen)
        except KeyboardInterrupt:
            # Whoever stops a training does not want the pause that a failure brings.
            self.ledger.add(self._clock(), "outcome", run_id=run_id, outcome="stopped")
            raise
        self._close(plan.book, result, plan.window, run_id)
        return result

    def _golden(self) -> Scan | None:
        golden = self.config.retrain.golden
        if not golden:
            return None
        with readable(golden):
            return scan(golden, self.config.ingest)

    def _start(self, cluster: Cluster, window: Sequence[Record]) -> str:
        listed = [one.to_dict() for one in windows.members(window, self._golden())]
        server_run = cluster.start(self.root, listed)
        self.ledger.add(
            self._clock(),
            "attempt",
            run_id=server_run,
            server_run=server_run,
            spans=[one.fingerprint for one in window],
        )
        return server_run

    def _close_attempts(self, book: Book) -> str:
        """Ends the attempts of a process that died behind their end and before its record.

        Returns:
          What is said of a run that still goes on, on a cluster; "" without one.
        """
        lines = list(self.ledger.read())
        ended = {one["run_id"] for one in lines if one["kind"] == "outcome"}
        for entry in lines:
            if entry["kind"] != "attempt" or entry["run_id"] in ended:
                continue
            result, fingerprints = self._end_of(entry)
            if result is not None:
                window = [one for one in book.latest() if one.fingerprint in fingerprints]
                self._close(book, result, window, entry["run_id"])
            elif "server_run" in entry and self._cluster is not None:
                return f"Run {entry['server_run']} goes on, on the cluster."
        return ""

    def _end_of(self, attempt: dict[str, Any]) -> tuple[Result | None, set[str]]:
        """Returns how an attempt ended, None where that isn't known, and its window."""
        if "server_run" in attempt:
            cluster = self._cluster
            found = cluster.ended(attempt["server_run"]) if cluster is not None else None
            return found, set(attempt["spans"])
        run = RunDir(self.workdir.runs / attempt["run_id"])
        if not run.request.is_file():
            return None, set()
        return run.read_result(), {one["fingerprint"] for one in run.read_request().spans}

    def _close(self, book: Book, result: Result, window: Sequence[Record], attempt: str) -> None:
        """Records how a training ended, and what that means for its spans."""
        verdict = _verdict(RunDir(self.workdir.runs / result.run_id))
        # Blessed and not pushed: something else was served meanwhile, which has not seen the spans.
        blessed = bool(verdict.get("blessed"))
        if result.outcome == "invalid_data":
            reason = result.reasons[0] if result.reasons else "validation refused the data"
            for record in window:
                if not record.trained:
                    self._quarantine(book, record, f"{reason} (run {result.run_id})")
        elif result.outcome != "failed" and not (result.outcome == "not_blessed" and blessed):
            book.mark_trained({record.fingerprint for record in window})
        self.ledger.add(
            self._clock(),
            "outcome",
            run_id=attempt,
            outcome=result.outcome,
            version=result.version,
            reasons=result.reasons,
            forgetting=verdict.get("forgetting", []),
        )


def _verdict(run: RunDir) -> dict[str, Any]:
    """Returns the run's verdict.json; nothing if it didn't come to one."""
    blessing = run.read_artifacts().get("BlessingGate", {}).get("blessing")
    file = None if blessing is None else Path(blessing) / "verdict.json"
    if file is None or not file.is_file():
        return {}
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def _brief(done: Round) -> dict[str, Any]:
    return {"held": done.held, "window": list(done.window), "waiting": list(done.waiting)}
