"""The command line. Each command is a few lines: what it does lives in a module of its own.

Nothing here imports TensorFlow or TFX, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from pipeline import config as configuration
from pipeline import console, runs
from pipeline.commands import cluster, upkeep
from pipeline.commands.options import (
    LOOK,
    SERVE,
    TRAIN,
    JsonOption,
    ProfileOption,
    RunArgument,
    SetOption,
    VerboseOption,
    VerifyOption,
    WaitOption,
    WorkdirOption,
)
from pipeline.errors import SafelightError, of_disk
from pipeline.runs import Outcome, Result
from pipeline.workdir import open_workdir, refuse_inside

app = typer.Typer(
    name="safelight",
    help="From a folder of labelled images to a validated, blessed and served classifier, on TFX.",
    epilog="Exit codes: 0 done, 1 error, 2 usage, 3 not blessed, 4 data refused, 5 busy.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)

_OUTCOMES: dict[int, Outcome] = {4: "invalid_data"}
_debug = False


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"safelight {metadata.version('safelight')}\n")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    global _debug
    _debug = debug


@app.command(rich_help_panel=TRAIN)
def run(
    data: Annotated[str, typer.Argument(help="The images: a folder of class folders, for one.")],
    workdir: WorkdirOption,
    profile: ProfileOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    wait: WaitOption = False,
    verify: VerifyOption = False,
) -> None:
    """Run the whole pipeline on DATA: ingest, validate, train, evaluate, check, push.

    Run it again with the same arguments to go on where it was stopped: what is done and unchanged
    comes from the cache.

    Example: safelight run photos/ --workdir work --set train.epochs=20
    """
    with _json_on_error(as_json):
        effective = configuration.load(profile, overrides or ())
        result = _run(data, workdir, effective, verbose, wait, verify, as_json)
    _end(result, as_json)


@app.command(rich_help_panel=TRAIN)
def demo(
    workdir: WorkdirOption = Path("demo"),
    profile: ProfileOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write 5,000 handwritten digits (MNIST) as class folders of PNGs and run on them."""
    from pipeline.commands import demo as digits

    with _json_on_error(as_json):
        effective = configuration.load(profile, [*digits.OVERRIDES, *(overrides or ())])
        place = open_workdir(workdir)
        data = str(digits.write_digits(place.root / "data"))
        result = _run(data, workdir, effective, verbose, as_json=as_json)
    _end(result, as_json)


@app.command(rich_help_panel=TRAIN)
def inspect(
    data: Annotated[str, typer.Argument(help="The images, in any form that run takes.")],
    profile: ProfileOption = None,
    overrides: SetOption = None,
    sample: Annotated[
        int, typer.Option(min=0, help="Look into this many images, evenly; 0 takes all.")
    ] = 5000,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a contact sheet here (a .png file).")
    ] = None,
    verify: VerifyOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what ingest would see: form, classes, counts, sizes, problems. Nothing is run."""
    from pipeline.commands import inspect as inspection

    effective = configuration.load(profile, overrides or ())
    inspection.command(data, effective.config.ingest, sample, sheet, as_json, verify)


@app.command(rich_help_panel=SERVE)
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    workdir: Annotated[
        Path | None, typer.Option("--workdir", "-w", help="Take the model that is live here.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Or a model's directory: a version, or their parent.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to show for each image.")] = 3,
    output: Annotated[
        Path | None, typer.Option(help="Write all probabilities to a .csv or .parquet file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say the class and its probability for each image, through the model's serving signature."""
    from pipeline.commands import predict as prediction

    prediction.command(images, workdir, model, top, output, as_json)


