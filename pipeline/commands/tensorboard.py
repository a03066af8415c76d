"""`safelight tensorboard`: TensorBoard over a workdir's runs, each by its id.

TensorBoard is a process of its own, on loopback. It reads a folder of links to where the runs left
their logs: Trainer's below the run's id, the trials of a search below `<id>/trials`. The folder is
kept up to date, so that a run that has just begun shows up too.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.markup import escape

from pipeline import console, runs
from pipeline.commands import processes
from pipeline.errors import SafelightError, UsageError
from pipeline.workdir import Workdir, open_workdir

LOOPBACK: Final = "127.0.0.1"
PORT: Final = 6006
_TRAINER: Final = ("Trainer", "model_run")
_TUNER: Final = ("Tuner", "tuner_results")
_TRIALS: Final = "trials"
_REFRESH_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 60.0


def command(workdir: Path, port: int = PORT, as_json: bool = False) -> int:
    """Shows a workdir's runs until it is stopped with Ctrl-C or SIGTERM; returns the exit code.

    Args:
      workdir: with runs that have trained.
      port: on loopback; 0 picks a free one.
      as_json: print `{"url", "runs"}` once it answers.

    Raises:
      UsageError: there is no workdir, or nothing in it has logs yet.
      SafelightError: the port is taken, or TensorBoard doesn't start.
    """
    place = open_workdir(workdir, create=False)
    found = logs(place)
    if not found:
        raise UsageError(
            f"The workdir {place.root} has no logs of a training yet. Train first: "
            f"safelight run DATA --workdir {place.root}"
        )
    port = _free_port(port)
    with tempfile.TemporaryDirectory(prefix="safelight-tensorboard-") as folder:
        link(found, Path(folder))
        with processes.stop_asked() as stopped, _started(Path(folder), port) as process:
            _wait_for_answer(process, port, stopped)
            if not stopped.is_set():
                _announce(port, found, as_json)
            while process.poll() is None and not stopped.wait(_REFRESH_SECONDS):
                link(logs(place), Path(folder))
            if not stopped.is_set():
                raise _not_started(process, port)
    return 0


def logs(workdir: Workdir) -> dict[str, Path]:
    """Returns {name on TensorBoard's page: folder of logs}: a run's id, or `<id>/trials`.

    A run whose Trainer came from the cache has the logs of the run that trained: they are shown
    once, by that run's id. A run that is training now is told by the job that it has written.
    """
    found: dict[Path, str] = {}
    for run in runs.all_runs(workdir.runs):
        for (node, key), below in ((_TRAINER, ""), (_TUNER, f"/{_TRIALS}")):
            uri = run.read_artifacts().get(node, {}).get(key)
            if uri:
                found.setdefault(_folder(Path(uri), node), f"{run.root.name}{below}")
    for (node, key), below in ((_TRAINER, ""), (_TUNER, f"/{_TRIALS}")):
        for job in (workdir.artifacts / node / key).glob("*/job.json"):
            run_id = _run_of(job)
            if run_id:
                found.setdefault(_folder(job.parent, node), f"{run_id}{below}")
    return {name: path for path, name in sorted(found.items()) if _has_logs(path)}


def link(found: dict[str, Path], folder: Path) -> None:
    """Links each folder of logs by its name, unless it is linked already."""
    for name, path in found.items():
        # Part by part: the trials of a search lie below the name of their run.
        for part in filter(Path.is_dir, path.iterdir()):
            place = folder / name / part.name
            if not place.is_symlink():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(part, target_is_directory=True)


def _folder(artifact: Path, node: str) -> Path:
    return artifact / _TRIALS if node == _TUNER[0] else artifact


def _has_logs(path: Path) -> bool:
    return next(path.rglob("events.out.tfevents.*"), None) is not None if path.is_dir() else False


def _run_of(job: Path) -> str | None:
    """Returns the run that a training child's job belongs to, by where its events go."""
    try:
        told = json.loads(job.read_text(encoding="utf-8"))["events"]
    except (OSError, ValueError, KeyError):
        return None
    return Path(told).parent.name if told else None


def _free_port(port: int) -> int:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            raise SafelightError(
                f"Port {port} on {LOOPBACK} can't be had: something else listens there, or it "
                "takes more rights. Name another one with --port, or 0 for any that is free."
            ) from None
        chosen: int = listener.getsockname()[1]
        return chosen


@contextmanager
def _started(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Runs TensorBoard while this is open."""
    process = processes.start(
        [
            *(sys.executable, "-m", "tensorboard.main"),
            *("--logdir", str(folder), "--host", LOOPBACK, "--port", str(port)),
            *("--reload_interval", str(int(_REFRESH_SECONDS))),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Ctrl-C reaches this process alone, which stops TensorBoard and its data server.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        processes.stop(process)


def _wait_for_answer(process: subprocess.Popen[bytes], port: int, stopped: processes.Stop) -> None:
    for _ in range(int(_ANSWER_SECONDS / 0.2)):
        if process.poll() is not None:
            raise _not_started(process, port)
        try:
            with urllib.request.urlopen(f"{_url(port)}data/environment", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            if stopped.wait(0.2):
                return
    raise _not_started(process, port)


def _announce(port: int, found: dict[str, Path], as_json: bool) -> None:
    names = sorted({name.partition("/")[0] for name in found})
    told: dict[str, Any] = {"url": _url(port), "runs": names}
    if as_json:
        print(json.dumps(told), flush=True)
    count = "1 run" if len(names) == 1 else f"{len(names)} runs"
    console.stderr.print(f"TensorBoard shows {count} at [bold]{escape(_url(port))}[/]")
    console.stderr.print("  Ctrl-C stops it.", style="dim")


def _url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}/"


def _not_started(process: subprocess.Popen[bytes], port: int) -> SafelightError:
    code = process.poll()
    how = "does not answer" if code is None else f"ended with exit code {code}"
    return SafelightError(
        f"TensorBoard {how} at {_url(port)}. See why: "
        f"{sys.executable} -m tensorboard.main --logdir FOLDER --port {port}"
    )
