"""`safelight monitor`: what is asked and answered, against what was learnt and judged. No labels.

Inputs are compared with the champion's training images by the facts that ingest records, predicted
classes and scores with its answers on the test images that blessed it. A figure above its bound is
an alarm, which the next `safelight retrain` takes as a reason.
"""

from __future__ import annotations

import base64
import calendar
import csv
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.markup import escape
from rich.table import Table

from pipeline import config as configuration
from pipeline import console, registry
from pipeline.config import Monitor
from pipeline.divergence import jensen_shannon
from pipeline.errors import SafelightError, UsageError
from pipeline.features import FLOAT_FACTS, TRAIN
from pipeline.monitor import requests
from pipeline.retrain.ledger import Ledger
from pipeline.retrain.rounds import FOLDER
from pipeline.runs import RunDir
from pipeline.workdir import Workdir, open_workdir

Floats = npt.NDArray[np.float64]
_BUCKETS = 10
_SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")


@dataclass(frozen=True)
class Seen:
    """Requests, or the images that a model was trained and judged on.

    Attributes:
      facts: values of each fact, float64 [images].
      predicted: how often each class was answered.
      scores: of the answers, float64 [answers].
    """

    facts: Mapping[str, Floats]
    predicted: Mapping[str, int]
    scores: Floats


@dataclass(frozen=True)
class Figure:
    """One comparison: its value, the bound it is held to, and whether it is above."""

    name: str
    value: float
    bound: float
    alarm: bool
    message: str


@dataclass(frozen=True)
class Watched:
    """What monitoring found of `requests` answers of one version."""

    requests: int
    version: int
    figures: tuple[Figure, ...] = ()
    said: str = ""
    skipped: int = 0
    manifest: str | None = field(default=None)

    @property
    def alarms(self) -> list[Figure]:
        return [figure for figure in self.figures if figure.alarm]


def command(
    logs: Sequence[Path],
    workdir: Path,
    model: str | None = None,
    manifest: Path | None = None,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    as_json: bool = False,
) -> int:
    """Prints what the logs show, records alarms in the ledger, and returns the exit code 0.

    Args:
      logs: files of JSON lines, as pipeline/client/request_log.py writes them, or TFRecords of
        tensorflow_serving's PredictionLog.
      workdir: with the model that answered.
      model: its name, where there are several.
      manifest: a CSV file to write with the images most worth labelling.
      profile: of the configuration.
      overrides: `section.key=value` each.
      as_json: print one JSON object.

    Raises:
      UsageError: a log is not there or holds no request of this model, nothing is served, or the
        manifest can't be written.
      SafelightError: what the model was judged on is gone.
    """
    _check_manifest(manifest)
    options = configuration.load(profile, overrides).config.monitor
    place = open_workdir(workdir, create=False)
    root = place.served(model)
    champion = registry.read(root).champion()
    if champion is None:
        raise UsageError(f"Nothing is served from {root} yet: there is nothing to watch.")
    wanted = {champion.version, champion.restores, None}
    entries, skipped = requests.read(logs, wanted, root.name, _seconds(champion.published))
    reference = baseline(place, champion.run_id)
    found = watch(entries, reference, champion.version, options, skipped)
    if found.alarms:
        Ledger(place.root / FOLDER).add(
            time.time(),
            "monitor",
            version=champion.version,
            reason=" ".join(one.message for one in found.alarms),
        )
    if manifest is not None:
        write_manifest(manifest, entries, options.label_next)
        found = Watched(**{**vars(found), "manifest": str(manifest)})
    if as_json:
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
    else:
        _show(found)
    return 0


def _check_manifest(path: Path | None) -> None:
    """Says so early if the manifest, or the folder of images beside it, can't be written."""
    if path is None:
        return
    if path.suffix.lower() != ".csv":
        raise UsageError(f"--manifest {path}: expected a name that ends in .csv.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--manifest {path}: there is no folder {path.absolute().parent}.")
    images = path.with_suffix("")
    if path.is_dir() or (images.exists() and not images.is_dir()):
        raise UsageError(
            f"--manifest {path}: the table goes there, and logged images into the folder "
            f"{images}, but {path if path.is_dir() else images} is something else already. "
            "Name another file."
        )


def watch(
    entries: Sequence[dict[str, Any]],
    reference: Seen,
    version: int,
    options: Monitor,
    skipped: int = 0,
) -> Watched:
    """Compares logged requests with what the model was trained and judged on.

    Args:
      entries: of `requests.read`.
      reference: from `baseline`.
      version: that answered.
      options: bounds.
      skipped: lines that were not read, to be told.
    """
    if len(entries) < options.min_requests:
        said = f"{len(entries)} requests; monitor.min_requests is {options.min_requests}."
        return Watched(len(entries), version, said=said, skipped=skipped)
    now = seen(entries)
    figures = [
        _figure(
            f"input {name}",
            divergence(now.facts[name], reference.facts[name]),
            options.max_fact_drift,
            f"{name} of the images asked about has moved from training's (Jensen-Shannon)",
        )
        for name in sorted(now.facts.keys() & reference.facts.keys())
    ]
    figures.append(
        _figure(
            "predicted classes",
            class_shift(now.predicted, reference.predicted),
            options.max_class_shift,
            "the classes answered are others than on the test images (L-infinity)",
        )
    )
    figures.append(
        _figure(
            "score",
            float(reference.scores.mean() - now.scores.mean()),
            options.max_score_drop,
            "the mean score has fallen below that on the test images",
        )
    )
    return Watched(len(entries), version, tuple(figures), skipped=skipped)


