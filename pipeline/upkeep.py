"""The commands that keep a pushed model well: retrain, rollback, pin, monitor, gc."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.options import (
    KEEP,
    JsonOption,
    ProfileOption,
    SetOption,
    VerboseOption,
    WaitOption,
    WorkdirOption,
)

ModelOption = Annotated[
    str | None, typer.Option("--model-name", help="Which model; by default the only one there.")
]
ReasonOption = Annotated[str, typer.Option(help="Why, for whoever asks later.")]


def register(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    app.command(rich_help_panel=KEEP)(retrain)
    app.command(rich_help_panel=KEEP)(rollback)
    app.command(rich_help_panel=KEEP)(pin)
    app.command(rich_help_panel=KEEP)(unpin)
    app.command(rich_help_panel=KEEP)(monitor)
    app.command(name="gc", rich_help_panel=KEEP)(collect)


def retrain(
    spans: Annotated[Path, typer.Option(help="The folder that spans arrive in.")],
    workdir: WorkdirOption,
    once: Annotated[bool, typer.Option("--once", help="One look, for cron.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look until stopped.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and why.")
    ] = False,
    now: Annotated[str, typer.Option(help="Train whatever the policy says; the reason.")] = "",
    profile: ProfileOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    wait: WaitOption = False,
) -> None:
    """Take new spans of data, and train, judge and push a new model when one is due.

    Nothing due is exit code 0.

    Example: safelight retrain --workdir work --spans data --once
    """
    from pipeline.retrain import command

    code = command.command(
        workdir,
        spans,
        profile,
        overrides or (),
        once=once,
        watch=watch,
        dry_run=dry_run,
        now=now,
        wait=wait,
        verbose=verbose,
        as_json=as_json,
    )
    raise typer.Exit(code)


def rollback(
    workdir: WorkdirOption,
    reason: ReasonOption,
    to: Annotated[
        int | None, typer.Option(help="A version; by default the newest good one before.")
    ] = None,
    quarantine_span: Annotated[
        int | None, typer.Option(help="The span that caused it: never trained on again.")
    ] = None,
    model_name: ModelOption = None,
    wait: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Serve an older model again, at once; the current one never comes back.

    Example: safelight rollback --workdir work --reason "blurred images"
    """
    from pipeline import rollback as undoing

    raise typer.Exit(
        undoing.rollback(workdir, reason, to, quarantine_span, model_name, wait, as_json)
    )


def pin(
    workdir: WorkdirOption,
    reason: ReasonOption,
    model_name: ModelOption = None,
    wait: WaitOption = False,
) -> None:
    """Hold the version that is served against any push, until unpin."""
    from pipeline import rollback as undoing

    raise typer.Exit(undoing.pin(workdir, reason, model_name, wait))


def unpin(workdir: WorkdirOption, model_name: ModelOption = None, wait: WaitOption = False) -> None:
    """Take the pin away."""
    from pipeline import rollback as undoing

    raise typer.Exit(undoing.unpin(workdir, model_name, wait))


def monitor(
    logs: Annotated[
        list[Path], typer.Argument(help="Request logs, as the client writes them: JSON lines.")
    ],
    workdir: WorkdirOption,
    model_name: ModelOption = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Write what is most worth labelling here (.csv).")
    ] = None,
    profile: ProfileOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what was asked and answered with what the model was trained and judged on."""
    from pipeline import monitor as watching

    raise typer.Exit(
        watching.command(logs, workdir, model_name, manifest, profile, overrides or (), as_json)
    )


def collect(
    workdir: WorkdirOption,
    keep: Annotated[int, typer.Option(min=1, help="Newest runs to keep whole.")] = 5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    wait: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Free the artifacts that nothing needs any more."""
    from pipeline import gc as collection

    raise typer.Exit(collection.command(workdir, keep, dry_run, wait, as_json))
