"""What an audit starts from: a run's examples, its transform graph, and how it was trained."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline import fingerprint, runs
from pipeline.config import Train, Transform
from pipeline.errors import UsageError, did_you_mean
from pipeline.features import SPLITS_WITH_CALIB, TRAIN
from pipeline.runs import Request, RunDir
from pipeline.workdir import Workdir

# Of each class's images that train a fold, one in so many chooses its best epoch instead.
_STOP_EVERY = 10


@dataclass(frozen=True)
class Images:
    """Every image of a run, split by split in the order of the records.

    Attributes:
      ids: bytes [images].
      labels: class names [images].
      splits: names [images].
      keys: what must stay in one fold [images]: the group, or the hash of the pixels.
      places: of the image's record within its split, counted from 0 [images].
    """

    ids: list[bytes]
    labels: list[str]
    splits: list[str]
    keys: list[str]
    places: list[int]


@dataclass(frozen=True)
class Source:
    """One run, as an audit needs it; `schema` is the file."""

    request: Request
    examples: Path
    schema: Path
    transform_graph: Path
    train: Train
    transform: Transform
    images: Images

    @property
    def files(self) -> list[str]:
        """The examples' files, in the order of `images`."""
        return [
            str(path)
            for split in SPLITS_WITH_CALIB
            for path in sorted((self.examples / f"Split-{split}").glob("data_tfrecord-*"))
        ]


def find(workdir: Workdir, run_id: str | None) -> Source:
    """Returns the run to audit: by default the newest whose examples and transform graph are there.

    Raises:
      UsageError: there is no such run, or what it wrote is not there (any more).
    """
    everything = list(runs.all_runs(workdir.runs))
    if run_id is None:
        usable = [run for run in everything if _folders(run) is not None]
        if not usable:
            raise UsageError(
                f"No run in {workdir.root} has come as far as Transform. Make one with: "
                f"safelight run DATA --workdir {workdir.root}"
            )
        return _source(usable[-1])
    names = [run.root.name for run in everything]
    if run_id not in names:
        raise UsageError(
            f"There is no run {run_id!r} in {workdir.root}.{did_you_mean(run_id, names)}"
        )
    run = everything[names.index(run_id)]
    if _folders(run) is None:
        raise UsageError(
            f"The run {run_id} has no examples and transform graph: it stopped before Transform, "
            "`safelight gc` has freed them, or they were more than kubeflow.record_megabytes. Run "
            "again on the same data, or name another run."
        )
    return _source(run)


def _folders(run: RunDir) -> dict[str, Path] | None:
    """Returns the directories that an audit reads, if they are all there."""
    wanted = {
        "examples": ("ImageExampleGen", "examples"),
        "report": ("ImageExampleGen", "ingest_report"),
        "schema": ("ImageSchemaGen", "schema"),
        "transform_graph": ("Transform", "transform_graph"),
    }
    nodes = run.read_artifacts()
    found = {
        name: Path(nodes.get(node, {}).get(output, "")) for name, (node, output) in wanted.items()
    }
    there = all(path != Path() and path.is_dir() for path in found.values())
    # A run on Kubeflow keeps no copy of many training images (kubeflow.record_megabytes).
    whole = there and (found["examples"] / f"Split-{TRAIN}").is_dir()
    return found if whole else None


def _source(run: RunDir) -> Source:
    folders = _folders(run)
    assert folders is not None
    request = run.read_request()
    return Source(
        request=request,
        examples=folders["examples"],
        schema=next(folders["schema"].glob("*.pbtxt")),
        transform_graph=folders["transform_graph"],
        train=_train(run, request),
        transform=Transform.model_validate(request.config["transform"]),
        images=read_images(folders["report"] / "images.parquet"),
    )


