"""A window of spans on Kubeflow: the parameter, and what stands behind the joined steps."""

import json
from functools import partial
from pathlib import Path

import pytest
from tfx.types import standard_artifacts
from tfx.utils import name_utils

from pipeline import config as configuration
from pipeline.config import Ingest
from pipeline.errors import ConfigError, DataRefused, SafelightError, UsageError
from pipeline.ingest.scan import scan
from pipeline.kubeflow import graph, names, node, prepare, record, spans, spec, submit, window
from pipeline.kubeflow.artifacts import ExecutorInput
from pipeline.kubeflow.node import Node
from pipeline.retrain.windows import Member
from pipeline.workdir import open_workdir
from tests import made
from tests.test_retrain_graph import WINDOW, built, span

COUNTS = {"blue": 8, "green": 8, "red": 8}
IMAGE = "kubeflow.image=registry.example.com/safelight:0.1.0"


def member(path: Path, **role: bool) -> dict:
    return Member(path.name, str(path), scan(str(path), Ingest()).fingerprint, **role).to_dict()


@pytest.fixture()
def listed(tmp_path):
    """Two spans and a golden set, on the disk."""
    for number, name in enumerate(("span-1", "span-2", "golden")):
        for label, count in COUNTS.items():
            folder = tmp_path / "data" / name / label
            folder.mkdir(parents=True)
            for index in range(count):
                made.picture(label, 100 * number + index).save(folder / f"{index}.png")
    return [
        member(tmp_path / "data/span-1", judged=False),
        member(tmp_path / "data/span-2"),
        member(tmp_path / "data/golden", golden=True),
    ]


def test_the_parameter_goes_there_and_back(listed):
    assert window.parse(window.to_parameter(listed)) == listed
    short = [{"name": "a", "path": "/a", "fingerprint": "f"}]
    assert window.parse(window.to_parameter(short)) == [
        {**short[0], "golden": False, "judged": True}
    ]
    assert window.to_parameter(None) == window.to_parameter([]) == ""
    assert window.parse(" ") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("photos", "expected a JSON list"),
        ('{"name": "a"}', "expected a JSON list"),
        ('[{"name": "a", "path": "/a"}]', "fingerprint"),
        ('[{"name": "a", "path": "/a", "fingerprint": "f", "weight": 2}]', "weight"),
        ('[{"name": "a/b", "path": "/a", "fingerprint": "f"}]', "without a slash"),
        ('[{"name": "a", "path": "/a", "fingerprint": "f", "golden": "no"}]', "true or false"),
        (
            '[{"name": "a", "path": "/a", "fingerprint": "f", "golden": true}]',
            "no span that trains",
        ),
    ],
)
def test_a_parameter_that_is_not_understood(text, said):
    with pytest.raises(UsageError, match=said):
        window.parse(text)


def test_a_span_twice():
    one = {"name": "a", "path": "/a", "fingerprint": "f"}
    with pytest.raises(UsageError, match="twice"):
        window.parse(json.dumps([one, one]))


def test_the_window_is_looked_at_as_one(listed, tmp_path):
    found = window.look_at(str(tmp_path / "data"), listed, Ingest())
    assert (found.data, found.files) == (str(tmp_path / "data"), 3 * 24)
    # The golden set only judges: what there is to train on is counted without it.
    assert found.per_class == {label: 2 * count for label, count in COUNTS.items()}
    again = window.look_at(str(tmp_path / "data"), listed, Ingest())
    assert again.fingerprint == found.fingerprint
    fewer = window.look_at(str(tmp_path / "data"), listed[1:], Ingest())
    assert fewer.fingerprint != found.fingerprint


def test_a_span_that_changed_is_refused(listed, tmp_path):
    (tmp_path / "data/span-1/blue/0.png").unlink()
    with pytest.raises(SafelightError, match=r"span-1.*has changed since the window") as raised:
        window.look_at(str(tmp_path / "data"), listed, Ingest())
    # Refused data would put every new span of the window into quarantine.
    assert not isinstance(raised.value, DataRefused)


