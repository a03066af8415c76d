"""`safelight retrain`: one round, a daemon of rounds, or what a round would do."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from pipeline import config as configuration
from pipeline import console
from pipeline.errors import UsageError
from pipeline.retrain.daemon import Daemon
from pipeline.retrain.rounds import Round, Rounds
from pipeline.runs import RunDir
from pipeline.workdir import open_workdir


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
      dry_run: say what a round would do.
      now: an operator's reason to train whatever the policy says.
      wait: for the workdir, where somebody else holds it.
      verbose: show what TensorFlow and TFX print.
      as_json: print the round as one JSON object.

    Raises:
      UsageError: not exactly one of `once`, `watch` and `dry_run`.
      Busy: somebody else holds the workdir, or another daemon runs.
    """
    if once + watch + dry_run != 1:
        raise UsageError("Say one of --once, --watch and --dry-run.")
    effective = configuration.load(profile, overrides)
    place = open_workdir(workdir)
    if watch:
        return Daemon(place, root, effective, say=_say, log_to_screen=verbose).run()
    try:
        with place.lock(wait) as lock, console.Display() as display:
            rounds = Rounds(place, root, effective, display.show)
            done = rounds.round(lock, dry_run=dry_run, asked_for=now, log_to_screen=verbose)
    except KeyboardInterrupt:
        console.stderr.print("\nStopped. Run the same command again to go on from here.")
        return 130
    show(done)
    if done.result is not None:
        console.show_result(done.result, RunDir(place.runs / done.result.run_id), place.root)
    if as_json:
        sys.stdout.write(json.dumps(done.to_dict()) + "\n")
    return done.result.exit_code if done.result else 0


def show(done: Round) -> None:
    """Says what a round came to, and why."""
    headline = "A training is due" if done.decision.due else "Nothing is due"
    if done.held:
        headline += ", and held back"
    console.stderr.print(f"[bold]{headline}[/]")
    for reason in [*done.decision.reasons, *done.decision.notes, done.held, *done.waiting]:
        if reason:
            console.stderr.print(f"  {escape(reason)}")
    if done.window:
        console.stderr.print(f"  window: {escape(', '.join(done.window))}")


def _say(done: Round) -> None:
    show(done)
    if done.result is not None:
        version = f", version {done.result.version}" if done.result.version else ""
        console.stderr.print(f"  run {done.result.run_id}: {done.result.outcome}{version}")
