"""retrain.start=both: a warm and a cold training, of which the better on eval goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import events, export, model_json
from pipeline.features import MODEL_FACTS, WEIGHTS
from pipeline.trainer import train, train_child
from pipeline.trainer.checkpoints import Checkpoints, State
from tests import jobs
from tests.jobs import history_of, weights_of

SETTINGS: dict[str, Any] = {"preset": "mnist-cnn-small", "epochs": 2}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return jobs.data(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def champion(shared: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt these very images for longer."""
    root = tmp_path_factory.mktemp("champion")
    job = jobs.make(shared, root, "champion", **{**SETTINGS, "epochs": 6})
    train_child.run(job)
    return job.model_dir


def both(
    shared: dict[str, Any],
    root: Path,
    champion: Path,
    name: str = "both",
    checkpoints: str | None = None,
) -> train.Job:
    made = jobs.make(shared, root, name, checkpoints, **SETTINGS)
    job = made.model_copy(update={"warm_start": champion, "also_cold": True})
    train_child.run(job)
    return job


def notes(log: Path) -> list[str]:
    return [event["text"] for _, event in events.read(log) if event["kind"] == "note"]


def starts(job: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job.run_dir / "history.json").read_text())["starts"]
    return found


def test_the_better_start_goes_on_and_says_why(shared, champion, tmp_path, event_log):
    job = both(shared, tmp_path, champion)
    found = starts(job)
    assert found["chosen"] == "warm"
    assert found["warm"]["eval_loss"] < found["cold"]["eval_loss"]
    assert history_of(job)["epochs"][0]["eval_loss"] >= found["warm"]["eval_loss"]
    said = notes(event_log)
    assert any(one.startswith("Warm start") for one in said)
    assert any("the warm one goes on" in one for one in said)
    assert not list(job.checkpoints.glob("*/state.npz"))
    assert (job.run_dir / "cold" / "train").is_dir() and (job.run_dir / "train").is_dir()


@pytest.mark.slow
def test_a_spoilt_champion_loses_to_the_cold_start(shared, champion, tmp_path, event_log):
    spoilt = tmp_path / "9"
    extra = spoilt / model_json.ASSETS
    extra.mkdir(parents=True)
    model = export.load_weights(champion)
    # It is sure, and wrong: two epochs at a small rate do not mend it.
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel[:, ::-1] * 30, bias])
    (extra / MODEL_FACTS).write_bytes((champion / model_json.ASSETS / MODEL_FACTS).read_bytes())
    model.save_weights(extra / WEIGHTS)
    job = both(shared, tmp_path, spoilt)
    assert starts(job)["chosen"] == "cold"
    assert any("the cold one goes on" in one for one in notes(event_log))
    # The run's own logs are those of the model that goes on.
    assert (job.run_dir / "warm" / "train").is_dir() and not (job.run_dir / "cold").exists()
    alone = jobs.make(shared, tmp_path, "alone", **SETTINGS)
    train_child.run(alone)
    for one, other in zip(weights_of(job), weights_of(alone), strict=True):
        assert (one == other).all()


@pytest.mark.slow
def test_interrupted_between_the_two_it_goes_on(shared, champion, tmp_path, monkeypatch):
    whole = both(shared, tmp_path, champion, "whole")
    count = 0
    save = Checkpoints.save

    class Crash(Exception):
        pass

    def save_and_crash(self: Checkpoints, state: State) -> None:
        nonlocal count
        save(self, state)
        count += 1
        if count == 3:  # behind the cold start's first epoch
            raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", save_and_crash)
        with pytest.raises(Crash):
            both(shared, tmp_path, champion, "broken")
    resumed = both(shared, tmp_path, champion, "resumed", checkpoints="broken")
    before, after = starts(whole), starts(resumed)
    assert before["chosen"] == after["chosen"]
    for name in ("warm", "cold"):
        assert after[name]["eval_loss"] == pytest.approx(before[name]["eval_loss"], rel=1e-5)


@pytest.mark.slow
def test_where_no_warm_start_is_possible_there_is_one_training(shared, tmp_path, event_log):
    job = both(shared, tmp_path, tmp_path / "gone")
    assert "starts" not in json.loads((job.run_dir / "history.json").read_text())
    assert any(one.startswith("Cold start") for one in notes(event_log))