def test_only_the_joining_steps_have_something_behind_them():
    nodes = list(built(WINDOW).components)
    told = {one.id: spans.behind(one, nodes) for one in nodes if "." not in one.id}
    assert {name for name, value in told.items() if value} == {"ImageExampleGen", "StatisticsGen"}
    read = [f"ImageExampleGen.{one['name']}" for one in WINDOW]
    assert [one["id"] for one in told["ImageExampleGen"]["behind"]] == read
    # The golden set is not counted: nothing of it stands behind the statistics.
    counted = [one["id"] for one in told["StatisticsGen"]["behind"]]
    assert set(counted) == {
        f"{kind}.{one['name']}"
        for kind in ("ImageExampleGen", "StatisticsGen")
        for one in WINDOW[:2]
    }
    assert counted.index(read[0]) < counted.index("StatisticsGen.span-1-r1")
    assert all(not spans.behind(one, list(built().components)) for one in built().components)


def test_a_large_window_fits_into_an_argument():
    listed = [span(f"span-{number}-r1", judged=number == window.MOST) for number in
              range(1, window.MOST + 1)]  # fmt: skip
    for one in listed:
        one.update(path=f"/safelight/spans/{one['name']:0>50}", fingerprint="f" * 64)
    text = window.to_parameter(listed)
    nodes = list(built(tuple(window.parse(text))).components)
    config = configuration.load().config
    told = [graph.properties(one, config, nodes) for one in nodes if "." not in one.id]
    # The rest of the executor input, and quotes that are escaped once more.
    assert max(len(json.dumps(one)) for one in [text, *told]) < 115_000
    with pytest.raises(UsageError, match="200 at most"):
        window.parse(json.dumps([*listed, span("one-more")]))


def test_what_is_made_once_is_found_again(tmp_path):
    ran = []

    def execute(name, executor, inputs, outputs, properties):
        ran.append(name)
        [artifact] = outputs["examples"]
        (Path(artifact.uri) / "data").write_text(properties["data"])
        artifact.split_names = '["train"]'

    def told(data):
        path = "tfx.types.standard_artifacts.Examples"
        return [
            {"id": "ImageExampleGen.a", "executor": "x", "properties": {"data": data},
             "inputs": {}, "outputs": {"examples": path}},
            {"id": "Copy.a", "executor": "y", "properties": {"data": "same"},
             "inputs": {"examples": [["ImageExampleGen.a", "examples"]]},
             "outputs": {"examples": path}},
        ]  # fmt: skip

    first = spans.make(told("1"), tmp_path, execute)
    again = spans.make(told("1"), tmp_path, execute)
    assert ran == ["ImageExampleGen.a", "Copy.a"]
    artifact = again["ImageExampleGen.a", "examples"]
    assert isinstance(artifact, standard_artifacts.Examples)
    assert (artifact.uri, artifact.split_names) == (
        first["ImageExampleGen.a", "examples"].uri,
        '["train"]',
    )
    assert (Path(artifact.uri) / "data").read_text() == "1"
    # What reads it is made anew with it.
    spans.make(told("2"), tmp_path, execute)
    assert ran == ["ImageExampleGen.a", "Copy.a"] * 2


def test_a_failure_leaves_nothing(tmp_path):
    def execute(name, executor, inputs, outputs, properties):
        (Path(outputs["examples"][0].uri) / "half").touch()
        raise DataRefused("too much is bad")

    told = [{"id": "ImageExampleGen.a", "executor": "x", "inputs": {}, "properties": {},
             "outputs": {"examples": "tfx.types.standard_artifacts.Examples"}}]  # fmt: skip
    with pytest.raises(DataRefused, match="too much"):
        spans.make(told, tmp_path / "spans", execute)
    assert not list((tmp_path / "spans").iterdir())


