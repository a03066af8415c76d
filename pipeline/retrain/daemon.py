"""`safelight retrain --watch`: a round whenever files change, and at least so often.

File events only wake it: what they miss (a network file system, a full queue) polling finds. Health
and metrics are served on the loopback interface.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import filelock
from prometheus_client import CollectorRegistry, Counter, Gauge, make_wsgi_app
from rich.markup import escape
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from pipeline import console, registry
from pipeline.config import Effective
from pipeline.errors import Busy, SafelightError
from pipeline.retrain.on_cluster import Cluster
from pipeline.retrain.rounds import FOLDER, ON_CLUSTER, Round, Rounds
from pipeline.workdir import Workdir

# Many files come at once: one look for all that come within this time.
_QUIET_SECONDS = 1.0
# A round that has not ended for so many polls, with no training, is told as unhealthy.
_LATE_POLLS = 5


class Daemon:
    """Rounds until a signal; only one daemon runs in a workdir."""

    def __init__(
        self,
        workdir: Workdir,
        root: Path,
        effective: Effective,
        say: Callable[[Round], None],
        log_to_screen: bool = False,
        cluster: Cluster | None = None,
    ) -> None:
        """Prepares the daemon; `cluster` is where it trains, None for this machine."""
        self._workdir = workdir
        self._root = root.expanduser().absolute()
        self._options = effective.config.retrain
        self._model = effective.config.push.model_name
        self._say = say
        self._log_to_screen = log_to_screen
        self._rounds = Rounds(workdir, root, effective, self._event, cluster=cluster)
        self._wake = threading.Event()
        self._state = _State(self._options.poll_seconds)

    def run(self) -> int:
        """Goes round until SIGTERM or SIGINT, and returns the exit code 0.

        A training that runs then is stopped cleanly: the next one goes on from there.

        Raises:
          Busy: another daemon runs in this workdir.
          SafelightError: the port is taken.
        """
        folder = self._workdir.root / FOLDER
        folder.mkdir(exist_ok=True)
        lock = filelock.FileLock(folder / ".daemon.lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise Busy(
                f"Another `safelight retrain --watch` runs in {self._workdir.root}. "
                "Stop that one, or leave it to its work."
            ) from None
        previous = {one: signal.signal(one, _stop) for one in (signal.SIGTERM, signal.SIGINT)}
        server = _serve(self._options.port, self._state)
        observer = self._observe()
        try:
            self._go_round()
        except KeyboardInterrupt:
            console.stderr.print("Stopped. Start it again at any time: it goes on from here.")
        finally:
            for one, handler in previous.items():
                signal.signal(one, handler)
            if observer is not None:
                observer.stop()
            server.shutdown()
            lock.release()
        return 0

    def _go_round(self) -> None:
        while True:
            self._wake.clear()
            self._one()
            if self._wake.wait(self._options.poll_seconds):
                time.sleep(_QUIET_SECONDS)

    def _one(self) -> None:
        try:
            done = self._rounds.go(log_to_screen=self._log_to_screen)
            served = self._champion()
        except Busy as error:
            self._state.ended(str(error), healthy=True)
            return
        except (SafelightError, OSError) as error:
            # A full disk, a folder that is gone for a moment: told, and tried again.
            console.stderr.print(f"[bold red]error:[/] {escape(str(error))}")
            self._state.ended(str(error), healthy=False)
            return
        self._state.count(done, served)
        if done.decision.due or done.quarantined:
            self._say(done)

    def _champion(self) -> int:
        champion = registry.read(self._workdir.serving(self._model)).champion()
        return champion.version if champion else 0

    def _event(self, event: dict[str, Any]) -> None:
        self._state.alive(elsewhere=event["kind"] == ON_CLUSTER)

    def _observe(self) -> Any:
        observer = Observer()
        try:
            observer.schedule(_Waker(self._wake), str(self._root), recursive=True)
            observer.start()
        except OSError as error:  # no such folder yet, or the kernel's limit of watches
            console.stderr.print(f"No file events ({escape(str(error))}): polling alone.")
            return None
        return observer


class _Waker(FileSystemEventHandler):
    """Wakes the daemon at any change; reading is none."""

    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in {"created", "modified", "moved", "deleted", "closed"}:
            self._wake.set()


class _State:
    """What health and metrics tell."""

    def __init__(self, poll_seconds: float) -> None:
        self.registry = CollectorRegistry()
        self._late = poll_seconds * _LATE_POLLS + 60
        self._last = time.monotonic()
        self._healthy = True
        self._elsewhere = False
        self._said = "starting"
        self._count_rounds = Counter("safelight_rounds", "Rounds.", registry=self.registry)
        self._trainings = Counter(
            "safelight_trainings", "Trainings by outcome.", ["outcome"], registry=self.registry
        )
        self._errors = Counter("safelight_round_errors", "Failed rounds.", registry=self.registry)
        self._due = Gauge("safelight_due", "Whether one is due.", registry=self.registry)
        self._version = Gauge("safelight_version", "Version served.", registry=self.registry)
        self._waiting = Gauge(
            "safelight_waiting_spans", "Spans that are not complete.", registry=self.registry
        )
        self._at = Gauge(
            "safelight_last_round_seconds", "When, since 1970.", registry=self.registry
        )

    def alive(self, elsewhere: bool = False) -> None:
        """Notes a sign of life; what runs `elsewhere` gives none until it has ended."""
        self._last = time.monotonic()
        self._elsewhere = elsewhere

    def ended(self, said: str, healthy: bool) -> None:
        self.alive()
        self._healthy, self._said = healthy, said
        self._at.set(time.time())
        if not healthy:
            self._errors.inc()

    def count(self, done: Round, version: int) -> None:
        self.ended("; ".join([*done.decision.reasons, done.held]).strip("; "), healthy=True)
        self._count_rounds.inc()
        self._due.set(done.decision.due)
        self._waiting.set(len(done.waiting))
        self._version.set(version)
        if done.result is not None:
            self._trainings.labels(done.result.outcome).inc()

    def health(self) -> tuple[bool, dict[str, Any]]:
        late = time.monotonic() - self._last
        healthy = self._healthy and (self._elsewhere or late < self._late)
        return healthy, {"healthy": healthy, "seconds_since": round(late, 1), "last": self._said}


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a request every few seconds is no news."""


def _serve(port: int, state: _State) -> WSGIServer:
    metrics = make_wsgi_app(state.registry)

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/metrics":
            found: Iterable[bytes] = metrics(environ, start_response)
            return found
        if environ["PATH_INFO"] not in ("/", "/healthz"):
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"There is /healthz and /metrics.\n"]
        healthy, content = state.health()
        status = "200 OK" if healthy else "503 Service Unavailable"
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(content).encode() + b"\n"]

    try:
        server = make_server("127.0.0.1", port, answer, handler_class=_Quiet)
    except OSError as error:
        raise SafelightError(
            f"Port {port} on 127.0.0.1 can't be opened ({error.strerror}): health and metrics are "
            "served there. Choose another: --set retrain.port=0 takes a free one."
        ) from None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    console.stderr.print(f"Health and metrics: http://127.0.0.1:{server.server_port}/")
    return server


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
