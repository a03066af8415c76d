"""The compiled package: what kfp and its protobufs accept, and what is refused before."""

import json
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format

from pipeline import config as configuration
from pipeline import presets
from pipeline.config import Config
from pipeline.errors import ConfigError, UsageError
from pipeline.kubeflow import checks, compile, names, node, prepare
from pipeline.kubeflow.artifacts import ExecutorInput
from tests.e2e.command import STAGES

IMAGE = "kubeflow.image=registry.example.com/safelight:0.1.0"
GOLDEN = Path(__file__).parent / "golden" / "kubeflow.yaml"


def load(*overrides, profile="kubeflow"):
    return configuration.load(profile, [IMAGE, *overrides]).config


@pytest.fixture(scope="module")
def package():
    return compile.compile_package(load())


@pytest.fixture(scope="module")
def documents(package):
    return list(yaml.safe_load_all(package))


@pytest.mark.current
def test_kfp_itself_loads_it(package):
    from kfp import components

    loaded = components.load_component_from_text(package)
    assert loaded.pipeline_spec.pipeline_info.name == "safelight"
    assert set(loaded.component_spec.inputs) == {
        names.DATA,
        names.FINGERPRINT,
        names.SPANS,
        names.CHAMPION,
        names.OVERRIDES,
    }


@pytest.mark.current
def test_protobuf_keeps_every_field(documents):
    """What protobuf reads and writes again is what was written: nothing was dropped."""
    from kfp.pipeline_spec import pipeline_spec_pb2

    specification, platforms = documents
    message = json_format.ParseDict(specification, pipeline_spec_pb2.PipelineSpec())
    assert without_nothing(json_format.MessageToDict(message)) == without_nothing(specification)
    deployment = json_format.ParseDict(
        specification["deploymentSpec"], pipeline_spec_pb2.PipelineDeploymentConfig()
    )
    again = json_format.MessageToDict(deployment)
    assert without_nothing(again) == without_nothing(specification["deploymentSpec"])
    json_format.ParseDict(platforms, pipeline_spec_pb2.PlatformSpec())


def without_nothing(value):
    """Drops empty groups and false flags, which protobuf's JSON leaves out."""
    if isinstance(value, dict):
        kept = {key: without_nothing(one) for key, one in value.items()}
        return {key: one for key, one in kept.items() if one not in ({}, [], False, None, "")}
    return [without_nothing(one) for one in value] if isinstance(value, list) else value


def test_no_task_that_the_server_cannot_run(documents):
    specification, _ = documents
    executors = specification["deploymentSpec"]["executors"]
    assert not any("resolver" in executor for executor in executors.values())
    assert not any("importer" in executor for executor in executors.values())
    for executor in executors.values():
        assert executor["container"]["image"] == "registry.example.com/safelight:0.1.0"
        assert executor["container"]["command"][-1] == "pipeline.kubeflow.entrypoint"
        assert "{{$}}" in executor["container"]["args"]


