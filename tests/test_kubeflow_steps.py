"""A step's two ends, and what a run's record comes to: without a server, without a container."""

import json
from pathlib import Path

import pytest
from tfx.types import standard_artifacts

from pipeline import config as configuration
from pipeline import events, refused
from pipeline.config import Config
from pipeline.errors import ConfigError, SafelightError, UsageError
from pipeline.kubeflow import artifacts, entrypoint, final, names, prepare, record
from pipeline.kubeflow.artifacts import ExecutorInput
from pipeline.kubeflow.record import Record, StepRecord
from pipeline.runs import RunDir
from pipeline.workdir import open_workdir

EXAMPLES = "tfx.types.standard_artifacts.Examples"
NODES = ("ImageExampleGen", "Trainer", "BlessingGate", "Pusher")


def slot(uri, **more):
    return {"artifacts": [{"name": "7", "uri": uri, **more}]}


def executor_input(inputs=None, outputs=None, folder=Path("/tmp"), parameters=None):
    return json.dumps(
        {
            "inputs": {"parameterValues": parameters or {}, "artifacts": inputs or {}},
            "outputs": {"artifacts": outputs or {}, "outputFile": str(folder / "out.json")},
        }
    )


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("gs://bucket/a/b", "/gcs/bucket/a/b"),
        ("s3://bucket/a/b", "/s3/bucket/a/b"),
        ("minio://mlpipeline/v2/x", "/minio/mlpipeline/v2/x"),
        ("/safelight/data", "/safelight/data"),
    ],
)
def test_local_paths(uri, path):
    assert artifacts.local_path(uri) == Path(path)


def test_a_uri_without_a_local_path():
    with pytest.raises(SafelightError, match=r"hdfs://x.*kubeflow\.pipeline_root"):
        artifacts.local_path("hdfs://x/y")


def test_properties_survive_the_way(tmp_path):
    made = standard_artifacts.Examples()
    made.uri = str(tmp_path)
    (tmp_path / "file").touch()
    made.split_names = '["train", "eval"]'
    made.span = 4
    made.set_string_custom_property("payload_format", "FORMAT_TF_EXAMPLE")
    made.set_int_custom_property("count", 3)
    metadata = json.loads(json.dumps(artifacts.to_metadata(made)))
    assert (metadata["span"], metadata["payload_format"]) == (4, "FORMAT_TF_EXAMPLE")
    # The server's own additions do not disturb.
    metadata |= {"display_name": "examples", "store_session_info": "{}"}
    text = executor_input(
        {"examples": slot("gs://b/e", metadata=metadata, customPath=str(tmp_path))}
    )
    given = ExecutorInput.parse(text)
    arrived = artifacts.to_tfx(given.inputs["examples"], EXAMPLES, arrived=True)
    assert arrived.uri == str(tmp_path)
    assert (arrived.split_names, arrived.span) == ('["train", "eval"]', 4)
    assert arrived.get_int_custom_property("count") == 3


def test_an_empty_folder_arrives(tmp_path):
    made = standard_artifacts.Examples()
    made.uri = str(tmp_path / "made")
    Path(made.uri).mkdir()
    metadata = artifacts.to_metadata(made)
    place = tmp_path / "arrived"
    text = executor_input({"a": slot("gs://b/e", metadata=metadata, customPath=str(place))})
    artifacts.to_tfx(ExecutorInput.parse(text).inputs["a"], EXAMPLES, arrived=True)
    assert place.is_dir()


def test_a_missing_input(tmp_path):
    text = executor_input({"examples": slot("s3://b/e", customPath=str(tmp_path / "none"))})
    with pytest.raises(SafelightError, match=r"The input 'examples' is missing.*s3://b/e"):
        artifacts.to_tfx(ExecutorInput.parse(text).inputs["examples"], EXAMPLES, arrived=True)


@pytest.mark.parametrize("text", ["{{$}}", "[]", "{}", '{"inputs": {}}'])
def test_what_is_no_executor_input(text):
    with pytest.raises(SafelightError, match="no executor input"):
        ExecutorInput.parse(text)


def test_the_output_file(tmp_path):
    text = executor_input(outputs={"m": slot("gs://b/m")}, folder=tmp_path / "deep")
    given = ExecutorInput.parse(text)
    artifacts.write_output(given, {"m": {"accuracy": 0.5}, "unknown": {"x": 1}})
    assert json.loads(given.output_file.read_text()) == {
        "artifacts": {
            "m": {"artifacts": [{"name": "7", "uri": "gs://b/m", "metadata": {"accuracy": 0.5}}]}
        }
    }


@pytest.mark.parametrize(
    "text",
    ["train.epochs=3", "# so\n train.epochs = 3 \n\n", "[train]\nepochs = 3"],
)
def test_overrides(text):
    base = configuration.load(None, ["train.batch_size=7", "train.epochs=9"]).config
    merged = prepare.merge(base, text)
    assert (merged.train.epochs, merged.train.batch_size) == (3, 7)
    assert prepare.merge(base, "") == base


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.epoch=3", "overrides: train.epoch: unknown key train.epoch. Did you mean 'epochs'"),
        ("[train]\nepoch = 3", "overrides: unknown key train.epoch"),
        ("[train\nepochs = 3", "overrides is not valid TOML"),
        ("train.epochs=0", "overrides: train.epochs"),
        ("epochs 3", "section.key=value"),
        ("kubeflow.image=x:1", "fixed when the pipeline is compiled"),
        ("robustness.images=100", "whether there is a step Robustness is fixed"),
        ("explain.images=3", "whether there is a step Explainer is fixed"),
        ("variants.names=['pruned']", "whether there is a step VariantMaker is fixed"),
    ],
)
def test_overrides_that_are_refused(text, said):
    with pytest.raises(ConfigError) as refused:
        prepare.merge(Config(), text)
    assert said in str(refused.value)
    assert ".toml" not in str(refused.value)


