"""A step's two ends, and what a run's record comes to: without a server, without a container."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from tfx.types import standard_artifacts
from tfx.utils import json_utils

from pipeline import config as configuration
from pipeline import events, refused, registry
from pipeline.config import Config
from pipeline.errors import ConfigError, NotBlessed, SafelightError, UsageError
from pipeline.ingest.scan import scan
from pipeline.kubeflow import artifacts, entrypoint, final, graph, names, prepare, record, spec
from pipeline.kubeflow.artifacts import ExecutorInput
from pipeline.kubeflow.record import Record, StepRecord
from pipeline.runs import RunDir, write_json
from pipeline.workdir import open_workdir
from tests import exports, made
from tests.test_pusher import push
from tests.test_registry import FIRST, export

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


@pytest.mark.parametrize(
    ("compiled", "override"),
    [
        ("train.class_weights={dog=3.0}", "train.class_weights.cat=2"),
        ("train.backbone=ResNet50", "train.weights=imagenet"),
        (
            'train.heads=[{name="severity", kind="regression"}]',
            "evaluate.heads.severity.max_mae=0.1",
        ),
    ],
)
def test_overrides_are_read_over_what_was_compiled(compiled, override):
    base = configuration.load(None, [compiled]).config
    local = configuration.load(None, [compiled, override]).config
    before = base.model_dump()
    assert prepare.merge(base, override) == local
    assert base.model_dump() == before
    with pytest.raises(ConfigError, match=r"kubeflow\.image is fixed"):
        prepare.merge(base, f"{override}\nkubeflow.image=x:1")


def test_a_toml_section_is_read_over_what_was_compiled():
    base = configuration.load(None, ["train.backbone=ResNet50", "train.epochs=7"]).config
    merged = prepare.merge(base, '[train]\nweights = "imagenet"')
    assert (merged.train.backbone, merged.train.weights) == ("ResNet50", "imagenet")
    assert (merged.train.epochs, "loss" in merged.train.model_fields_set) == (7, False)
    # What is wrong together is told of the parameter, and without the temporary file.
    with pytest.raises(ConfigError, match="belongs to train.backbone"):
        prepare.merge(Config(), '[train]\nweights = "imagenet"')


def test_a_champion_that_is_none(tmp_path):
    with pytest.raises(UsageError, match=r"is no version of a model.*model\.json"):
        prepare._named_champion(str(tmp_path), registry.open(tmp_path))
    assert prepare._named_champion(names.NO_CHAMPION, registry.open(tmp_path)).champion_uri == ""


def told_to_the_steps(folder, workdir, champion=""):
    """Resolves a run of the images in `folder`; returns what each node's step is told."""
    config = Config()
    request = prepare.resolve(config, scan(str(folder), config.ingest), workdir, champion, "run")
    there = folder.with_name(f"{folder.name}-{champion}-told")
    keys = {one.id: spec.properties_key(one.id) for one in graph.nodes(config)}
    outputs = {key: {"outputFile": str(there / key)} for key in keys.values()}
    text = {"inputs": {}, "outputs": {"parameters": outputs, "outputFile": str(there / "out")}}
    prepare._give_properties(ExecutorInput.parse(json.dumps(text)), workdir, request)
    return {node: json.loads((there / key).read_text()) for node, key in keys.items()}


def lineage_in(told):
    return json_utils.loads(told["Pusher"]["properties"]["custom_config"])["lineage"]


def test_a_run_that_another_overtook_pushes_nothing(tmp_path):
    """Both were judged by version 1; the second was never compared with the first one's model."""
    workdir = open_workdir(tmp_path / "work")
    folders = [
        made.class_folders(tmp_path / f"data-{count}", {"red": count, "blue": 4})
        for count in (4, 5)
    ]
    model = exports.artifact(standard_artifacts.Model, tmp_path / "artifact")
    source = export(tmp_path / "artifact" / "Format-Serving")
    assert lineage_in(told_to_the_steps(folders[0], workdir))["served"] == 0
    assert lineage_in(told_to_the_steps(folders[0], workdir))["by"] == "a run on Kubeflow"
    serving = workdir.serving("model")
    registry.open(serving).publish(source, FIRST)
    first, second = [told_to_the_steps(folder, workdir) for folder in folders]
    push(model, workdir.root, run_id="A", **lineage_in(first))
    with pytest.raises(NotBlessed, match="not compared with"):
        push(model, workdir.root, run_id="B", **lineage_in(second))
    assert registry.read(serving).current == 2
    # Judged by none, as asked: what it may replace is what is served, all the same.
    named = told_to_the_steps(folders[1], workdir, names.NO_CHAMPION)
    assert (lineage_in(named)["champion"], lineage_in(named)["served"]) == (None, 2)
    push(model, workdir.root, run_id="C", **lineage_in(named))
    assert registry.read(serving).current == 3