def _train(run: RunDir, request: Request) -> Train:
    """Returns the section as Trainer had it: with the values that a search found, if there was one.

    Of a run that did not come so far it is the request's.
    """
    values: Mapping[str, Any] = request.config["train"]
    model_run = run.read_artifacts().get("Trainer", {}).get("model_run")
    job = Path(model_run, "job.json") if model_run else None
    if job is not None and job.is_file():
        values = json.loads(job.read_text(encoding="utf-8"))["train"]
    return Train.model_validate(values)


def read_images(path: Path) -> Images:
    """Returns what images.parquet says of every image, in the order of the records."""
    rows = pq.read_table(path, columns=["id", "split", "label", "sha256", "group"]).to_pydict()
    found = Images([], [], [], [], [])
    for split in SPLITS_WITH_CALIB:
        chosen = [row for row, name in enumerate(rows["split"]) if name == split]
        found.ids.extend(rows["id"][row] for row in chosen)
        found.labels.extend(rows["label"][row] for row in chosen)
        found.splits.extend([split] * len(chosen))
        found.keys.extend(rows["group"][row] or rows["sha256"][row] for row in chosen)
        found.places.extend(range(len(chosen)))
    return found


def dealt(images: Images, folds: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Deals the images out: the folds get the same share of each class, and no key is torn apart.

    Returns:
      int64 [images], the fold of each; bool [images], whether it chooses the best epoch where its
      fold is one of those that train.

    Raises:
      UsageError: there are fewer images than two a fold, or too few of each class.
    """
    classes: dict[str, str] = {}
    for key, label in zip(images.keys, images.labels, strict=True):
        classes.setdefault(key, label)
    if len(classes) < 2 * folds:
        raise UsageError(
            f"--folds {folds} needs at least {2 * folds} different images; the run has "
            f"{len(classes)}. Use fewer folds."
        )
    ordered = sorted(classes, key=lambda key: (classes[key], fingerprint.of_value(key)))
    fold_of = {key: rank % folds for rank, key in enumerate(ordered)}
    stops = _stops(ordered, classes, fold_of)
    if len({fold_of[key] for key in stops}) < 2:
        most = " and ".join(str(count) for _, count in Counter(classes.values()).most_common(2))
        raise UsageError(
            "The run has too few different images of each class for an audit: expected two classes "
            f"of at least four, the largest have {most}. Add images."
        )
    fold = np.array([fold_of[key] for key in images.keys], np.int64)
    return fold, np.array([key in stops for key in images.keys], np.bool_)


def _stops(
    ordered: Sequence[str], classes: Mapping[str, str], fold_of: Mapping[str, int]
) -> set[str]:
    """Returns the keys that choose the best epoch: a tenth of each class, the folds taking turns.

    A class gives none where the network of some fold would have nothing left to learn it from.
    """
    folds = max(fold_of.values()) + 1
    stops: set[str] = set()
    for _, group in groupby(ordered, classes.__getitem__):
        keys = list(group)
        first = (len(stops) - fold_of[keys[0]]) % folds % len(keys)
        keys = keys[first:] + keys[:first]
        count = math.ceil(len(keys) / _STOP_EVERY)
        if len({fold_of[key] for key in keys[count:]}) > 1:
            stops.update(keys[:count])
    return stops


def shortened(train: Train, epochs: int | None) -> Train:
    """Returns the section for one fold: fewer epochs, on this machine, with nothing to look at.

    A network that is fitted to the end learns wrong labels by heart, and it takes half the time.

    Args:
      train: completed, as the run had it.
      epochs: in all; by default half of the run's, rounded up.
    """
    whole = sum(phase["epochs"] for phase in train.phases) or train.epochs or 1
    wanted = epochs or math.ceil(whole / 2)
    phases = [
        {**phase, "epochs": max(1, round(phase["epochs"] * wanted / whole))}
        for phase in train.phases
    ]
    return Train.model_validate(
        {
            **train.model_dump(mode="json"),
            "epochs": sum(int(str(phase["epochs"])) for phase in phases) or wanted,
            "phases": phases,
            "strategy": "auto" if train.strategy == "multi_worker" else train.strategy,
            "profile_steps": "",
            "board_images": 0,
        }
    )