def prepared(listed, workdir, kept, folder):
    """Runs the first step as its container would; returns the window's nodes, told to each step."""
    config = configuration.load(overrides=["ingest.workers=1"]).config
    tasks = graph.nodes(config)
    keys = [spec.properties_key(one.id) for one in tasks]
    text = {
        "inputs": {
            "parameterValues": {
                names.DATA: str(Path(listed[0]["path"]).parent),
                names.FINGERPRINT: "",
                names.SPANS: window.to_parameter(listed),
                names.CHAMPION: "",
                names.OVERRIDES: "train.seed=3",
                names.CONFIG: config.model_dump_json(),
            },
        },
        "outputs": {
            "parameters": {key: {"outputFile": str(folder / key)} for key in keys},
            "outputFile": str(folder / "out.json"),
        },
    }
    prepare.run(ExecutorInput.parse(json.dumps(text)), workdir, kept)
    told = {one.id: (folder / spec.properties_key(one.id)).read_text() for one in tasks}
    return {one.id: one for one in tasks}, told


def run_step(one, told, folder, workdir, kept):
    """Runs one of the joining steps as its container would; returns its outputs' folders."""
    outputs = {key: folder / key for key in one.outputs}
    text = {
        "inputs": {"parameterValues": {names.PROPERTIES: told}},
        "outputs": {
            "artifacts": {
                key: {"artifacts": [{"name": key, "uri": f"s3://b/{key}", "customPath": str(path)}]}
                for key, path in outputs.items()
            },
            "outputFile": str(folder / "out.json"),
        },
    }
    types = {key: name_utils.get_full_name(one.type) for key, one in one.outputs.items()}
    # What a compiled step says is of a graph without a window: another executor, other inputs.
    what = Node(one.id, "no.such.Executor", {"examples": "no.such.Type"}, types, {})
    node.run(what, ExecutorInput.parse(json.dumps(text)), workdir, kept)
    return outputs


def test_the_steps_join_what_stands_behind_them(listed, tmp_path, monkeypatch):
    """TFX's own executors, on real images: each span is read once, also by the second step."""
    monkeypatch.setenv(names.RUN_ID, "4f63a636-9a6a-46cd")
    workdir = open_workdir(tmp_path / "work")
    kept = record.open_record(workdir, 10, create=True)
    tasks, told = prepared(listed, workdir, kept, tmp_path / "prepared")
    request = kept.run.read_request()
    assert request.spans == listed
    assert request.origins == {
        "ingest.workers": "the compiled package", "train.seed": "overrides"
    }  # fmt: skip
    assert request.lineage["data"] == window.look_at("x", listed, Ingest()).fingerprint
    step = partial(run_step, workdir=workdir, kept=kept)

    node_id = "ImageExampleGen"
    joined = step(tasks[node_id], told[node_id], tmp_path / "first")
    summary = json.loads((joined["ingest_report"] / "summary.json").read_text())
    assert summary["classes"] == sorted(COUNTS)
    assert [one["name"] for one in summary["spans"]] == ["span-1", "span-2", "golden"]
    assert summary["fingerprint"] == request.lineage["data"]
    places = {path: path.stat().st_ctime_ns for path in (workdir.cache / "spans").iterdir()}
    assert len(places) == 3
    assert not any(path.name.startswith(".") for path in places)

    counted = step(tasks["StatisticsGen"], told["StatisticsGen"], tmp_path / "second")
    assert (counted["statistics"] / "Split-train").is_dir()
    after = {path: path.stat().st_ctime_ns for path in (workdir.cache / "spans").iterdir()}
    assert after.items() >= places.items()
    assert len(after) == 5
    # A volume that was swept only costs time.
    for path in after:
        path.rename(tmp_path / path.name)
    again = step(tasks[node_id], told[node_id], tmp_path / "third")
    assert json.loads((again["ingest_report"] / "summary.json").read_text()) == summary


def test_what_is_refused_before_anything_is_sent():
    config = configuration.load(None, [IMAGE]).config
    away = [{"name": "a", "path": "/home/a", "fingerprint": "f"}]
    with pytest.raises(ConfigError) as refused:
        submit.check_run(config, "/safelight/spans", "", away)
    assert any("/home/a" in reason for reason in refused.value.reasons)
    bucket = configuration.load(None, [IMAGE, "kubeflow.data=bucket"]).config
    with pytest.raises(ConfigError) as refused:
        submit.check_run(bucket, "s3://bucket/spans", "", away)
    assert any("kubeflow.data=volume" in reason for reason in refused.value.reasons)
    submit.check_run(config, "/safelight/spans", "", [{**away[0], "path": "/safelight/spans/a"}])