@app.command(name="config", rich_help_panel=TRAIN)
def config_command(
    profile: ProfileOption = None,
    overrides: SetOption = None,
    schema: Annotated[bool, typer.Option(help="Document every key instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the effective configuration, each value with where it came from."""
    from pipeline.commands import show_config

    show_config.command(profile, overrides or (), schema, as_json)


@app.command(rich_help_panel=LOOK)
def doctor(as_json: JsonOption = False) -> None:
    """Check lane, versions, devices, memory and disk: what is fine, what is not, and the fix."""
    from pipeline.commands import doctor as checkup

    raise typer.Exit(checkup.command(as_json))


@app.command(rich_help_panel=LOOK)
def report(
    workdir: WorkdirOption,
    run_id: RunArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Make a run's report again: one HTML file, and the page of all runs beside."""
    from pipeline import report as pages

    pages.command(workdir, run_id, as_json)


@app.command(rich_help_panel=LOOK)
def why(
    workdir: WorkdirOption,
    run_id: RunArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Say why a run was pushed, blocked or refused: checks, flipped answers, slices, mix-ups."""
    from pipeline.commands import why as explanation

    explanation.command(workdir, run_id, as_json)


@app.command(rich_help_panel=SERVE)
def serve(
    workdir: WorkdirOption,
    model_name: Annotated[
        str | None, typer.Option(help="Which model; by default the only one there.")
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="For REST; 0 picks a free one.")
    ] = 8501,
    grpc_port: Annotated[
        int, typer.Option(min=0, max=65535, help="For gRPC; 0 picks a free one.")
    ] = 8500,
    engine: Annotated[
        Literal["auto", "binary", "docker", "development"],
        typer.Option(help="By default TF Serving's binary, else Docker, else for development."),
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Serve the model that is live: TF Serving where it is installed, else for development."""
    from pipeline.commands import serve as serving

    raise typer.Exit(serving.command(workdir, model_name, port, grpc_port, engine, as_json))


@app.command(rich_help_panel=LOOK)
def tensorboard(
    workdir: WorkdirOption,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="On this machine; 0 picks a free one.")
    ] = 6006,
    as_json: JsonOption = False,
) -> None:
    """Show the curves, images and profiles of all runs in TensorBoard."""
    from pipeline.commands import tensorboard as board

    raise typer.Exit(board.command(workdir, port, as_json))


@app.command(rich_help_panel=LOOK)
def history(workdir: WorkdirOption, as_json: JsonOption = False) -> None:
    """List the runs of a workdir, and what was decided about retraining."""
    place = open_workdir(workdir, create=False)
    from pipeline.retrain.ledger import Ledger
    from pipeline.retrain.show import show_ledger

    ended, unfinished = [], []
    for run in runs.all_runs(place.runs):
        try:
            result = run.read_result()
        except SafelightError as error:
            console.stderr.print(f"[yellow]warning:[/] A run is left out. {escape(str(error))}")
            continue
        if result is None:
            unfinished.append(run.root.name)
        else:
            ended.append(result)
    if as_json:
        lines = list(Ledger(place.root / "retrain").read())
        told = [json.loads(result.to_json()) for result in ended]
        print(json.dumps({"runs": told, "unfinished": unfinished, "retraining": lines}))
    else:
        console.show_history(ended, unfinished)
        show_ledger(place.root / "retrain")


def main() -> None:
    """Runs the command line; an error of ours is a line or two, with its exit code."""
    # Upstream packages tell each other about Python versions; nobody here can act on it.
    warnings.simplefilter("ignore", FutureWarning)
    try:
        app()
    except (SafelightError, OSError) as error:
        known = _known(error)
        if known is None:
            raise
        if _debug:
            traceback.print_exc()
        console.stderr.print(f"[bold red]error:[/] {escape(str(known))}")
        for reason in known.reasons:
            console.stderr.print(f"  {escape(reason)}")
        sys.exit(known.exit_code)


def _run(
    data: str,
    workdir: Path,
    effective: configuration.Effective,
    verbose: bool,
    wait: bool = False,
    verify: bool = False,
    as_json: bool = False,
) -> Result:
    from pipeline.ingest.listing import readable
    from pipeline.ingest.scan import scan
    from pipeline.runners import local

    refuse_inside(workdir, data)
    with console.stderr.status(f"looking at {escape(data)}") as status, readable(data):

        def copied(done: int, total: int) -> None:
            status.update(f"copying {escape(data)}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")

        found = scan(data, effective.config.ingest, verify, copied)
    place = open_workdir(workdir)
    with place.lock(wait) as lock:
        record = local.prepare(place, effective, found)
        for choice in record.read_request().chosen:
            console.stderr.print(f"  chosen for you: {escape(choice)}", style="dim")
        try:
            with console.Display() as display:
                result = local.execute(place, record, lock, display.show, log_to_screen=verbose)
        except KeyboardInterrupt:
            raise _stopped(as_json, record.read_result()) from None
        console.show_result(result, record, place.root)
    return result


def _known(error: SafelightError | OSError) -> SafelightError | None:
    return error if isinstance(error, SafelightError) else of_disk(error)


def _end(result: Result, as_json: bool) -> None:
    if as_json:
        print(result.to_json())
    raise typer.Exit(result.exit_code)


def _stopped(as_json: bool, result: Result | None = None) -> typer.Exit:
    """Says that Ctrl-C ended the command; `result` is what a run came to until then."""
    said = "Stopped. Nothing is half-written: run the same command again to go on from here."
    console.stderr.print(f"\n{said}")
    if as_json:
        print((result or Result("", "failed", reasons=[said])).to_json())
    return typer.Exit(130)


@contextmanager
def _json_on_error(as_json: bool) -> Iterator[None]:
    """Prints a result for an error that comes before there is a run, then lets it pass."""
    try:
        yield
    except KeyboardInterrupt:
        raise _stopped(as_json) from None
    except (SafelightError, OSError) as error:
        known = _known(error)
        if as_json and known is not None:
            outcome = _OUTCOMES.get(known.exit_code, "failed")
            print(Result("", outcome, reasons=[str(known), *known.reasons]).to_json())
        raise


cluster.register(app)
upkeep.register(app)
