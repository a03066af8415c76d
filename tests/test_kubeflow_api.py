"""Submit and schedule, through kfp's own client, against a server on loopback."""

import json
from dataclasses import asdict

import pytest
import yaml

from pipeline import config as configuration
from pipeline.errors import ConfigError, UsageError
from pipeline.kubeflow import compile, names, schedule, submit
from pipeline.kubeflow.api import Server, ServerError
from pipeline.runs import Result, Stage
from tests import kfp_server

IMAGE = "kubeflow.image=registry.example.com/safelight:0.1.0"
DATA = "/safelight/photos"


@pytest.fixture()
def server():
    with kfp_server.serving() as (url, state):
        yield url, state


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "pipeline.yaml"
    path.write_text(compile.compile_package(configuration.load(None, [IMAGE]).config))
    return path


def task(name, state, task_id="", pod="", children=()):
    return {
        "display_name": name,
        "state": state,
        "task_id": task_id or name,
        "pod_name": pod,
        "child_tasks": [{"pod_name": child} for child in children],
    }


def run_submit(url, package, capsys, *overrides, **more):
    code = submit.command(
        None,
        [IMAGE, f"kubeflow.endpoint={url}", *overrides],
        DATA,
        package=package,
        as_json=True,
        **more,
    )
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    follow = submit.follow
    monkeypatch.setattr(submit, "follow", lambda server, run: follow(server, run, 0.01))


def test_a_run_is_followed_to_its_outcome(server, package, capsys):
    url, state = server
    result = Result(
        "r", "not_blessed", ["no"], {"accuracy": 0.5}, [Stage("Trainer", 1.0, "complete")]
    )
    tree = [
        task("report", "SUCCEEDED", children=["n-2"]),
        task("executor", "SUCCEEDED", task_id="n-2", pod="pod-9"),
    ]
    state.script = [
        {"state": "RUNNING", "run_details": {"task_details": [task("trainer", "RUNNING")]}},
        {"state": "SUCCEEDED", "run_details": {"task_details": tree}},
    ]
    state.logs["pod-9"] = f"INFO: x\n{names.RESULT_LINE}{result.to_json()}\n"
    code, printed = run_submit(
        url, package, capsys, champion="none", run_overrides="train.epochs=2"
    )
    assert code == 3
    assert printed == asdict(result)
    [run] = state.runs.values()
    assert run["runtime_config"]["parameters"] == {
        "data": DATA,
        "champion": "none",
        "overrides": "train.epochs=2",
    }
    assert run["pipeline_version_reference"]["pipeline_version_id"] == "version-1"


def test_a_package_is_uploaded_once(server, package, capsys):
    url, state = server
    run_submit(url, package, capsys)
    before = len(state.packages)
    run_submit(url, package, capsys)
    assert len(state.packages) == before
    assert len(list(yaml.safe_load_all(state.packages[-1]))) == 2


@pytest.mark.parametrize(
    ("run", "code", "outcome"),
    [
        ({"state": "FAILED", "error": {"message": "boom"}}, 1, "failed"),
        ({"state": "CANCELED"}, 1, "failed"),
        (
            {"state": "SUCCEEDED", "run_details": {"task_details": [task("pusher", "SKIPPED")]}},
            3,
            "not_blessed",
        ),
        (
            {"state": "SUCCEEDED", "run_details": {"task_details": [task("pusher", "SUCCEEDED")]}},
            0,
            "pushed",
        ),
    ],
)
def test_without_the_log_the_states_tell(server, package, capsys, run, code, outcome):
    url, state = server
    state.script = [run]
    ended, printed = run_submit(url, package, capsys)
    assert (ended, printed["outcome"]) == (code, outcome)


def test_not_waiting(server, package, capsys):
    url, state = server
    code, printed = run_submit(url, package, capsys, wait=False)
    [run_id] = state.runs
    assert (code, printed) == (0, {"run_id": run_id, "page": f"{url}/#/runs/details/{run_id}"})


def test_what_is_refused_before_anything_is_sent(server, package, monkeypatch):
    url, state = server
    overrides = [IMAGE, f"kubeflow.endpoint={url}"]
    with pytest.raises(ConfigError, match="can't be reached"):
        submit.command(None, overrides, "photos", package=package)
    with pytest.raises(ConfigError, match=r"unknown key train\.epoch"):
        submit.command(None, overrides, DATA, package=package, run_overrides="train.epoch=2")
    with pytest.raises(UsageError, match="can't be read"):
        submit.command(None, overrides, DATA, package=package.with_name("none.yaml"))
    with pytest.raises(ConfigError, match=r"kubeflow\.endpoint is not set"):
        submit.command(None, [IMAGE], DATA, package=package)
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_TOKEN, which is not set"):
        submit.command(
            None, [*overrides, "kubeflow.token_env=NO_SUCH_TOKEN"], DATA, package=package
        )
    assert not state.packages


