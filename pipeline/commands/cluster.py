"""The commands that speak with a cluster: Kubeflow Pipelines, and a served model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import CLUSTER, SERVE, JsonOption, ProfileOption, SetOption

schedules = typer.Typer(no_args_is_help=True, help="Start runs on Kubeflow again and again.")

DataArgument = Annotated[str, typer.Argument(help="The images: a path on the cluster's volume.")]
NameArgument = Annotated[str, typer.Argument(help="The schedule's name.")]
PackageOption = Annotated[
    Path | None, typer.Option(help="Run this package instead of compiling one.")
]
RunOverridesOption = Annotated[
    str, typer.Option(help="TOML or key=value lines, for the runs alone.")
]


def register(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    app.command(name="compile", rich_help_panel=CLUSTER)(compile_package)
    app.command(rich_help_panel=CLUSTER)(submit)
    app.add_typer(schedules, name="schedule", rich_help_panel=CLUSTER)
    app.command(rich_help_panel=SERVE)(request)


def compile_package(
    output: Annotated[Path, typer.Option(help="The package to write: a .yaml file.")],
    profile: ProfileOption = "kubeflow",
    overrides: SetOption = None,
    data: Annotated[str, typer.Option(help="Default of the package's parameter `data`.")] = "",
) -> None:
    """Write the pipeline as a package for open-source Kubeflow Pipelines v2."""
    from pipeline.kubeflow import compile as packages

    raise typer.Exit(packages.command(profile, overrides or (), output, data))


def submit(
    data: DataArgument,
    profile: ProfileOption = "kubeflow",
    overrides: SetOption = None,
    spans: Annotated[
        Path | None, typer.Option(help="A window below DATA: a JSON file, docs/kubeflow.md.")
    ] = None,
    package: PackageOption = None,
    champion: Annotated[
        str, typer.Option(help="The version to beat; none for none; by default the live one.")
    ] = "",
    run_overrides: RunOverridesOption = "",
    wait: Annotated[bool, typer.Option(help="Follow the run to its end.")] = True,
    cache: Annotated[bool, typer.Option(help="Let steps be answered from the cache.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Run the pipeline on Kubeflow, follow it, and end with its outcome."""
    from pipeline.kubeflow import submit as submission

    raise typer.Exit(
        submission.command(
            profile,
            overrides or (),
            data,
            spans=spans,
            package=package,
            champion=champion,
            run_overrides=run_overrides,
            wait=wait,
            cache=cache,
            as_json=as_json,
        )
    )


@schedules.command()
def create(
    data: DataArgument,
    name: Annotated[str, typer.Option(help="What to call the schedule.")],
    cron: Annotated[str | None, typer.Option(help="Five fields, as in '0 3 * * *'.")] = None,
    every: Annotated[str | None, typer.Option(help="Or an interval, as in 6h.")] = None,
    profile: ProfileOption = "kubeflow",
    overrides: SetOption = None,
    package: PackageOption = None,
    run_overrides: RunOverridesOption = "",
) -> None:
    """Make a recurring run: one at a time, without catching up."""
    from pipeline.kubeflow import schedule

    code = schedule.create(
        profile,
        overrides or (),
        data,
        name=name,
        cron=cron,
        every=every,
        package=package,
        run_overrides=run_overrides,
    )
    raise typer.Exit(code)


@schedules.command(name="list")
def show(
    profile: ProfileOption = "kubeflow", overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """List the schedules of the experiment."""
    from pipeline.kubeflow import schedule

    raise typer.Exit(schedule.show(profile, overrides or (), as_json))


@schedules.command()
def pause(
    name: NameArgument, profile: ProfileOption = "kubeflow", overrides: SetOption = None
) -> None:
    """Hold a schedule back."""
    from pipeline.kubeflow import schedule

    raise typer.Exit(schedule.pause(profile, overrides or (), name))


@schedules.command()
def resume(
    name: NameArgument, profile: ProfileOption = "kubeflow", overrides: SetOption = None
) -> None:
    """Let a paused schedule go on."""
    from pipeline.kubeflow import schedule

    raise typer.Exit(schedule.resume(profile, overrides or (), name))


@schedules.command()
def delete(
    name: NameArgument, profile: ProfileOption = "kubeflow", overrides: SetOption = None
) -> None:
    """Delete a schedule; its runs stay."""
    from pipeline.kubeflow import schedule

    raise typer.Exit(schedule.delete(profile, overrides or (), name))


def request(
    files: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    url: Annotated[str | None, typer.Option(help="REST, as in http://127.0.0.1:8501.")] = None,
    grpc_target: Annotated[str | None, typer.Option("--grpc", help="Or gRPC: host:port.")] = None,
    model: Annotated[str, typer.Option(help="The name that it is served by.")] = "model",
    version: Annotated[
        int | None, typer.Option(metavar="N", min=0, max=2**63 - 1, help="By default the newest.")
    ] = None,
    deadline: Annotated[float, typer.Option(help="Seconds for all images together.")] = 30.0,
    log: Annotated[Path | None, typer.Option(help="Append requests and answers as JSONL.")] = None,
    log_images: Annotated[bool, typer.Option(help="Log the images too.")] = False,
    top: Annotated[int, typer.Option(min=1, help="Classes to show for each image.")] = 3,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object a line, one for each image.")
    ] = False,
) -> None:
    """Ask a served model, over REST or gRPC, with the conversion that ingest does."""
    from pipeline.commands import request as asking

    raise typer.Exit(
        asking.command(
            files, url, grpc_target, model, version, deadline, log, log_images, top, as_json
        )
    )
