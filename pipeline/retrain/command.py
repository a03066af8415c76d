"""`safelight retrain`: one round, a daemon of rounds, or what a round would do."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from rich.markup import escape

from pipeline import config as configuration
from pipeline import console
from pipeline.config import Effective
from pipeline.errors import UsageError
from pipeline.retrain.daemon import Daemon
from pipeline.retrain.on_cluster import Cluster
from pipeline.retrain.rounds import Round, Rounds
from pipeline.runs import Result, RunDir
from pipeline.workdir import Workdir, open_workdir

Runner = Literal["local", "kubeflow"]


def command(
    workdir: Path,
    root: Path,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    *,
    once: bool = False,
    watch: bool = False,
    dry_run: bool = False,
    now: str = "",
    runner: Runner = "local",
    package: Path | None = None,
    wait: bool = False,
    verbose: bool = False,
    as_json: bool = False,
) -> int:
    """Runs the command and returns its exit code: that of the training, 0 where none was due.

    Args:
      workdir: where the models are; it is made when it is not there.
      root: the folder of spans.
      profile: of the configuration.
      overrides: `section.key=value` each.
      once: one round.
      watch: rounds until SIGTERM or Ctrl-C.
      dry_run: say what a round would do, and write nothing.
      now: an operator's reason to train whatever the policy says.
      runner: where trainings run.
      package: on Kubeflow, run this file instead of compiling one.
      wait: for the workdir, where somebody else holds it.
      verbose: show what TensorFlow and TFX print.
      as_json: print the round as one JSON object.

    Raises:
      UsageError: not exactly one of `once`, `watch` and `dry_run`, or an option that means nothing
        beside another.
      Busy: somebody else holds the workdir, or another daemon runs.
    """
    if once + watch + dry_run != 1:
        raise UsageError("Say one of --once, --watch and --dry-run.")
    if watch:
        refuse_beside(
            "--watch",
            {"--now": now, "--wait": wait, "--json": as_json},
            "it goes on by the policy, and has no one result. Say --once",
        )
    if dry_run:
        refuse_beside("--dry-run", {"--wait": wait}, "it holds no workdir. Say --once")
    if runner == "local":
        why = "packages are for Kubeflow. Say --runner kubeflow"
        refuse_beside("--runner local", {"--package": package}, why)
    effective = configuration.load(profile, overrides)
    place = _existing(workdir) if dry_run else open_workdir(workdir)
    cluster = Cluster(effective.config, place, package) if runner == "kubeflow" else None
    if watch:
        return Daemon(place, root, effective, _say, verbose, cluster).run()
    try:
        done = (
            _try(place, root, effective, cluster, now)
            if dry_run
            else _go(place, root, effective, cluster, now, wait, verbose)
        )
    except KeyboardInterrupt:
        console.stderr.print("\nStopped. Run the same command again to go on from here.")
        return 130
    show(done)
    if done.result is not None:
        _show_result(done.result, place)
    if as_json:
        sys.stdout.write(json.dumps(done.to_dict()) + "\n")
    return done.result.exit_code if done.result else 0


def refuse_beside(option: str, others: Mapping[str, object], why: str) -> None:
    """Refuses what means nothing beside an option, rather than dropping it without a word.

    Args:
      option: that was given.
      others: {option: its value}; what is empty, false or None was not given.
      why: they can't go together, and what to say instead.

    Raises:
      UsageError: one of the others was given.
    """
    for other, value in others.items():
        if value:
            raise UsageError(f"{other} means nothing beside {option}: {why}, or leave {other} out.")


def _go(
    place: Workdir,
    root: Path,
    effective: Effective,
    cluster: Cluster | None,
    now: str,
    wait: bool,
    verbose: bool,
) -> Round:
    if cluster is not None:  # which tells each step's progress itself
        rounds = Rounds(place, root, effective, lambda event: None, cluster=cluster)
        return rounds.go(wait=wait, asked_for=now)
    with console.Display() as display:
        rounds = Rounds(place, root, effective, display.show)
        return rounds.go(wait=wait, asked_for=now, log_to_screen=verbose)


def _try(
    place: Workdir, root: Path, effective: Effective, cluster: Cluster | None, now: str
) -> Round:
    """Decides without a lock, for nothing is written; new spans are read into a scratch folder."""
    with tempfile.TemporaryDirectory(prefix="safelight-") as scratch:
        rounds = Rounds(
            place, root, effective, lambda event: None, cluster=cluster, scratch=Path(scratch)
        )
        return rounds.go(asked_for=now)


def _existing(workdir: Path) -> Workdir:
    """Returns the workdir without making it: one that is not there yet has nothing in it."""
    root = workdir.expanduser().absolute()
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return Workdir(root)
    return open_workdir(workdir, create=False)


def show(done: Round) -> None:
    """Says what a round came to, and why."""
    headline = "A training is due" if done.decision.due else "Nothing is due"
    if done.held:
        headline += ", and held back"
    console.stderr.print(f"[bold]{headline}[/]")
    said = [*done.decision.reasons, *done.decision.notes, done.held]
    for reason in [*said, *done.quarantined, *done.waiting]:
        if reason:
            console.stderr.print(f"  {escape(reason)}")
    if done.window:
        console.stderr.print(f"  window: {escape(', '.join(done.window))}")


def _show_result(result: Result, place: Workdir) -> None:
    run = RunDir(place.runs / result.run_id)
    if run.root.is_dir():
        console.show_result(result, run, place.root)
        return
    # A run on a cluster whose record can't be seen from here.
    console.stderr.print(f"[bold]{result.outcome.replace('_', ' ')}[/]")
    for reason in result.reasons:
        console.stderr.print(f"  {escape(reason)}")


def _say(done: Round) -> None:
    show(done)
    if done.result is not None:
        version = f", version {done.result.version}" if done.result.version else ""
        console.stderr.print(f"  run {done.result.run_id}: {done.result.outcome}{version}")
