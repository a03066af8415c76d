"""`safelight audit-labels`: ranks the labels that are probably wrong, for a person to decide."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import typer
from rich.markup import escape
from rich.table import Table

from pipeline import console, events, fingerprint
from pipeline.audit import child, sheet, source, suspects
from pipeline.audit.source import Source
from pipeline.audit.suspects import Suspect
from pipeline.errors import DataRefused, SafelightError, UsageError, bounded
from pipeline.ingest import corrections
from pipeline.ingest.entries import shown
from pipeline.trainer import train
from pipeline.workdir import Workdir, open_workdir
from schemas import image_schema

_CHILD: Final = "pipeline.audit.child"
_SHOWN: Final = 10
_POLL_SECONDS: Final = 0.2


def command(
    workdir: Path,
    run_id: str | None,
    folds: int,
    epochs: int | None,
    output: Path,
    wait: bool = False,
    as_json: bool = False,
) -> None:
    """Trains without each fold in turn, asks about it, and writes a table and a page of suspects.

    Args:
      workdir: with the run.
      run_id: a run; by default the newest that came as far as Transform.
      folds: parts that the images are dealt into.
      epochs: of each fold; by default half of the run's.
      output: the table, a .csv file; the page stands beside it as .html. What an earlier table of
        this name decides is carried over.
      wait: for the workdir, where somebody else holds it.
      as_json: print one JSON object.

    Raises:
      UsageError: no such run, too few images for the folds, or a table at `output` with decisions
        that can't be carried over.
      Busy: a run holds the workdir.
      SafelightError: training failed, or there is too little disk.
    """
    if output.suffix.lower() != ".csv":
        raise UsageError(f"--output {output} is no .csv file; expected one, as in suspects.csv.")
    place = open_workdir(workdir, create=False)
    with place.lock(wait):
        found = source.find(place, run_id)
        _decided_before(found, output)  # refuses before anything is trained
        job = _job(place, found, folds, epochs)
        _train(job)
        said = _answers(job, len(found.images.ids))
    # Read once more: meanwhile, somebody may have filled in the earlier table.
    before = _decided_before(found, output)
    listed = _suspects(found, said, before)
    output.parent.mkdir(parents=True, exist_ok=True)
    suspects.write(output, listed, found.images, before)
    page = output.with_suffix(".html")
    passes = job.train.epochs or 0
    sheet.write(
        page,
        found,
        listed,
        table=output.name,
        first_line=2 + len(before),  # behind the header
        folds=folds,
        epochs=passes,
    )
    classes = image_schema.read_classes(found.schema)
    best = [classes[number] for number in said.argmax(axis=1)]
    told = {
        "run_id": found.request.run_id,
        "images": len(best),
        "suspects": len(listed),
        "carried_over": len(before),
        "folds": folds,
        "epochs": passes,
        "agreement": sum(map(str.__eq__, best, found.images.labels)) / len(best),
        "table": str(output),
        "page": str(page),
    }
    if as_json:
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        _tell(told, found, listed, place)


def _suspects(
    found: Source, said: npt.NDArray[np.float32], before: Sequence[Mapping[str, Any]]
) -> list[Suspect]:
    """Returns the suspects that nobody has decided about."""
    classes = image_schema.read_classes(found.schema)
    decided = {row[corrections.PATH] for row in before}
    listed = suspects.find(found.images.labels, said, classes)
    return [one for one in listed if _name(found, one.row) not in decided]


def _job(place: Workdir, found: Source, folds: int, epochs: int | None) -> child.AuditJob:
    """Returns the job, its files written; what the same audit left behind is gone on with."""
    fold, stop = source.dealt(found.images, folds)
    shortened = source.shortened(found.train, epochs)
    identity = {
        "images": [*zip(found.images.keys, found.images.labels, strict=True)],
        "train": shortened.model_dump(mode="json"),
        "transform": found.transform.model_dump(mode="json"),
        # The columns of the answers, and what a network is given: the graph holds train's moments.
        "classes": image_schema.read_classes(found.schema),
        "graph": fingerprint.of_path(found.transform_graph),
        "folds": folds,
        "code": fingerprint.of_sources(_CHILD),
    }
    folder = place.cache / "audit" / fingerprint.of_value(identity)
    _check_disk(found, folder)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "dealt.npz", fold=fold, stop=stop)
    return child.AuditJob(
        train_files=(),
        eval_files=(),
        transform_graph=found.transform_graph,
        schema_path=found.schema,
        model_dir=folder,
        run_dir=folder,
        checkpoints=folder / "checkpoints",
        train=shortened,
        transform=found.transform,
        code=str(identity["code"]),
        events=folder / "events.jsonl",
        parent=os.getpid(),
        folds=folds,
        records=tuple(found.files),
        dealt=folder / "dealt.npz",
    )


def _check_disk(found: Source, folder: Path) -> None:
    """Refuses before anything is copied: the folds hold every record once more."""
    needed = sum(Path(name).stat().st_size for name in found.files)
    anchor = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(anchor).free
    if free < 1.2 * needed:
        raise SafelightError(
            f"Too little disk for the audit: {anchor} has {free / 1e9:.1f} GB free, and the folds "
            f"take {needed / 1e9:.1f} GB while they are trained. Free some space."
        )


def _train(job: child.AuditJob) -> None:
    """Trains what is not done yet, with its progress shown; Ctrl-C ends the child too."""
    left = [number for number in range(job.folds) if not job.result(number).is_file()]
    if not left:
        return
    if len(left) < job.folds:
        done = job.folds - len(left)
        console.stderr.print(f"  {done} of {job.folds} folds were done before.", style="dim")
    assert job.events is not None
    job.events.unlink(missing_ok=True)
    job.failure.unlink(missing_ok=True)
    path = job.run_dir / "job.json"
    path.write_text(job.model_dump_json(indent=2) + "\n")
    try:
        with _shown(job.events):
            code = train.run_child(_CHILD, path, job.train)
    except KeyboardInterrupt:
        console.stderr.print("\nStopped. Run the same command again to go on from here.")
        raise typer.Exit(130) from None
    if code != 0:
        console.stderr.print(f"  log      {escape(str(job.run_dir / child.LOG))}")
    train.check_child(job, code)


@contextmanager
def _shown(path: Path) -> Iterator[None]:
    """Shows the events of a file while the block runs."""
    over = threading.Event()

    def follow(display: console.Display) -> None:
        offset, last = 0, False
        while not last:
            last = over.wait(_POLL_SECONDS)
            for behind, event in events.read(path, offset):
                display.show(event)
                offset = behind

    with console.Display() as display:
        reader = threading.Thread(target=follow, args=(display,), daemon=True)
        reader.start()
        try:
            yield
        finally:
            over.set()
            reader.join()


def _answers(job: child.AuditJob, images: int) -> npt.NDArray[np.float32]:
    """Returns every image's probabilities by the models that it didn't train, [images, classes]."""
    said: npt.NDArray[np.float32] | None = None
    for number in range(job.folds):
        with np.load(job.result(number)) as stored:
            rows, probabilities = stored["rows"], stored["probabilities"]
        if said is None:
            said = np.full((images, probabilities.shape[1]), np.nan, np.float32)
        said[rows] = probabilities
    assert said is not None and not np.isnan(said).any()
    return said


def _decided_before(found: Source, output: Path) -> list[dict[str, Any]]:
    """Returns what the table at `output` and the run's own corrections decide.

    The new table takes the place of both. Where both decide about an image, `output` counts: the
    run's file stays, as long as it is another one.

    Raises:
      UsageError: something at `output` would be lost, as it can't be read or is of other data.
    """
    there = _decided_at(output)
    of_run = _decided_by_run(found)
    known = {_name(found, row) for row in range(len(found.images.ids))}
    # Of images that the run has removed, its own table knows.
    known.update(row[corrections.PATH] for row in of_run)
    decided = dict.fromkeys(row[corrections.PATH] for row in there)
    other = [name for name in decided if name not in known]
    if other:
        names = [shown(name.encode("utf-8", "surrogateescape")) for name in other]
        raise UsageError(
            f"--output {output} decides about {len(decided)} images, {len(other)} of which the run "
            f"{found.request.run_id} doesn't have: {bounded(names)}. These decisions would be "
            "lost. Name another --output, or take the rows out."
        )
    return there + [row for row in of_run if row[corrections.PATH] not in decided]


def _decided_at(output: Path) -> list[dict[str, Any]]:
    """Returns what a table that the new one would overwrite decides."""
    if not output.is_file():
        return []
    try:
        return suspects.decided_before(output)
    except DataRefused as error:
        raise UsageError(
            f"--output {output} is there and can't be read, so what it decides would be lost. "
            f"Mend it, or name another --output. {error}"
        ) from error


def _decided_by_run(found: Source) -> list[dict[str, Any]]:
    """Returns what the run's own corrections decide."""
    name = found.request.config["ingest"].get("corrections", "")
    if not name:
        return []
    try:
        return suspects.decided_before(corrections.find(name, Path(found.request.data)))
    except SafelightError as error:
        console.stderr.print(
            f"  [yellow]warning:[/] earlier corrections are not carried over: {escape(str(error))}"
        )
        return []


def _name(found: Source, row: int) -> str:
    return found.images.ids[row].decode("utf-8", "surrogateescape")


def _tell(told: dict[str, Any], found: Source, listed: Sequence[Suspect], place: Workdir) -> None:
    console.stderr.print(
        f"[bold]{told['suspects']:,} of {told['images']:,} labels look wrong[/] "
        f"({told['folds']} folds of up to {told['epochs']} epochs; the models agree with "
        f"{told['agreement']:.1%} of all labels)"
    )
    if listed:
        table = Table("image", "label", "looks like", "quality", box=None, header_style="bold")
        for one in listed[:_SHOWN]:
            name = found.images.ids[one.row].decode("utf-8", "backslashreplace")
            table.add_row(
                escape(name), escape(one.label), escape(one.suggested), f"{one.quality:.4f}"
            )
        console.stdout.print(table)
    table_file, data = escape(told["table"]), escape(found.request.data)
    root = escape(str(place.root))
    console.stderr.print(f"  table    {table_file}")
    console.stderr.print(f"  pictures {escape(told['page'])}")
    console.stderr.print(
        "  next     fill in the column `action` (relabel, remove), then: "
        f"safelight run {data} --workdir {root} --set ingest.corrections={table_file}"
    )
