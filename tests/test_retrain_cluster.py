"""The policy drives Kubeflow: what is submitted, followed, recorded, and found again later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import config
from pipeline.errors import ConfigError
from pipeline.kubeflow import names, record
from pipeline.kubeflow.api import ServerError
from pipeline.retrain import command
from pipeline.retrain.book import Book
from pipeline.retrain.ledger import Ledger
from pipeline.retrain.on_cluster import Cluster
from pipeline.retrain.rounds import Rounds
from pipeline.runs import Result, RunDir
from pipeline.workdir import Workdir, open_workdir
from tests import kfp_server
from tests.spanned import span

PACKAGE = Path(__file__).parent / "golden" / "kubeflow.yaml"


@pytest.fixture
def server():
    with kfp_server.serving() as (url, state):
        yield url, state


@pytest.fixture
def volume(tmp_path) -> Path:
    """A volume that this machine and the steps see at the same path, with two spans on it."""
    for number in (1, 2):
        span(tmp_path / "volume" / "spans", number)
    return tmp_path / "volume"


def settings(url: str, volume: Path) -> list[str]:
    return [
        "kubeflow.image=registry.example.com/safelight:0.1.0",
        f"kubeflow.endpoint={url}",
        f"kubeflow.workdir={volume / 'work'}",
        f'kubeflow.volumes=[{{ claim = "safelight", path = "{volume}" }}]',
        "retrain.backoff_minutes=0",
    ]


def retrain(url: str, volume: Path, **more) -> int:
    return command.command(
        volume / "work",
        volume / "spans",
        overrides=settings(url, volume),
        once=True,
        runner="kubeflow",
        package=PACKAGE,
        as_json=True,
        **more,
    )


def ends_with(state: kfp_server.State, result: Result) -> None:
    """Lets runs end with this result, printed by the exit task."""
    tasks = [{"display_name": "report", "state": "SUCCEEDED", "task_id": "r", "pod_name": "pod-1"}]
    state.script = [{"state": "SUCCEEDED", "run_details": {"task_details": tasks}}]
    state.logs["pod-1"] = f"{names.RESULT_LINE}{result.to_json()}\n"


def lines(volume: Path, kind: str) -> list[dict]:
    return [one for one in Ledger(volume / "work" / "retrain").read() if one["kind"] == kind]


def trained(volume: Path) -> list[bool]:
    return [one.trained for one in Book(volume / "work" / "retrain").latest()]


def test_a_due_training_runs_there_on_the_explicit_spans(server, volume, capsys):
    url, state = server
    ends_with(state, Result("20260101T000000-abcd", "not_blessed", ["too weak"]))
    assert retrain(url, volume) == 3
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["result"]["outcome"] == "not_blessed"
    [run] = state.runs.values()
    given = run["runtime_config"]["parameters"]
    assert given["data"] == str(volume / "spans")
    listed = json.loads(given["spans"])
    assert [(one["name"], one["judged"]) for one in listed] == [
        ("span-1-r1", False),
        ("span-2-r1", True),
    ]
    book = Book(volume / "work" / "retrain")
    assert [one["fingerprint"] for one in listed] == [one.fingerprint for one in book.latest()]
    [attempt] = lines(volume, "attempt")
    [outcome] = lines(volume, "outcome")
    assert attempt["server_run"] == attempt["run_id"] == outcome["run_id"] == run["run_id"]
    assert outcome["reasons"] == ["too weak"]
    assert trained(volume) == [True, True]


def test_refused_data_puts_the_spans_aside(server, volume, capsys):
    url, state = server
    ends_with(state, Result("r", "invalid_data", ["brightness is out of range"]))
    assert retrain(url, volume) == 4
    states = {one.state for one in Book(volume / "work" / "retrain").latest()}
    assert states == {"quarantined"}
    # Nothing is left to train on: nothing more is started.
    assert retrain(url, volume) == 0
    assert len(state.runs) == 1


def writes(volume: Path, state: kfp_server.State, result: Result) -> None:
    """Lets runs end with a result that only the volume has: the exit task's pod is gone."""
    run = RunDir(_work(volume).runs / "20260101T000000-run-1")
    run.root.mkdir(parents=True)
    run.write_result(result)
    succeeded = result.outcome in ("pushed", "not_blessed")
    task = {"display_name": "pusher", "state": "SUCCEEDED", "task_id": "p"}
    end = {"state": "SUCCEEDED", "run_details": {"task_details": [task]}}
    state.script = [end if succeeded else {"state": "FAILED"}]


@pytest.mark.parametrize(
    ("result", "code", "states"),
    [
        (Result("20260101T000000-run-1", "invalid_data", ["too dark"]), 4, {"quarantined"}),
        (Result("20260101T000000-run-1", "pushed", version=7), 0, {"taken"}),
    ],
)
def test_without_a_log_the_volume_tells(server, volume, capsys, result, code, states):
    url, state = server
    writes(volume, state, result)
    assert retrain(url, volume) == code
    [outcome] = lines(volume, "outcome")
    assert (outcome["outcome"], outcome["version"]) == (result.outcome, result.version)
    assert outcome["reasons"] == result.reasons
    assert {one.state for one in Book(volume / "work" / "retrain").latest()} == states
    cluster = Cluster(config.load(overrides=settings(url, volume)).config, _work(volume))
    assert cluster.ended("run-1") == result


