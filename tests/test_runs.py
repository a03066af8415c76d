"""Run records: written whole, read back, in order."""

import json

from pipeline import runs
from pipeline.runs import Request, Result, RunDir, Stage


def request(run_id: str) -> Request:
    return Request(
        run_id=run_id,
        created="2026-01-02T03:04:05Z",
        data="/data",
        config={"train": {"epochs": 3}},
        origins={},
        chosen=["train.epochs = 3"],
        scan={},
        lineage={"data": "d", "config": "c", "code": "k"},
        inputs={"known_classes": [], "champion": None, "champion_uri": ""},
        versions={},
    )


def test_a_request_comes_back_as_it_was(tmp_path):
    run = RunDir(tmp_path / "runs" / "one")
    run.write_request(request("one"))
    assert run.read_request() == request("one")


def test_a_result_comes_back_as_it_was_and_is_one_line_of_json(tmp_path):
    run = RunDir(tmp_path)
    result = Result(
        "one", "pushed", metrics={"accuracy": 0.5}, stages=[Stage("Trainer", 1.5, "complete")]
    )
    run.write_result(result)
    assert run.read_result() == result
    line = result.to_json()
    assert "\n" not in line
    assert json.loads(line)["stages"] == [{"name": "Trainer", "seconds": 1.5, "state": "complete"}]


def test_a_killed_run_has_no_result(tmp_path):
    assert RunDir(tmp_path).read_result() is None


def test_exit_codes_are_the_outcomes():
    codes = {outcome: Result("", outcome).exit_code for outcome in runs.EXIT_CODES}
    assert codes == {"pushed": 0, "unchanged": 0, "not_blessed": 3, "invalid_data": 4, "failed": 1}


def test_runs_are_listed_oldest_first(tmp_path):
    for run_id in ("20260102T000000-bbbb", "20260101T000000-aaaa"):
        RunDir(tmp_path / run_id).write_request(request(run_id))
    (tmp_path / "not-a-run").mkdir()
    assert [run.root.name for run in runs.all_runs(tmp_path)] == [
        "20260101T000000-aaaa",
        "20260102T000000-bbbb",
    ]


def test_run_ids_differ():
    assert len({runs.new_run_id() for _ in range(50)}) > 40
