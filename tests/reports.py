"""Workdirs to report on: real images through the real ingest, transform graph and model.

Only what training and the last gates would write is made here, by the documented formats, from
the model's real answers.
"""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import standard_artifacts

from components.artifacts import IngestReport
from components.image_example_gen import Executor
from components.image_statistics import IN_MEMORY_RUNNER
from pipeline import events, features, runs
from pipeline.blessing import verdict
from pipeline.config import Config, Evaluate, Ingest
from pipeline.evaluator import head_columns, predictions
from pipeline.heads import Head
from pipeline.ingest.scan import scan
from pipeline.runs import Request, Result, RunDir, Stage
from pipeline.workdir import Workdir, open_workdir
from tests import exports, graphs, made, report_parts

_BEAM = [f"--runner={IN_MEMORY_RUNNER}", "--direct_running_mode=in_memory"]


def photographs(root: Path, names: dict[str, str], count: int = 60, wrong: int = 6) -> Path:
    """Writes `count` pictures a class, some of them labelled wrongly, and files that are none.

    Args:
      root: where class folders are made.
      names: from a folder's name to the colour of its pictures.
      count: of each class.
      wrong: pictures of each class that show the next class's colour.
    """
    colours = list(names.values())
    for position, (name, colour) in enumerate(names.items()):
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(count):
            shown = colours[(position + 1) % len(colours)] if number < wrong else colour
            image = made.picture(shown, number + 1000 * (shown != colour))
            image.save(folder / f"{number:05d}.png")
    first = root / next(iter(names))
    (first / "empty.jpg").write_bytes(b"")
    (first / "page <img src=x>.jpg").write_text("<!DOCTYPE html><script>alert(1)</script>")
    shutil.copy(first / "00005.png", first / "copy.png")
    return root


def new_run(workdir: Workdir, data: Path, run_id: str, **config: dict[str, Any]) -> RunDir:
    """Writes the request of a run, as `safelight run` does."""
    effective = Config.model_validate(
        {"train": {"preset": "cifar10-cnn", "epochs": 6}, "transform": {"image_size": 32}} | config
    )
    run = RunDir(workdir.runs / run_id)
    run.write_request(
        Request(
            run_id=run_id,
            created="2025-03-04T05:06:07Z",
            data=str(data),
            config=effective.model_dump(mode="json"),
            origins={"train.epochs": "--set train.epochs"},
            chosen=["transform.image_size = 32", "train.preset = cifar10-cnn"],
            scan={},
            lineage={"data": "d" * 16, "config": "c" * 16, "code": "e" * 16},
            inputs={"known_classes": [], "champion": None, "champion_uri": ""},
            versions={"python": "3.10", "tfx": "1.16.0"},
        )
    )
    return run


def ingest(workdir: Workdir, data: Path, **options: Any) -> dict[str, str]:
    """Runs the real ImageExampleGen; returns the URIs of its outputs."""
    root = workdir.artifacts / "ImageExampleGen"
    settings = Ingest(**{"error_budget": 0.5, **options})
    examples, report = standard_artifacts.Examples(), IngestReport()
    examples.uri, report.uri = str(root / "examples" / "1"), str(root / "ingest_report" / "1")
    executor = Executor(BaseBeamExecutor.Context(beam_pipeline_args=list(_BEAM)))
    executor.Do(
        {},
        {"examples": [examples], "ingest_report": [report]},
        {
            "data": str(data),
            "fingerprint": scan(str(data), settings).fingerprint,
            "known_classes": "[]",
            "options": settings.model_dump_json(),
            "code": "test",
        },
    )
    return {"examples": examples.uri, "ingest_report": report.uri}


def answer(workdir: Workdir, examples: str, key: str, **behaviour: Any) -> str:
    """Has a model answer the test split; returns the URI of its predictions."""
    export = workdir.artifacts / "Trainer" / key
    exports.save_model(export, **behaviour)
    folder = workdir.artifacts / "Predictor" / key / "2"
    folder.mkdir(parents=True)
    loaded = predictions.Export(export)
    predictions.write(folder, predictions.answer_split(loaded, examples, features.TEST), loaded)
    return str(folder)


def folder_with(workdir: Workdir, node: str, key: str, name: str, content: dict[str, Any]) -> str:
    """Writes one JSON file as a node's output; returns the output's URI."""
    folder = workdir.artifacts / node / key / "3"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return str(folder)