def _seconds(published: str) -> float:
    """Returns a registry's time as seconds since 1970."""
    return calendar.timegm(time.strptime(published, "%Y-%m-%dT%H:%M:%SZ"))


def seen(entries: Iterable[dict[str, Any]]) -> Seen:
    """Returns what the entries of request logs tell."""
    listed = list(entries)
    return Seen(
        facts={name: _as_kept([entry["facts"][name] for entry in listed]) for name in FLOAT_FACTS},
        predicted=Counter(entry["label"] for entry in listed),
        scores=np.array([entry["score"] for entry in listed], np.float64),
    )


def _as_kept(values: Sequence[float]) -> Floats:
    """Returns a fact's values as exact as ingest keeps them: 4/3 has to be training's 4/3."""
    return np.array(values, np.float32).astype(np.float64)


def baseline(workdir: Workdir, run_id: str) -> Seen:
    """Returns what a run's model was trained on, and what it answered on `test`.

    Raises:
      SafelightError: the run's artifacts are gone.
    """
    import pyarrow.parquet as pq

    from pipeline.evaluator import predictions

    made = RunDir(workdir.runs / run_id).read_artifacts() if run_id else {}
    try:
        images = Path(made["ImageExampleGen"]["ingest_report"]) / "images.parquet"
        table = pq.read_table(images, columns=["split", *FLOAT_FACTS])
        answered = predictions.read(Path(made["Predictor"]["predictions"]))
    except (KeyError, OSError):
        answered = None
    if answered is None:
        raise SafelightError(
            f"What run {run_id or '(unknown)'} was trained and judged on is gone from "
            f"{workdir.artifacts}: there is nothing to compare with. Run the pipeline again."
        )
    table = table.filter([split == TRAIN for split in table["split"].to_pylist()])
    return Seen(
        facts={name: table[name].to_numpy().astype(np.float64) for name in FLOAT_FACTS},
        predicted=Counter(answered.said),
        scores=answered.probabilities.max(axis=1).astype(np.float64),
    )


def divergence(one: Floats, other: Floats) -> float:
    """Returns the Jensen-Shannon divergence of two samples, in bits: 0 to 1 (Lin, 1991).

    The buckets lie between the second's deciles; what equals a decile has a bucket of its own, so
    that a fact with one value, as an aspect ratio often is, can be seen to move.
    """
    edges = np.unique(np.quantile(other, np.linspace(0, 1, _BUCKETS + 1)[1:-1]))
    return jensen_shannon(_shares(one, edges), _shares(other, edges))


def _shares(sample: Floats, edges: Floats) -> Floats:
    below, up_to = (np.searchsorted(edges, sample, side=side) for side in _SIDES)
    counts = np.bincount(below + up_to, minlength=2 * len(edges) + 1)
    shares: Floats = counts / len(sample)
    return shares


def class_shift(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    """Returns the L-infinity distance of two distributions over classes: 0 to 1."""
    here, there = sum(one.values()) or 1, sum(other.values()) or 1
    names = one.keys() | other.keys()
    return max(abs(one.get(name, 0) / here - other.get(name, 0) / there) for name in names)


def write_manifest(path: Path, entries: Sequence[dict[str, Any]], most: int) -> int:
    """Writes the images most worth labelling as CSV, and returns how many they are.

    The least margin between the two best classes comes first (Scheffer et al., 2001); an image
    that was asked about often is listed once. Where the log kept the images, they are written into
    a folder beside, and `path` names them.
    """
    unique = {entry["sha256"]: entry for entry in entries}
    chosen = sorted(unique.values(), key=lambda entry: (_margin(entry), entry["sha256"]))[:most]
    folder = path.with_suffix("")
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "sha256", "predicted", "score", "margin"])
        for entry in chosen:
            name = ""
            if "image" in entry:
                folder.mkdir(exist_ok=True)
                image = folder / f"{entry['sha256'][:32]}.{entry['format'].lower()}"
                image.write_bytes(base64.b64decode(entry["image"]))
                name = f"{folder.name}/{image.name}"
            margin = round(_margin(entry), 6)
            writer.writerow([name, entry["sha256"], entry["label"], entry["score"], margin])
    return len(chosen)


def _margin(entry: dict[str, Any]) -> float:
    best = sorted(entry["probabilities"].values(), reverse=True)
    return float(best[0] - best[1]) if len(best) > 1 else 1.0


def _figure(name: str, value: float, bound: float, said: str) -> Figure:
    text = f"{said[0].upper()}{said[1:]}: {value:.3f}, the bound is {bound:g}."
    return Figure(name, value, bound, value > bound, text)


def _show(found: Watched) -> None:
    console.stdout.print(f"{found.requests:,} requests answered by version {found.version}")
    if found.skipped:
        console.stdout.print(f"  {found.skipped:,} other lines were passed over")
    if found.said:
        console.stdout.print(f"  {found.said}")
    if found.figures:
        table = Table("figure", "value", "bound", "", box=None, pad_edge=False)
        for one in found.figures:
            mark = "[red]alarm[/]" if one.alarm else "[green]fine[/]"
            table.add_row(escape(one.name), f"{one.value:.4f}", f"{one.bound:g}", mark)
        console.stdout.print(table)
    if found.manifest:
        console.stdout.print(f"  to label next: {escape(found.manifest)}")
