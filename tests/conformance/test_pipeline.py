"""The compiled pipeline, run as a server would: the essential part is quick, the whole is slow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline import config as configuration
from pipeline import registry
from pipeline.evaluator import predictions
from pipeline.kubeflow import names
from pipeline.kubeflow.compile import compile_package
from pipeline.runs import RunDir
from tests import made
from tests.conformance.server import Run, Server
from tests.e2e.command import safelight

COUNTS = {"blue": 40, "green": 40, "red": 40}
SETTINGS = [
    "train.epochs=3",
    "train.batch_size=16",
    "train.preset=mnist-cnn-small",
    "ingest.workers=1",
]


def compiled(volume: Path, *overrides: str) -> str:
    """Returns a package whose steps mount `volume` at its own path."""
    settings = [
        "kubeflow.image=registry.example.com/safelight:0.1.0",
        f"kubeflow.volumes=[{{claim='safelight', path='{volume}'}}]",
        f"kubeflow.workdir={volume}/workdir",
        "kubeflow.retries=0",
        *SETTINGS,
        *overrides,
    ]
    return compile_package(configuration.load(None, settings).config)


def printed(run: Run) -> dict:
    """Returns the result that the exit task printed, as `safelight submit` reads it."""
    [line] = [one for one in run.tasks["report"].log.splitlines() if names.RESULT_LINE in one]
    result: dict = json.loads(line.partition(names.RESULT_LINE)[2])
    return result


def failed(run: Run) -> str:
    return "".join(f"{key}:\n{one.log}" for key, one in run.tasks.items() if one.state == "FAILED")


def run_dir(volume: Path, result: dict) -> RunDir:
    return RunDir(volume / "workdir" / "runs" / result["run_id"])


def test_refused_data_is_told_with_its_exit_code(tmp_path):
    """The first step refuses; nothing else runs but the exit task, which says so."""
    volume = tmp_path / "volume"
    made.class_folders(volume / "data", {"only": 0, "blue": 3})
    run = Server(tmp_path / "server").run(compiled(volume), {"data": str(volume / "data")})
    assert (run.state, run.tasks["prepare"].exit_code) == ("FAILED", 4)
    assert {run.tasks[names.task("Trainer")].state} == {"OMITTED"}
    result = printed(run)
    assert result["outcome"] == "invalid_data"
    assert result["reasons"][0] in run.tasks["prepare"].log
    assert run.tasks["report"].artifacts["report"]["metadata"]["outcome"] == "invalid_data"
    assert run_dir(volume, result).report.is_file()


@pytest.mark.slow
def test_an_override_that_is_wrong(tmp_path):
    volume = tmp_path / "volume"
    made.class_folders(volume / "data", {"red": 3, "blue": 3})
    given = {"data": str(volume / "data"), "overrides": "train.epoch=3"}
    run = Server(tmp_path / "server").run(compiled(volume), given)
    assert run.tasks["prepare"].exit_code == 2
    assert "overrides: train.epoch: unknown key" in printed(run)["reasons"][0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A volume, its server, the package, and the first run: everything from raw images on."""
    root = tmp_path_factory.mktemp("whole")
    volume = root / "volume"
    made.class_folders(volume / "data", COUNTS)
    server = Server(root / "server")
    package = compiled(volume)
    return volume, server, package, server.run(package, {"data": str(volume / "data")})


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_run_pushes_what_a_local_run_pushes(whole, tmp_path):
    volume, _, _, run = whole
    assert run.state == "SUCCEEDED", failed(run)
    result = printed(run)
    assert (result["outcome"], result["version"]) == ("pushed", 1)
    live = registry.read(volume / "workdir/serving/model")
    assert live.current == 1
    options = [part for one in SETTINGS for part in ("--set", one)]
    local = safelight(
        "run", volume / "data", "--workdir", tmp_path / "local", *options, "--json", timeout=1800
    )
    assert local.code == 0, local.stderr
    there = answers(run_dir(volume, result))
    here = answers(RunDir(tmp_path / "local/runs" / local.result["run_id"]))
    assert there.ids == here.ids
    assert there.predicted == here.predicted
    np.testing.assert_allclose(there.probabilities, here.probabilities, atol=1e-5)


def answers(run: RunDir) -> predictions.Predictions:
    read = predictions.read(Path(run.read_artifacts()["Predictor"]["predictions"]))
    assert read is not None
    return read


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_pages_get_metrics_and_report(whole):
    volume, server, _, run = whole
    gate = run.tasks["blessing-gate"].artifacts
    result = printed(run)
    assert gate["metrics"]["metadata"]["accuracy"] == result["metrics"]["accuracy"]
    matrix = gate["confusion_matrix"]["metadata"]["confusionMatrix"]
    assert [one["displayName"] for one in matrix["annotationSpecs"]] == sorted(COUNTS)
    report = run.tasks["report"].artifacts["report"]["uri"]
    page = (server.bucket / report.replace("://", "/")).read_text()
    assert page == run_dir(volume, result).report.read_text()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_steps_that_are_off_by_default(tmp_path):
    """Their artifacts are for the report too, and variants stand beside what was pushed."""
    volume = tmp_path / "volume"
    made.class_folders(volume / "data", COUNTS)
    package = compiled(
        volume, "robustness.images=30", "explain.images=2", "variants.names=['tflite-float16']"
    )
    run = Server(tmp_path / "server").run(package, {"data": str(volume / "data")})
    assert run.state == "SUCCEEDED", failed(run)
    result = printed(run)
    assert result["outcome"] == "pushed"
    kept = run_dir(volume, result).read_artifacts()
    expected = {"Robustness", "Explainer", "VariantMaker", "VariantPusher"}
    assert expected <= kept.keys()
    for variant, place in result["exports"].items():
        assert Path(place).is_dir(), variant
    assert (volume / "workdir/exports").is_dir() == bool(result["exports"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_second_run_is_cached_and_pushes_nothing(whole):
    volume, server, package, first = whole
    assert first.state == "SUCCEEDED", failed(first)
    run = server.run(package, {"data": str(volume / "data")})
    ran = {name for name, task in run.tasks.items() if task.state == "SUCCEEDED"}
    assert ran == {"pipeline", "prepare", "blessing-gate", "pusher", "report"}, failed(run)
    result = printed(run)
    assert (result["outcome"], result["version"]) == ("unchanged", 1)
    assert registry.read(volume / "workdir/serving/model").current == 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_blocked_model_is_not_pushed(whole):
    volume, server, package, first = whole
    assert first.state == "SUCCEEDED", failed(first)
    given = {"data": str(volume / "data"), "overrides": "evaluate.min_accuracy = 1.0"}
    run = server.run(package, given)
    assert run.tasks["pusher"].state == "SKIPPED", failed(run)
    assert run.state == "SUCCEEDED"
    result = printed(run)
    assert result["outcome"] == "not_blessed"
    assert result["reasons"]
    # Only the gate and TFMA read that section.
    assert run.tasks["trainer"].state == "CACHED"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_missing_artifact_is_named(whole):
    volume, server, package, first = whole
    assert first.state == "SUCCEEDED", failed(first)
    uri = first.tasks["trainer"].artifacts["model"]["uri"]
    shutil.rmtree(server.bucket / uri.replace("://", "/"))
    given = {"data": str(volume / "data"), "overrides": "serving.check_images = 5"}
    run = server.run(package, given)
    step = run.tasks["serving-check"]
    assert (step.state, step.exit_code) == ("FAILED", 1)
    assert "The input 'model' is missing" in step.log
    assert printed(run)["outcome"] == "failed"