def test_the_token_is_sent(server, package, monkeypatch, capsys):
    url, state = server
    state.token = "secret-token"
    with pytest.raises(ServerError, match=r"HTTP 401.*token_env"):
        run_submit(url, package, capsys)
    monkeypatch.setenv("MY_TOKEN", "secret-token")
    code, _ = run_submit(url, package, capsys, "kubeflow.token_env=MY_TOKEN")
    assert code in (0, 3)


def test_the_token_is_read_anew_for_each_request(server, package, tmp_path, capsys):
    """A node renews a service account's token while a run is followed."""
    url, state = server
    file = tmp_path / "token"
    state.token = "first"
    reach = f"kubeflow.token_file={file}"
    with pytest.raises(ConfigError, match=r"kubeflow\.token_file.*can't be read"):
        run_submit(url, package, capsys, reach)
    file.write_text("first")
    overrides = [IMAGE, f"kubeflow.endpoint={url}", reach]
    there = Server(configuration.load(None, overrides).config.kubeflow)
    assert there.experiment()
    state.token = "second"
    with pytest.raises(ServerError, match="HTTP 401"):
        there.experiment()
    file.write_text("second")
    assert there.experiment()


def test_a_window_is_submitted(server, package, tmp_path, capsys):
    url, state = server
    listed = [{"name": "span-1", "path": "/safelight/photos/1", "fingerprint": "f"}]
    file = tmp_path / "spans.json"
    file.write_text(json.dumps(listed))
    run_submit(url, package, capsys, spans=file)
    [run] = state.runs.values()
    sent = json.loads(run["runtime_config"]["parameters"]["spans"])
    assert sent == [{**listed[0], "golden": False, "judged": True}]
    with pytest.raises(UsageError, match="can't be read"):
        run_submit(url, package, capsys, spans=tmp_path / "none.json")


def test_a_server_that_is_not_there():
    config = configuration.load(None, ["kubeflow.endpoint=http://127.0.0.1:9"]).config
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:9.*kubeflow\.endpoint"):
        Server(config.kubeflow).experiment()


def test_schedules(server, package, capsys):
    url, state = server
    reach = [IMAGE, f"kubeflow.endpoint={url}"]
    schedule.create(None, reach, DATA, name="nightly", cron="0 3 * * *", package=package)
    [made] = state.schedules.values()
    assert made["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"
    assert (made["max_concurrency"], made["no_catchup"]) == (1, True)
    with pytest.raises(UsageError, match="already"):
        schedule.create(None, reach, DATA, name="nightly", every="6h", package=package)
    schedule.create(None, reach, DATA, name="often", every="6h", package=package)
    schedule.pause(None, reach, "nightly")
    schedule.show(None, reach, as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["when"], row["state"]) for row in rows] == [
        ("nightly", "0 0 3 * * *", "disabled"),
        ("often", "every 21600 s", "enabled"),
    ]
    schedule.resume(None, reach, "nightly")
    assert state.schedules["rr-1"]["status"] == "ENABLED"
    schedule.delete(None, reach, "nightly")
    assert list(state.schedules) == ["rr-2"]
    with pytest.raises(UsageError, match=r"no schedule 'oftn'\. Did you mean 'often'"):
        schedule.delete(None, reach, "oftn")


@pytest.mark.parametrize("cron", ["", "* * *", "0 3 * * * * *", "0 3 * * $(x)"])
def test_cron_that_is_not_understood(cron):
    with pytest.raises(UsageError, match="is not understood"):
        schedule.six_fields(cron)


@pytest.mark.parametrize(("every", "seconds"), [("30m", 1800), ("6h", 21600), ("1d", 86400)])
def test_intervals(every, seconds):
    assert schedule.interval(every) == seconds


@pytest.mark.parametrize("every", ["", "6", "30s", "h", "-1h", "1.5h"])
def test_intervals_that_are_not_understood(every):
    with pytest.raises(UsageError, match="is not understood"):
        schedule.interval(every)


def test_neither_or_both_times():
    for times in ({}, {"cron": "0 3 * * *", "every": "6h"}):
        with pytest.raises(UsageError, match="either --cron"):
            schedule.create(None, [], DATA, name="x", **times)
