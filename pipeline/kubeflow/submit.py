"""`safelight submit`: uploads the package, starts a run, follows it, and ends with its outcome."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.markup import escape

from pipeline import config as configuration
from pipeline import console
from pipeline.config import Config
from pipeline.errors import ConfigError, UsageError
from pipeline.kubeflow import names, window
from pipeline.kubeflow.api import RunState, Server, ServerError
from pipeline.runs import Outcome, Result, Stage

_POLL_SECONDS: Final = 5.0
# A server that restarts is away for about this long.
_PATIENCE_SECONDS: Final = 120.0


def command(
    profile: str | None,
    overrides: Sequence[str],
    data: str,
    *,
    spans: Path | None = None,
    package: Path | None = None,
    champion: str = "",
    run_overrides: str = "",
    wait: bool = True,
    cache: bool = True,
    as_json: bool = False,
) -> int:
    """Runs the pipeline on the cluster; returns the exit code of its outcome.

    Args:
      profile: as of every command.
      overrides: `section.key=value` each; compiled into the package.
      data: a path on a volume, or a bucket's folder, as kubeflow.data says.
      spans: a JSON file with a window of spans below `data`, the newest last: name, path (as the
        steps see it), fingerprint (as `ingest.scan` takes it), golden and judged of each.
      package: run this file instead of compiling one.
      champion: the version to beat, "" for the one served, "none" for none.
      run_overrides: the parameter `overrides`: for this run alone, the package stays the same.
      wait: follow the run to its end; otherwise return once it has started.
      cache: whether steps may be answered from the cache.
      as_json: print the result as one JSON object, the last line; without waiting for it
        `{"run_id", "page"}`.

    Raises:
      ConfigError: something would not run there, or is not set.
      ServerError: the server can't be reached, or refused.
    """
    config = configuration.load(profile, overrides).config
    listed = None if spans is None else _read_spans(spans)
    server, run_id = _start(config, data, listed, package, champion, run_overrides, cache)
    if not wait:
        if as_json:
            sys.stdout.write(json.dumps({"run_id": run_id, "page": server.page(run_id)}) + "\n")
        return 0
    try:
        state = follow(server, run_id)
    except KeyboardInterrupt:
        console.stderr.print(
            f"\nNot following any more; the run goes on. Its page ends it: {server.page(run_id)}"
        )
        return 130
    result = outcome(server, state)
    if as_json:
        sys.stdout.write(result.to_json() + "\n")
    _show(result)
    return result.exit_code


def _start(
    config: Config,
    data: str,
    spans: Sequence[Mapping[str, Any]] | None,
    package: Path | None,
    champion: str,
    run_overrides: str,
    cache: bool,
) -> tuple[Server, str]:
    """Starts a run; returns its server and id.

    The first step and the push hold the workdir on the volume: a caller that holds its lock
    meanwhile would wait for itself.
    """
    check_run(config, data, run_overrides, spans)
    text = package_text(config, package)
    server = Server(config.kubeflow)
    pipeline = server.upload(text)
    given = parameters(data, champion, run_overrides, spans)
    title = f"{config.kubeflow.name} {time.strftime('%Y-%m-%d %H:%M:%S')}"
    run_id = server.start(pipeline, title, given, cache)
    console.stderr.print(f"Started run [bold]{run_id}[/]: {escape(server.page(run_id))}")
    return server, run_id


def _read_spans(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"The spans in {path} can't be read ({error}); expected a JSON file with a list."
        ) from None
    return window.parse(text)


def check_run(
    config: Config,
    data: str,
    run_overrides: str,
    spans: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Refuses what the first step on the cluster would refuse minutes later."""
    from pipeline.kubeflow import checks, prepare

    wrong = checks.check_data(data, config.kubeflow)
    if spans:
        listed = window.parse(window.to_parameter(spans))
        wrong += checks.check_spans([one["path"] for one in listed], config.kubeflow)
    if wrong:
        raise ConfigError("This data can't be reached on the cluster.", wrong)
    prepare.merge(config, run_overrides)


def package_text(config: Config, package: Path | None) -> str:
    """Returns the package to run: the file's, or one compiled now."""
    if package is None:
        from pipeline.kubeflow.compile import compile_package

        with console.stderr.status("compiling"):
            return compile_package(config)
    try:
        return package.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"The package {package} can't be read ({error}). Make one with: safelight compile"
        ) from None


def parameters(
    data: str,
    champion: str,
    run_overrides: str,
    spans: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, str]:
    """Returns the pipeline's parameters."""
    given = {
        names.DATA: data,
        names.SPANS: window.to_parameter(spans),
        names.CHAMPION: champion,
        names.OVERRIDES: run_overrides,
    }
    return {key: value for key, value in given.items() if value}


def follow(server: Server, run_id: str, poll_seconds: float = _POLL_SECONDS) -> RunState:
    """Tells each task's changes until the run ends; a server that is away is waited for a while."""
    told: dict[str, str] = {}
    away_since: float | None = None
    while True:
        try:
            state = server.state(run_id)
            away_since = None
        except ServerError:
            now = time.monotonic()
            away_since = now if away_since is None else away_since
            if now - away_since > _PATIENCE_SECONDS:
                raise
            time.sleep(poll_seconds)
            continue
        for task in state.tasks:
            if told.get(task.name) != task.state and not task.name.endswith("-driver"):
                told[task.name] = task.state
                _tell(task.name, task.state)
        if state.finished:
            return state
        time.sleep(poll_seconds)


def outcome(server: Server, state: RunState) -> Result:
    """Returns what the run came to: as its exit task printed it, else as its states tell."""
    printed = server.result_line(state)
    if printed is not None:
        printed["stages"] = [Stage(**stage) for stage in printed["stages"]]
        return Result(**printed)
    by_name = {task.name: task.state for task in state.tasks}
    found: Outcome = "failed"
    reasons = [state.error or f"The run is {state.state}. Its page shows the step that failed."]
    if state.state == "SUCCEEDED":
        pushed = by_name.get(names.task("Pusher")) == "SUCCEEDED"
        found = "pushed" if pushed else "not_blessed"
        reasons = ["The log of the report could not be read; this is what the states tell."]
    return Result(run_id=state.id, outcome=found, reasons=reasons)


def _tell(name: str, state: str) -> None:
    mark = {"SUCCEEDED": "green", "FAILED": "bold red", "SKIPPED": "yellow"}.get(state, "dim")
    console.stderr.print(f"  {escape(name):<22} [{mark}]{state.lower()}[/]")


def _show(result: Result) -> None:
    told: dict[str, Any] = {key: f"{value:.4f}" for key, value in result.metrics.items() if value}
    console.stderr.print(f"[bold]{result.outcome.replace('_', ' ')}[/] {told or ''}")
    for reason in result.reasons:
        console.stderr.print(f"  {escape(reason)}")
    if result.pushed_to:
        console.stderr.print(f"  version {result.version} at {escape(result.pushed_to)}")