def history(epochs: int = 6) -> dict[str, Any]:
    """Returns history.json of two phases and two heads, best at its fourth epoch."""
    rows = [
        {
            "epoch": number,
            "seconds": 1.25,
            "loss": 1.4 / number,
            "accuracy": 1 - 0.55 / number,
            "eval_loss": 0.5 + (number - 4) ** 2 / 20,
            "eval_accuracy": 0.9 - (number - 4) ** 2 / 100,
            "learning_rate": 0.001,
            "heads": {
                "label": {"loss": 1.0 / number, "eval_loss": 0.5},
                "severity": {"loss": 0.3, "eval_loss": 0.4, "mae": 0.5 / number, "eval_mae": 0.2},
            },
        }
        for number in range(1, epochs + 1)
    ]
    phases = [
        {"name": "head", "first_epoch": 1, "epochs": 3, "unfreeze": "none"},
        {"name": "fine-tuning", "first_epoch": 4, "epochs": epochs - 3, "unfreeze": "20%"},
    ]
    facts = [
        {"learning_rate": 0.001, "trainable_parameters": 1_284},
        {"learning_rate": 0.0001, "trainable_parameters": 250_000},
    ]
    return {
        "epochs": rows,
        "phases": [{**phase, **more} for phase, more in zip(phases, facts, strict=True)],
        "best_epoch": 4,
        "stopped_early": True,
        "resumed_from": None,
        "seconds": 7.5,
        "images_per_second": 812.5,
    }


TRIALS = [
    {
        "trial": number,
        "values": {"learning_rate": rate, "dropout": number / 5},
        "state": "failed" if score is None else "completed",
        "score": score,
        "epochs": 0 if score is None else 3,
        "seconds": 4.5,
        "reason": "the loss is not finite" if score is None else "",
        "best": number == 3,
    }
    for number, (rate, score) in enumerate([(0.01, 0.71), (0.5, None), (0.001, 0.93)], 1)
]


