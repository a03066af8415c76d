"""The commands that keep a pushed model well, and those that look into its data and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.commands.options import (
    KEEP,
    LOOK,
    JsonOption,
    ProfileOption,
    RunArgument,
    SetOption,
    VerboseOption,
    WaitOption,
    WorkdirOption,
)
from pipeline.errors import UsageError

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
    app.command(name="audit-labels", rich_help_panel=LOOK)(audit_labels)
    app.command(rich_help_panel=LOOK)(explain)


def retrain(
    workdir: WorkdirOption,
    spans: Annotated[Path | None, typer.Option(help="The folder that spans arrive in.")] = None,
    once: Annotated[bool, typer.Option("--once", help="One look, for cron.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look until stopped.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and why.")
    ] = False,
    now: Annotated[str, typer.Option(help="Train whatever the policy says; the reason.")] = "",
    runner: Annotated[
        Literal["local", "kubeflow"], typer.Option(help="Where trainings run.")
    ] = "local",
    package: Annotated[
        Path | None, typer.Option(help="On Kubeflow: run this package instead of compiling one.")
    ] = None,
    release_span: Annotated[
        int | None,
        typer.Option(help="Instead of all that: take this span out of quarantine."),
    ] = None,
    reason: Annotated[str, typer.Option(help="With --release-span: why.")] = "",
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

    if release_span is not None:
        from pipeline.commands import rollback as undoing

        asked = {"--once": once, "--watch": watch, "--dry-run": dry_run, "--now": now}
        command.refuse_beside(
            "--release-span",
            {**asked, "--package": package, "--json": as_json},
            "a release does nothing else, and is done at once. Give two commands",
        )
        raise typer.Exit(undoing.release(workdir, release_span, reason, wait))
    if reason:
        raise UsageError(
            "--reason means nothing without --release-span: it says why a span is taken out of "
            'quarantine. Why a training is asked for is said with --now "reason".'
        )
    if spans is None:
        raise UsageError("Name the folder of spans: --spans DATA.")
    code = command.command(
        workdir,
        spans,
        profile,
        overrides or (),
        once=once,
        watch=watch,
        dry_run=dry_run,
        now=now,
        runner=runner,
        package=package,
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
    from pipeline.commands import rollback as undoing

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
    from pipeline.commands import rollback as undoing

    raise typer.Exit(undoing.pin(workdir, reason, model_name, wait))


def unpin(workdir: WorkdirOption, model_name: ModelOption = None, wait: WaitOption = False) -> None:
    """Take the pin away."""
    from pipeline.commands import rollback as undoing

    raise typer.Exit(undoing.unpin(workdir, model_name, wait))


def monitor(
    logs: Annotated[
        list[Path],
        typer.Argument(
            help="Request logs: the client's JSON lines, or TFRecords of PredictionLog."
        ),
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
    """Free the artifacts and checkpoints that nothing needs any more."""
    from pipeline.commands import gc as collection

    raise typer.Exit(collection.command(workdir, keep, dry_run, wait, as_json))


def audit_labels(
    workdir: WorkdirOption,
    run_id: RunArgument = None,
    folds: Annotated[int, typer.Option(min=2, max=20, help="Models to train.")] = 5,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of each model; by default half of the run's.")
    ] = None,
    output: Annotated[
        Path, typer.Option(help="The table to fill in (.csv); the pictures go beside it.")
    ] = Path("suspects.csv"),
    wait: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Rank the labels that are probably wrong, for you to decide: a table, and their pictures.

    Each image is judged by a model that has not seen it. Feed the table back with
    --set ingest.corrections=suspects.csv.

    Example: safelight audit-labels --workdir work --output suspects.csv
    """
    from pipeline.audit import command

    command.command(workdir, run_id, folds, epochs, output, wait, as_json)


def explain(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    workdir: WorkdirOption,
    output: Annotated[Path, typer.Option(help="A new folder for the pictures.")],
    model: Annotated[
        Path | None, typer.Option(help="A version's directory; by default the one that is live.")
    ] = None,
    steps: Annotated[
        int, typer.Option(min=8, max=1024, help="Of integrated gradients: more are more exact.")
    ] = 64,
    as_json: JsonOption = False,
) -> None:
    """Draw what the model looked at: Grad-CAM and integrated gradients over each image.

    Example: safelight explain photo.jpg --workdir work --output pictures
    """
    from pipeline.commands import explain_command

    explain_command.command(images, workdir, output, model, steps, as_json)