def test_every_node_is_a_step_in_order(documents):
    specification, _ = documents
    tasks = specification["components"]["comp-pipeline"]["dag"]["tasks"]
    assert set(tasks) == {names.PREPARE, *map(names.task, STAGES)}
    assert "validation-gate" in tasks["transform"]["dependentTasks"]
    assert (
        tasks["pusher"]["triggerPolicy"]["condition"]
        == "inputs.parameter_values['blessed'] == 'true'"
    )
    report = specification["root"]["dag"]["tasks"]["report"]
    assert report["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"


def test_the_pages_get_what_they_can_show(documents):
    components = documents[0]["components"]
    gate = components["comp-blessing-gate"]["outputDefinitions"]["artifacts"]
    shown = {key: one["artifactType"]["schemaTitle"] for key, one in gate.items()}
    assert shown["metrics"] == "system.Metrics"
    assert shown["confusion_matrix"] == "system.ClassificationMetrics"
    report = components["comp-report"]["outputDefinitions"]["artifacts"]["report"]
    assert report["artifactType"]["schemaTitle"] == "system.HTML"


@pytest.mark.parametrize(("classes", "matrix"), [(100, True), (101, False)])
def test_a_confusion_matrix_goes_to_the_pages_as_far_as_it_can_be_read(tmp_path, classes, matrix):
    """The server's metadata take messages of 4 MiB: with 1,000 classes the step would fail."""
    told = {
        "blessed": True,
        "per_class": {str(number): {} for number in range(classes)},
        "metrics": {"accuracy": 0.9, "auc": None},
        "test_examples": 7,
        "confusion": [[0] * classes] * classes,
    }
    (tmp_path / "verdict.json").write_text(json.dumps(told))
    said = tmp_path / "blessed"
    given = ExecutorInput({}, {}, {}, {names.BLESSED: said}, tmp_path / "output.json")
    shown = node._verdict(given, tmp_path)
    assert said.read_text() == "true"
    assert shown[names.METRICS] == {"accuracy": 0.9, "test_examples": 7}
    assert (names.CONFUSION in shown) is matrix


def test_caching_and_retries_by_step():
    config = load("kubeflow.retries=3", "kubeflow.steps={Trainer={cache=false, retries=0}}")
    tasks = next(yaml.safe_load_all(compile.compile_package(config)))["components"][
        "comp-pipeline"
    ]["dag"]["tasks"]
    cached = {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")}
    assert cached == set(tasks) - {"prepare", "trainer", "blessing-gate", "pusher"}
    assert tasks["transform"]["retryPolicy"]["maxRetryCount"] == 3
    assert "retryPolicy" not in tasks["trainer"]
    assert "retryPolicy" not in tasks["validation-gate"]


def test_steps_that_are_off_are_not_there():
    optional = {"robustness", "explainer", "variant-maker", "variant-pusher"}
    without = next(yaml.safe_load_all(compile.compile_package(load())))
    assert not optional & set(without["components"]["comp-pipeline"]["dag"]["tasks"])
    config = load("robustness.images=30", "explain.images=2", "variants.names=['tflite-float16']")
    specification = next(yaml.safe_load_all(compile.compile_package(config)))
    tasks = specification["components"]["comp-pipeline"]["dag"]["tasks"]
    assert optional <= set(tasks)
    assert "robustness" in tasks["blessing-gate"]["dependentTasks"]
    # What publishes waits for the gate's word.
    for name in ("pusher", "variant-pusher"):
        assert "blessing-gate" in tasks[name]["dependentTasks"]
        assert "blessed" in tasks[name]["triggerPolicy"]["condition"]
    # Behind the gate nothing comes from the cache: it would be missing from the record.
    for name in ("explainer", "variant-maker"):
        assert not tasks[name]["cachingOptions"]


def test_resources_and_platform():
    config = load(
        'kubeflow.secrets=[{env="TOKEN", secret="registry", key="token"}]',
        'kubeflow.node_selector={pool="cpu"}',
        'kubeflow.steps={Trainer={cpu=4, memory_gb=16, gpus=2, gpu_type="nvidia.com/mig-1g.10gb", '
        'timeout_minutes=600, node_selector={pool="gpu"}, '
        'tolerations=[{key="gpu", operator="Exists"}]}}',
        'kubeflow.image_pull_secrets=["pull"]',
        "kubeflow.image_pull_policy=Always",
    )
    specification, platforms = yaml.safe_load_all(compile.compile_package(config))
    trainer = specification["deploymentSpec"]["executors"]["exec-trainer"]["container"]
    assert trainer["resources"] == {
        "cpuLimit": 4.0,
        "cpuRequest": 4.0,
        "memoryLimit": 16.0,
        "memoryRequest": 16.0,
        "accelerator": {"count": "2", "type": "nvidia.com/mig-1g.10gb"},
    }
    executors = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == set(specification["deploymentSpec"]["executors"])
    labels = executors["exec-trainer"]["podMetadata"]["labels"]
    assert labels["app.kubernetes.io/component"] == "trainer"
    on_gpu, on_cpu = executors["exec-trainer"], executors["exec-transform"]
    assert on_gpu["nodeSelector"] == {"labels": {"pool": "gpu"}}
    assert on_cpu["nodeSelector"] == {"labels": {"pool": "cpu"}}
    assert on_gpu["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert "tolerations" not in on_cpu
    assert (on_gpu["activeDeadlineSeconds"], on_cpu["activeDeadlineSeconds"]) == ("36000", "14400")
    assert on_cpu["pvcMount"] == [{"constant": "safelight", "mountPath": "/safelight"}]
    assert on_cpu["imagePullPolicy"] == "Always"
    assert on_cpu["imagePullSecret"] == [{"secretName": "pull"}]
    assert on_cpu["secretAsEnv"] == [
        {"secretName": "registry", "keyToEnv": [{"secretKey": "token", "envVar": "TOKEN"}]}
    ]


def test_data_in_a_bucket_is_imported_once():
    config = load("kubeflow.data=bucket", "kubeflow.pipeline_root=s3://bucket/runs")
    specification = next(yaml.safe_load_all(compile.compile_package(config, "s3://bucket/photos")))
    assert specification["defaultPipelineRoot"] == "s3://bucket/runs"
    assert specification["root"]["inputDefinitions"]["parameters"]["data"]["defaultValue"]
    tasks = specification["components"]["comp-pipeline"]["dag"]["tasks"]
    reads = {
        name for name, task in tasks.items() if "import-data" in task.get("dependentTasks", [])
    }
    assert reads == {"prepare", "image-example-gen"}
    assert "triggerPolicy" not in tasks["import-data"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["kubeflow.image="], "kubeflow.image is not set"),
        (["kubeflow.image=safelight"], "fixed tag"),
        (["kubeflow.image=safelight:latest"], "fixed tag"),
        (["kubeflow.workdir=/elsewhere"], "lies on no volume"),
        (["kubeflow.workdir=safelight/work"], "lies on no volume"),
        (["kubeflow.workdir=/safelight/../etc"], "lies on no volume"),
        (['kubeflow.volumes=[{claim="a", path="/minio"}]'], "Kubeflow itself uses"),
        (
            ['kubeflow.volumes=[{claim="a", path="/safelight"}, {claim="b", path="/safelight"}]'],
            "two claims at",
        ),
        (["kubeflow.steps={Trainer={gpus=1}}"], "without cpu and memory_gb"),
        (["kubeflow.steps={Evaluator={gpus=1, cpu=1, memory_gb=1}}"], "would not use"),
        (['kubeflow.steps={Trainer={gpu_type="x"}}'], "no gpus"),
        (["kubeflow.steps={Trianer={cpu=1}}"], "Did you mean 'Trainer'"),
        (["metadata.url=mysql://u:p@h/db"], "metadata.url"),
    ],
)
def test_refused_before_anything_is_compiled(overrides, said):
    with pytest.raises(ConfigError) as refused:
        checks.check(load(*overrides), STAGES)
    assert any(said in reason for reason in refused.value.reasons)


@pytest.mark.parametrize(
    ("data", "overrides", "said"),
    [
        ("photos", [], "no step can see"),
        ("/home/me/photos", [], "no step can see"),
        ("/safelight/../home", [], "no step can see"),
        ("s3://bucket/photos", [], "kubeflow.data=bucket"),
        ("/safelight/photos", ["kubeflow.data=bucket"], "gs://, s3:// or minio://"),
    ],
)
def test_data_that_steps_cannot_reach(data, overrides, said):
    with pytest.raises(ConfigError) as refused:
        checks.check(load(*overrides), STAGES, data)
    assert any(said in reason for reason in refused.value.reasons)


def test_all_findings_come_at_once():
    with pytest.raises(ConfigError) as refused:
        checks.check(load("kubeflow.image=", "kubeflow.workdir=/x"), STAGES, "/home")
    assert len(refused.value.reasons) == 3


def test_what_can_run_is_not_refused():
    checks.check(load(), STAGES, "/safelight/photos")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["kubeflow.steps={Trainer={gpu=1}}"], "kubeflow.steps"),
        (["kubeflow.volumes=[{claim='a'}]"], "kubeflow.volumes"),
        (["kubeflow.pipeline_root=/mnt"], "gs://, s3:// or minio://"),
        (["kubeflow.name=Safe Light"], "kubeflow.name"),
    ],
)
def test_values_that_their_keys_refuse(overrides, said):
    with pytest.raises(ConfigError, match=said):
        load(*overrides)