def add_heads(answers: str) -> None:
    """Gives predictions.parquet the columns of two further heads, a number and a class.

    What they say follows from the label's answers: images that were named rightly have no error.
    """
    path = Path(answers) / predictions.FILE
    table = pq.read_table(path)
    right = np.array(table["label"].to_pylist()) == np.array(table["predicted"].to_pylist())
    truth = np.linspace(0, 1, table.num_rows, dtype=np.float32)
    said = truth + np.where(right, np.float32(0.01), np.float32(0.25))
    grades = ["high" if value > 0.5 else "low" for value in truth]
    answered = ["high" if value > 0.5 else "low" for value in said]
    chances = [[0.9, 0.1] if name == "high" else [0.2, 0.8] for name in answered]
    columns = {
        "severity": pa.array([None, *truth[1:].tolist()], pa.float32()),
        "severity_predicted": pa.array(said, pa.float32()),
        "grade": pa.array(grades),
        "grade_predicted": pa.array(answered),
        "grade_probabilities": pa.array(chances, pa.list_(pa.float32())),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    severity = Head(name="severity", kind="regression", column="severity")
    grade = Head(name="grade", kind="class", column="grade", classes=("high", "low"))
    told = {**table.schema.metadata, **head_columns.metadata([severity, grade])}
    pq.write_table(table.replace_schema_metadata(told), path)


def read_answers(answers: str) -> predictions.Predictions:
    """Returns predictions without what `add_heads` may have added: no model was judged by it."""
    read = predictions.read(Path(answers))
    assert read is not None
    return replace(read, heads={})


def judge(answers: str, champion: str | None, floor: float, ingested: str) -> dict[str, Any]:
    """Returns what the gate says about these predictions, with this floor for accuracy.

    Args:
      answers: the URI of the predictions.
      champion: that of the champion's, if there is one.
      floor: of accuracy.
      ingested: the URI of the ingest report.
    """
    read = read_answers(answers)
    before = read_answers(champion) if champion else None
    index = {name: number for number, name in enumerate(read.classes)}
    pairs = Counter(
        (index[label], index[name]) for label, name in zip(read.labels, read.predicted, strict=True)
    )
    measured = verdict.Measured(
        examples=len(read.ids),
        accuracy=float(read.correct().mean()),
        top_k_accuracy=1.0,
        cross_entropy=0.4321,
        confusion=pairs,
    )
    evidence = verdict.Evidence(
        measured=measured,
        predictions=read,
        champion=before,
        serving=report_parts.serving(before is not None),
        test_images=len(read.ids),
        facts=report_parts.facts(ingested),
        robustness=report_parts.spoiled(read, before),
    )
    options = Evaluate(min_accuracy=floor, min_slice_images=5, resamples=200)
    return verdict.judge(evidence, options)


def end(run: RunDir, artifacts: dict[str, dict[str, str]], result: Result) -> None:
    """Writes events, artifacts.json and result.json of a run whose nodes took a second each."""
    events.configure(run.events)
    events.emit("startup", seconds=6.5)
    events.note("transform.image_size = 32, chosen from the data")
    stages = []
    for number, name in enumerate(artifacts):
        events.emit("stage", name=name, state="start")
        events.emit(
            "stage", name=name, state="complete", seconds=1.0 + number, peak_mb=900 + 10 * number
        )
        stages.append(Stage(name, 1.0 + number, "complete"))
    events.configure(None)
    runs.write_json(run.artifacts, artifacts)
    run.write_result(Result(**{**asdict(result), "stages": stages}))


@functools.cache
def shared() -> tuple[Workdir, RunDir]:
    """Returns `whole` with a champion, made once a process; tests may add runs to it."""
    folder = tempfile.TemporaryDirectory(prefix="reports-")
    _folders.append(folder)
    return whole(Path(folder.name), champion=True)


def judged_again(workdir: Workdir, run: RunDir, run_id: str, floor: float) -> RunDir:
    """Adds a run that differs from `run` by the gate's floor alone, and is not blessed."""
    again = RunDir(workdir.runs / run_id)
    shutil.copytree(run.root, again.root)
    artifacts = again.read_artifacts()
    del artifacts["Predictor"]["champion_predictions"]
    ingested = artifacts["ImageExampleGen"]["ingest_report"]
    judged = judge(artifacts["Predictor"]["predictions"], None, floor, ingested)
    uri = folder_with(workdir, "BlessingGate", run_id, "verdict.json", judged)
    artifacts["BlessingGate"] = {"blessing": uri}
    runs.write_json(again.artifacts, artifacts)
    result = again.read_result()
    assert result is not None
    again.write_result(
        replace(result, outcome="not_blessed", reasons=judged["reasons"], version=None)
    )
    return again


def whole(root: Path, champion: bool = False) -> tuple[Workdir, RunDir]:
    """Makes a workdir with one complete run: three colours, some labels wrong, some files bad."""
    data = photographs(root / "data", {name: name for name in ("blue", "green", "red", "white")})
    workdir = open_workdir(root / "work")
    policy = ["flip", {"name": "rotation", "factor": 0.1}]
    train = {"preset": "cifar10-cnn", "epochs": 6, "augment": policy}
    run = new_run(workdir, data, "20250304T050607-aa11", train=train)
    ingested = ingest(workdir, data)
    graph = workdir.artifacts / "Transform" / "transform_graph" / "4"
    shutil.copytree(graphs.transform_graph(), graph)
    calibrated = {"temperature": 1.25, "threshold": 0.4}
    answers = answer(workdir, ingested["examples"], "predictions", facts=calibrated)
    outputs = {"predictions": answers}
    if champion:
        outputs["champion_predictions"] = answer(
            workdir, ingested["examples"], "champion", answers={"red": "white", "white": "red"}
        )
    before = outputs.get("champion_predictions")
    judged = judge(answers, before, 0.5, ingested["ingest_report"])
    explanations = workdir.artifacts / "Explainer" / "explanations" / "6"
    report_parts.explained(explanations, read_answers(answers))
    smaller = report_parts.smaller(read_answers(answers))
    add_heads(answers)
    trials = workdir.artifacts / "Tuner" / "tuner_results" / "5"
    trials.mkdir(parents=True)
    (trials / "tuner_results.json").write_text(json.dumps(TRIALS))
    checks = {
        "checks": [
            {
                "name": "imbalance",
                "mode": "warn",
                "state": "warn",
                "feature": "label",
                "split": "train",
                "found": "3.0",
                "expected": "at most 2.0",
                "message": "The largest class has 3.0 times the images of the smallest.",
            },
            {
                "name": "few_images",
                "mode": "fail",
                "state": "ok",
                "feature": "",
                "split": "",
                "found": "",
                "expected": "",
                "message": "",
            },
        ]
    }
    artifacts = {
        "ImageExampleGen": ingested,
        "ValidationGate": {
            "validation_report": folder_with(
                workdir, "ValidationGate", "validation_report", "validation.json", checks
            )
        },
        "Transform": {"transform_graph": str(graph)},
        "Tuner": {"tuner_results": str(trials)},
        "Trainer": {
            "model_run": folder_with(workdir, "Trainer", "model_run", "history.json", history())
        },
        "Predictor": outputs,
        "ServingCheck": {
            "serving_check": folder_with(
                workdir,
                "ServingCheck",
                "serving_check",
                "serving_check.json",
                report_parts.serving(champion),
            )
        },
        "BlessingGate": {
            "blessing": folder_with(workdir, "BlessingGate", "blessing", "verdict.json", judged)
        },
        "Explainer": {"explanations": str(explanations)},
        "VariantMaker": {
            "variants": folder_with(workdir, "VariantMaker", "variants", "variants.json", smaller)
        },
    }
    summary = json.loads((Path(ingested["ingest_report"]) / "summary.json").read_text())
    end(
        run,
        artifacts,
        Result(
            run_id=run.root.name,
            outcome="pushed",
            metrics=judged["metrics"],
            examples=summary["examples"],
            quarantined=summary["quarantined"],
            version=1,
        ),
    )
    return workdir, run


_folders: list[tempfile.TemporaryDirectory[str]] = []
