"""`safelight explain`: pictures of what the served model looked at, for any image files."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from pipeline import console, images, model_json, registry, runs
from pipeline.commands import predict
from pipeline.errors import SafelightError, UsageError
from pipeline.explain import job
from pipeline.workdir import open_workdir

# More would take minutes, and nobody looks at them.
MOST = 200


def command(
    paths: Sequence[Path],
    workdir: Path,
    output: Path,
    model: Path | None = None,
    steps: int = 64,
    as_json: bool = False,
) -> None:
    """Draws three pictures an image into `output`, and says what the model took each for.

    Args:
      paths: image files, or folders of them.
      workdir: its current version is asked.
      output: a folder that is new or empty.
      model: a version's directory instead of the current one.
      steps: of integrated gradients.
      as_json: print explanations.json instead of a table.

    Raises:
      UsageError: no such model, no image, too many, or a folder with other files in it.
      SafelightError: none of the files can be used, or the model can't be built again.
    """
    _check_output(output)
    version = predict.find_model(workdir, model)
    found = predict.find_images(paths)
    if len(found) > MOST:
        raise UsageError(
            f"{len(found):,} images are too many to explain; expected at most {MOST}. Name fewer."
        )
    facts = model_json.read(version)
    graph = _transform_graph(workdir, version, facts)
    with tempfile.TemporaryDirectory(prefix="safelight-explain-") as scratch:
        asked = _asked(found, Path(scratch))
        work = job.Job(
            model=version.absolute(),
            transform_graph=graph,
            steps=steps,
            folder=output.absolute(),
            images=asked,
            own=facts.get("architecture", {}).get("model") or "",
            parent=os.getpid(),
        )
        with console.stderr.status(f"explaining {len(asked)} images"):
            told = job.run(work, Path(scratch))
    if as_json:
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        console.stdout.print(_table(told))
    console.stderr.print(f"{len(asked)} images in {output}; model {version}", markup=False)


def _check_output(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(
            f"--output {output} is a file, or holds files already. Name an empty or a new folder."
        )


def _asked(paths: Sequence[Path], scratch: Path) -> tuple[job.Asked, ...]:
    """Prepares the images as ingest does; what can't be used is told, and left out."""
    asked: list[job.Asked] = []
    reasons = []
    for number, path in enumerate(paths):
        name = os.fsencode(path).decode("utf-8", "backslashreplace")
        try:
            most = images.MOST_PIXELS
            encoded = images.prepare(path.read_bytes(), min_side=1, max_pixels=most).encoded
        except images.BadImage as bad:
            reasons.append(f"{name}: {bad.reason}: {bad.detail}")
            continue
        except OSError as error:
            reasons.append(f"{name}: unreadable: {error.strerror or error}")
            continue
        file = scratch / f"{number:04d}.image"
        file.write_bytes(encoded)
        asked.append(job.Asked(id=name, encoded=file, why="asked"))
    if not asked:
        raise SafelightError("Not one of the files is an image that can be used.", reasons[:5])
    for reason in reasons:
        console.stderr.print(f"  [yellow]left out:[/] {escape(reason)}")
    return tuple(asked)


def _transform_graph(workdir: Path, version: Path, facts: dict[str, Any]) -> Path | None:
    """Returns what stands before the version's network; None where decoding and resizing is all.

    Raises:
      SafelightError: the pixels were standardized, and the run's transform graph is gone.
    """
    place = open_workdir(workdir, create=False)
    trained = {str(version.absolute().parent)}  # of a Trainer's artifact
    if version.name.isdecimal():
        entries = registry.read(version.parent).entries
        trained = {one.model_uri for one in entries if one.version == int(version.name)}
    for run in runs.all_runs(place.runs):
        nodes = run.read_artifacts()
        graph = nodes.get("Transform", {}).get("transform_graph", "")
        if nodes.get("Trainer", {}).get("model") in trained and Path(graph).is_dir():
            return Path(graph)
    if facts.get("normalize", "unit") == "unit":
        return None
    raise SafelightError(
        f"The pixels of {version} are standardized by its run's transform graph, which is not in "
        f"{place.root} any more. Name the workdir that the model was trained in."
    )


def _table(told: dict[str, Any]) -> Table:
    columns = ("file", "class", "probability", "pictures")
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for one in told["images"]:
        drawn = [one[key] for key in ("picture", "gradcam", "saliency") if one[key]]
        table.add_row(
            escape(one["id"]), escape(one["predicted"]), f"{one['confidence']:.4f}", " ".join(drawn)
        )
        if one["gradcam_missing"]:
            table.add_row("", "", "", escape(f"no Grad-CAM: {one['gradcam_missing']}"))
    return table
