"""Search and networks of one's own, through the whole pipeline."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests import made
from tests.e2e.command import COMMAND, STAGES, environment, safelight

WITH_TUNER = [
    *STAGES[: STAGES.index("Trainer")],
    "Tuner",
    *STAGES[STAGES.index("Trainer") :],
]
SEARCH = (
    *("--profile", "smoke", "--set", "train.epochs=4"),
    *("--set", "tune.algorithm=random", "--set", "tune.trials=3", "--set", "tune.epochs=1"),
    *("--set", "tune.space={learning_rate=[0.003, 0.002, 1e30]}"),
)
NETWORK = """\
import keras


def build(pixels):
    hidden = keras.layers.Conv2D({filters}, 3, activation="relu")(pixels)
    return keras.layers.GlobalAveragePooling2D()(hidden)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    counts = dict.fromkeys(made.HUES, 60)
    return made.class_folders(tmp_path_factory.mktemp("data") / "colours", counts)


@pytest.mark.slow
def test_the_best_values_of_a_search_are_trained_and_told(data, tmp_path):
    workdir = tmp_path / "work"
    ended = safelight("run", data, "--workdir", workdir, *SEARCH, "--json")
    assert ended.code == 0, ended.stderr
    assert list(ended.states()) == WITH_TUNER
    run = workdir / "runs" / ended.result["run_id"]
    artifacts = json.loads((run / "artifacts.json").read_text())
    results = Path(artifacts["Tuner"]["tuner_results"])
    rows = json.loads((results / "tuner_results.json").read_text())
    assert [row["state"] for row in rows].count("failed") == 1
    [best] = [row for row in rows if row["best"]]
    job = json.loads((Path(artifacts["Trainer"]["model_run"]) / "job.json").read_text())
    assert job["train"]["learning_rate"] == best["values"]["learning_rate"] in (0.003, 0.002)
    report = (run / "report.html").read_text()
    assert "1e+30" in report
    assert "Trains with the best values of the search" in (run / "events.jsonl").read_text()

    again = safelight("run", data, "--workdir", workdir, *SEARCH, "--json")
    assert again.result["outcome"] == "unchanged", again.stderr
    assert again.stages_in("cached") == set(WITH_TUNER)


def test_a_space_that_makes_no_sense_is_refused_before_anything_runs(data, tmp_path):
    workdir = tmp_path / "work"
    wrong = ("--set", "tune.algorithm=random", "--set", "tune.space={learning_rat=[0.1]}")
    ended = safelight("run", data, "--workdir", workdir, *wrong)
    assert ended.code == 2
    assert "Did you mean 'learning_rate'?" in ended.stderr
    assert not workdir.exists()


@pytest.mark.slow
def test_a_network_of_ones_own_trains_and_a_change_of_it_trains_anew(data, tmp_path):
    here, workdir = tmp_path / "here", tmp_path / "work"
    here.mkdir()
    line = [COMMAND, "run", str(data), "--workdir", str(workdir), "--json"]
    line += ["--set", "train.model=nets:build", "--set", "train.epochs=3"]
    line += ["--set", "evaluate.min_accuracy=0", "--set", "evaluate.min_class_recall=0"]

    def run(filters: int) -> tuple[dict, str]:
        (here / "nets.py").write_text(NETWORK.format(filters=filters))
        done = subprocess.run(
            line, cwd=here, capture_output=True, text=True, env=environment(), timeout=900
        )
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    first, said = run(8)
    assert first["outcome"] == "pushed", said
    copied = workdir / "runs" / first["run_id"] / "nets.py"
    assert "Conv2D(8" in copied.read_text()
    second, said = run(16)
    states = {stage["name"]: stage["state"] for stage in second["stages"]}
    assert states["Transform"] == "cached", said
    assert states["Trainer"] == "complete"