def test_a_champion_that_is_none(tmp_path):
    from pipeline import registry

    with pytest.raises(UsageError, match=r"is no version of a model.*model\.json"):
        prepare._named_champion(str(tmp_path), registry.open(tmp_path))
    assert prepare._named_champion(names.NO_CHAMPION, registry.open(tmp_path)).champion_uri == ""


def test_downloaded_files_get_one_time(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"x")
    prepare.settle(tmp_path)
    assert (tmp_path / "cat" / "1.png").stat().st_mtime_ns == 0


@pytest.fixture()
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv(names.RUN_ID, "4f63a636-9a6a-46cd")
    workdir = open_workdir(tmp_path / "work")
    opened = record.open_record(workdir, 1, create=True)
    opened.run.root.mkdir(parents=True)
    return opened


def test_a_record_is_found_again(kept, tmp_path, monkeypatch):
    workdir = open_workdir(tmp_path / "work")
    assert kept.run.root.name.endswith("-4f63a636")
    assert record.open_record(workdir, 1) == kept
    monkeypatch.setenv(names.RUN_ID, "another-run")
    with pytest.raises(SafelightError, match="first step, prepare"):
        record.open_record(workdir, 1)
    monkeypatch.delenv(names.RUN_ID)
    with pytest.raises(SafelightError, match="platform document"):
        record.open_record(workdir, 1)


def test_large_artifacts_are_not_kept(kept, tmp_path):
    for name, size in (("small", 10), ("large", 2_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * size)
        kept.keep("Node", name, tmp_path / name)
        kept.keep("Node", name, tmp_path / name)
    assert kept.kept() == {"Node": {"small": str(kept.copies / "Node" / "small")}}


def write_verdict(kept, blessed, reasons=()):
    folder = kept.copies / "BlessingGate" / "blessing"
    folder.mkdir(parents=True)
    verdict = {"blessed": blessed, "reasons": list(reasons), "metrics": {"accuracy": 0.5}}
    (folder / "verdict.json").write_text(json.dumps(verdict))


def step(name, **more):
    return StepRecord(name, more.pop("state", "complete"), 1.0, **more)


def test_a_pushed_run(kept: Record):
    write_verdict(kept, True)
    pushed = {
        "pushed_version": "3",
        "pushed_destination": "/s/3",
        "published_by": kept.run.root.name,
    }
    for one in (step("prepare"), step("BlessingGate"), step("Pusher", properties=pushed)):
        kept.write(one)
    result = final.conclude(kept, NODES, "COMPLETE")
    assert (result.outcome, result.version, result.pushed_to) == ("pushed", 3, "/s/3")
    assert [one.state for one in result.stages] == ["cached", "cached", "complete", "complete"]
    kept.write(step("Pusher", properties={**pushed, "published_by": "an earlier run"}))
    assert final.conclude(kept, NODES, "COMPLETE").outcome == "unchanged"


def test_a_blocked_run(kept):
    write_verdict(kept, False, ["too many mistakes"])
    kept.write(step("BlessingGate"))
    result = final.conclude(kept, NODES, "COMPLETE")
    assert (result.outcome, result.reasons, result.exit_code) == (
        "not_blessed",
        ["too many mistakes"],
        3,
    )


@pytest.mark.parametrize(("code", "outcome"), [(4, "invalid_data"), (1, "failed")])
def test_a_failed_step(kept, code, outcome):
    bad = step("Trainer", state="failed", exit_code=code, message="broken", reasons=["why"])
    kept.write(step("ImageExampleGen"))
    kept.write(bad)
    result = final.conclude(kept, NODES, "FAILED")
    assert (result.outcome, result.reasons) == (outcome, ["why"])
    assert [one.state for one in result.stages] == ["complete", "failed"]


def test_a_step_that_was_killed(kept):
    kept.write(step("prepare"))
    result = final.conclude(kept, NODES, "FAILED")
    assert result.outcome == "failed"
    assert "out of memory" in result.reasons[0]


def test_what_a_step_refused_is_where_the_report_looks(kept, tmp_path):
    """A step's events lie in a folder of their own, and beside them what it kept."""
    events.configure(kept.events("ValidationGate"))
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "validation.json").write_text("{}")
    refused.keep("ValidationGate", "validation_report", tmp_path / "report")
    final._find_refused(kept)
    found = kept.run.refused("ValidationGate", "validation_report")
    assert (found / "validation.json").is_file()
    final._find_refused(kept)


def test_refused_data_is_not_looked_at_again(kept, tmp_path, capsys):
    kept.write(step("ImageExampleGen", state="failed", exit_code=4, message="too much is bad"))
    line = ["node", "--node", "ImageExampleGen", "--executor", "no.such.Class"]
    line += ["--inputs", "{}", "--outputs", "{}", "--sources", "{}"]
    line += ["--workdir", str(tmp_path / "work"), "--record-megabytes", "1"]
    assert entrypoint.main([*line, "--executor-input", "{}"]) == 4
    assert "too much is bad" in capsys.readouterr().err


def test_a_step_without_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(names.RUN_ID, raising=False)
    line = ["report", "--nodes", "[]", "--workdir", str(tmp_path / "work")]
    assert entrypoint.main([*line, "--record-megabytes", "1", "--executor-input", "{}"]) == 1
    assert names.RUN_ID in capsys.readouterr().err


def test_the_run_dir_is_one_that_history_lists(kept):
    assert isinstance(kept.run, RunDir)
    assert kept.run.root.parent.name == "runs"
