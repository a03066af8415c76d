"""The options that several commands have: one wording, one meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# The headings that `safelight --help` lists the commands under.
TRAIN, LOOK, SERVE = "From images to a model", "Look closer", "Use the model"
KEEP, CLUSTER = "Keep it fresh", "On Kubeflow"

WorkdirOption = Annotated[
    Path, typer.Option("--workdir", "-w", help="Holds all that belongs to these runs.")
]
RunArgument = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="A run's id; by default the newest.")
]
ProfileOption = Annotated[
    str | None, typer.Option(help="smoke, strict, kubeflow (shipped), or a TOML file of your own.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of a section, as in train.epochs=20; may be repeated. Where a key holds a "
        "table, also one of its own: evaluate.heads.age.max_mae=2.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object, the last line.")
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", help="Show what TensorFlow, Beam and TFX print.")
]
WaitOption = Annotated[
    bool, typer.Option("--wait", help="Wait for the workdir where somebody else holds it.")
]
VerifyOption = Annotated[
    bool, typer.Option("--verify", help="Tell changed data by its contents too: reads every file.")
]