def test_only_the_pusher_is_told_what_is_served(tmp_path):
    """It is never answered by the cache; another step would be made anew by each push."""
    workdir = open_workdir(tmp_path / "work")
    folder = made.class_folders(tmp_path / "data", {"red": 4, "blue": 4})
    before = told_to_the_steps(folder, workdir, names.NO_CHAMPION)
    registry.open(workdir.serving("model")).publish(export(tmp_path / "export"), FIRST)
    after = told_to_the_steps(folder, workdir, names.NO_CHAMPION)
    assert [node for node in before if before[node] != after[node]] == ["Pusher"]


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


def test_of_large_examples_the_training_images_are_not_kept(kept, tmp_path):
    for split, size in (("train", 2_000_000), ("eval", 10), ("test", 10)):
        (tmp_path / "examples" / f"Split-{split}").mkdir(parents=True)
        (tmp_path / "examples" / f"Split-{split}" / "data_tfrecord-0").write_bytes(b"x" * size)
    kept.keep("ImageExampleGen", "examples", tmp_path / "examples")
    copied = Path(kept.kept()["ImageExampleGen"]["examples"])
    assert {path.name for path in copied.iterdir()} == {"Split-eval", "Split-test"}


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


@pytest.mark.parametrize("broken", ["pipeline.report.page.write", "shutil.copyfile"])
def test_a_run_without_a_report_is_worth_no_less(kept, tmp_path, monkeypatch, capsys, broken):
    pushed = {"pushed_version": "3", "pushed_destination": "/s/3"}
    pushed["published_by"] = kept.run.root.name
    for one in (step("prepare"), step("Pusher", properties=pushed)):
        kept.write(one)
    asked = prepare._asked(Config(), "/d", kept.run.root.name)
    write_json(kept.run.request, asdict(asked))

    def full(*_):
        raise OSError(28, "No space left on <volume>")

    monkeypatch.setattr(broken, full)
    given = executor_input(
        outputs={names.HTML: slot(str(tmp_path / "pod" / "report"))},
        folder=tmp_path,
        parameters={names.STATUS: {"state": "SUCCEEDED"}},
    )
    line = ["report", "--nodes", '["Pusher"]', "--workdir", str(tmp_path / "work")]
    assert entrypoint.main([*line, "--record-megabytes", "1", "--executor-input", given]) == 0
    _, _, printed = capsys.readouterr().out.partition(names.RESULT_LINE)
    assert (json.loads(printed)["outcome"], json.loads(printed)["version"]) == ("pushed", 3)
    result = kept.run.read_result()
    assert result is not None and (result.outcome, result.version) == ("pushed", 3)
    assert kept.run.report.is_file() == (result.report is not None) == (broken == "shutil.copyfile")
    assert "No space left on &lt;volume&gt;" in (tmp_path / "pod" / "report").read_text()


@pytest.mark.parametrize(("code", "outcome"), [(4, "invalid_data"), (1, "failed")])
def test_a_failed_step(kept, code, outcome):
    bad = step("Trainer", state="failed", exit_code=code, message="broken", reasons=["why"])
    kept.write(step("ImageExampleGen"))
    kept.write(bad)
    result = final.conclude(kept, NODES, "FAILED")
    assert (result.outcome, result.reasons) == (outcome, ["why"])
    assert [one.state for one in result.stages] == ["complete", "failed"]


def test_a_step_behind_the_push_failed(kept):
    """The run failed, and its model is served all the same."""
    write_verdict(kept, True)
    pushed = {
        "pushed_version": "3",
        "pushed_destination": "/s/3",
        "published_by": kept.run.root.name,
    }
    kept.write(step("Pusher", properties=pushed))
    kept.write(step("VariantPusher", state="failed", exit_code=1, message="no disk"))
    nodes = (*NODES, "VariantPusher")
    result = final.conclude(kept, nodes, "FAILED")
    assert (result.outcome, result.reasons) == ("failed", ["no disk"])
    assert (result.version, result.pushed_to) == (3, "/s/3")
    # An earlier run's version is nothing that this one did.
    kept.write(step("Pusher", properties={**pushed, "published_by": "an earlier run"}))
    result = final.conclude(kept, nodes, "FAILED")
    assert (result.outcome, result.version, result.pushed_to) == ("failed", None, None)


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