def test_the_command(tmp_path, capsys):
    output = tmp_path / "pipeline.yaml"
    assert compile.command("kubeflow", [IMAGE], output, "/safelight/photos") == 0
    hint = f"Run it: safelight submit DATA --profile kubeflow --package {output}\n"
    assert capsys.readouterr().err.endswith(hint)
    specification, _ = yaml.safe_load_all(output.read_text())
    parameters = specification["root"]["inputDefinitions"]["parameters"]
    assert parameters["data"]["defaultValue"] == "/safelight/photos"
    with pytest.raises(UsageError, match=r"ends in \.yaml"):
        compile.command("kubeflow", [IMAGE], tmp_path / "pipeline.json")
    with pytest.raises(UsageError, match="can't be written"):
        compile.command("kubeflow", [IMAGE], tmp_path / "missing" / "pipeline.yaml")


@pytest.mark.parametrize(
    ("node", "task"),
    [
        ("ImageExampleGen", "image-example-gen"),
        ("Transform", "transform"),
        ("HTMLReport", "html-report"),
    ],
)
def test_task_names(node, task):
    assert names.task(node) == task


@pytest.mark.current
def test_a_preset_keeps_its_own_settings():
    """What is left open is chosen in the step, as `safelight run` would: not by the defaults."""
    package = compile.compile_package(load("train.preset=cifar10-fast"))
    compiled, _ = yaml.safe_load_all(package)
    tasks = compiled["components"]["comp-pipeline"]["dag"]["tasks"]
    constant = tasks["prepare"]["inputs"]["parameters"]["config"]["runtimeValue"]["constant"]
    config = prepare.merge(Config.model_validate_json(constant), "train.seed=3")
    train = presets.complete(config.train, image_size=32, channels=3, normalize="unit")
    own = presets.get("cifar10-fast").defaults
    assert (train.preset, train.seed) == ("cifar10-fast", 3)
    assert (train.optimizer, train.learning_rate) == (own["optimizer"], own["learning_rate"])
    assert [step.name for step in train.augment] == ["flip", "crop"]


def test_the_golden_copy(package):
    """A change of what is compiled shows in review. Write it anew: see the message."""
    compiled = reviewable(package)
    expected = GOLDEN.read_text() if GOLDEN.is_file() else ""
    if compiled != expected:
        fresh = GOLDEN.with_suffix(".new")
        fresh.parent.mkdir(exist_ok=True)
        fresh.write_text(compiled)
        pytest.fail(f"The package has changed. If it should: mv {fresh} {GOLDEN}", pytrace=False)


def reviewable(package: str) -> str:
    """Returns the package without what differs by lane, or belongs to other tests."""
    specification, platforms = yaml.safe_load_all(package)
    assert specification.pop("sdkVersion").startswith("safelight-tfx-1.")
    tasks = specification["components"]["comp-pipeline"]["dag"]["tasks"]
    constant = tasks["prepare"]["inputs"]["parameters"]["config"]["runtimeValue"]
    assert json.loads(constant["constant"]).keys() >= {"ingest", "train", "push"}
    constant["constant"] = "the whole configuration as JSON"
    return yaml.safe_dump_all([specification, platforms], sort_keys=True, width=100)