def test_the_spans_of_an_overtaken_push_stay_new(server, volume, capsys):
    """Another version was published meanwhile: the one that learned these spans never served."""
    url, state = server
    writes(volume, state, Result("20260101T000000-run-1", "not_blessed", ["version 4 is served"]))
    run = RunDir(_work(volume).runs / "20260101T000000-run-1")
    blessing = run.root / "artifacts" / "BlessingGate" / "blessing"
    blessing.mkdir(parents=True)
    (blessing / "verdict.json").write_text(json.dumps({"blessed": True, "checks": []}))
    run.artifacts.write_text(json.dumps({"BlessingGate": {"blessing": str(blessing)}}))
    assert retrain(url, volume) == 3
    assert trained(volume) == [False, False]


def test_a_result_is_found_where_the_steps_write_it(volume, monkeypatch):
    server_run = "4f63a636-9a6a-46cd"
    monkeypatch.setenv(names.RUN_ID, server_run)
    written = record.open_record(_work(volume), 1, create=True).run
    written.root.mkdir(parents=True)
    written.write_result(Result(written.root.name, "pushed", version=2))
    nowhere = settings("http://127.0.0.1:9", volume)
    cluster = Cluster(config.load(overrides=nowhere).config, _work(volume))
    assert cluster.ended(server_run) == Result(written.root.name, "pushed", version=2)


def begins_and_is_left(url: str, state: kfp_server.State, volume: Path, monkeypatch) -> None:
    """Starts a run that goes on, and stops waiting for it as Ctrl-C does."""
    state.script = [{"state": "RUNNING"}]

    def stopped(self: Cluster, run_id: str) -> Result:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Cluster, "follow", stopped)
        assert retrain(url, volume) == 130


def test_a_run_that_the_server_no_longer_has(server, volume, capsys, monkeypatch):
    url, state = server
    begins_and_is_left(url, state, volume, monkeypatch)
    [gone] = state.runs
    state.runs = {"another": {}}
    ends_with(state, Result("r", "pushed", version=1))
    # The next round records the lost one, and trains anew.
    assert retrain(url, volume) == 0
    lost, trained_anew = lines(volume, "outcome")
    assert (lost["run_id"], lost["outcome"]) == (gone, "failed")
    assert lost["reasons"] == [f"The server no longer has run {gone}."]
    assert (trained_anew["outcome"], trained_anew["run_id"]) == ("pushed", "run-2")


def test_a_server_that_refuses_otherwise_is_asked_again(server, volume):
    url, state = server
    cluster = Cluster(config.load(overrides=settings(url, volume)).config, _work(volume))
    assert cluster.ended("run-1") == Result(
        "run-1", "failed", ["The server no longer has run run-1."]
    )
    state.token = "secret"
    with pytest.raises(ServerError, match="HTTP 401") as refused:
        cluster.ended("run-1")
    assert refused.value.status == 401


def test_who_stops_waiting_finds_the_run_again(server, volume, capsys, monkeypatch):
    url, state = server
    begins_and_is_left(url, state, volume, monkeypatch)
    # The workdir is free meanwhile, for the steps hold it; no second run is started.
    with open_workdir(volume / "work").lock():
        pass
    assert retrain(url, volume) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "goes on, on the cluster" in printed["held"] and len(state.runs) == 1
    assert lines(volume, "outcome") == []
    ends_with(state, Result("r", "pushed", version=1))
    rounds = Rounds(
        open_workdir(volume / "work"),
        volume / "spans",
        config.load(overrides=settings(url, volume)),
        lambda event: None,
        cluster=Cluster(config.load(overrides=settings(url, volume)).config, _work(volume)),
    )
    with rounds.workdir.lock():
        assert rounds._close_attempts(Book(rounds.folder)) == ""
    assert [one["outcome"] for one in lines(volume, "outcome")] == ["pushed"]
    assert trained(volume) == [True, True]


def test_what_is_refused_before_anything_is_sent(server, volume, tmp_path):
    url, state = server
    with pytest.raises(ConfigError, match="Mount the volume here at the same path"):
        command.command(
            tmp_path / "other", volume / "spans", overrides=settings(url, volume),
            once=True, runner="kubeflow",
        )  # fmt: skip
    span(tmp_path / "elsewhere", 1)
    with pytest.raises(ConfigError, match="can't be reached on the cluster"):
        command.command(
            volume / "work", tmp_path / "elsewhere", overrides=settings(url, volume),
            once=True, runner="kubeflow", package=PACKAGE,
        )  # fmt: skip
    assert not state.runs and lines(volume, "attempt") == []


def test_a_dry_run_asks_and_starts_nothing(server, volume, capsys):
    url, state = server
    command.command(
        volume / "work", volume / "spans", overrides=settings(url, volume),
        dry_run=True, runner="kubeflow", as_json=True,
    )  # fmt: skip
    assert json.loads(capsys.readouterr().out)["due"] is True
    assert not state.runs and not state.packages and not (volume / "work").exists()


def _work(volume: Path) -> Workdir:
    return open_workdir(volume / "work")
