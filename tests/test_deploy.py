"""The manifests of deploy/: every overlay builds, is valid, and is as locked down as it says."""

import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from pipeline import config as configuration
from pipeline.commands import serve
from pipeline.config import Kubeflow
from pipeline.kubeflow import checks, platform
from tests import kustomize
from tests.e2e.command import STAGES

DEPLOY = Path(__file__).parents[1] / "deploy"
FOLDERS = sorted(path.parent for path in DEPLOY.rglob("kustomization.yaml"))
CRONJOB = DEPLOY / "retraining/cronjob.yaml"
KUBERNETES = "1.30"
# Their definitions come with the operator, not with Kubernetes.
OTHER_APIS = {"serving.kserve.io/v1beta1"}


def name_of(path: Path) -> str:
    return str(path.relative_to(DEPLOY))


@pytest.fixture(scope="module", params=[*FOLDERS, CRONJOB], ids=name_of)
def built(request):
    if request.param == CRONJOB:
        return [yaml.safe_load(CRONJOB.read_text())]
    return kustomize.build(request.param)


def pods(manifests):
    """Yields (name, pod spec) of everything that runs containers."""
    for one in manifests:
        spec = one.get("spec", {})
        if one["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if one["kind"] == "InferenceService":
            model = spec["predictor"]["model"]
            yield one["metadata"]["name"], {**spec["predictor"], "containers": [model]}
        elif "template" in spec:
            yield one["metadata"]["name"], spec["template"]["spec"]


def test_there_are_overlays():
    names = {name_of(folder) for folder in FOLDERS}
    assert {
        "serving/tf-serving/overlays/laptop",
        "serving/tf-serving/overlays/gpu",
        "serving/kserve/overlays/laptop",
        "serving/kserve/overlays/gpu",
        "serving/kserve/overlays/canary",
        "kubeflow/overlays/laptop",
        "kubeflow/overlays/gpu",
    } <= names


def test_each_manifest_is_valid(built):
    for one in built:
        if one["apiVersion"] not in OTHER_APIS:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_an_invalid_manifest_is_found():
    manifest = kustomize.build(DEPLOY / "serving/tf-serving/base")
    [deployment] = [one for one in manifest if one["kind"] == "Deployment"]
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolicies"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePullPolicies"):
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)


def test_pods_are_locked_down(built):
    for name, pod in pods(built):
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert {"requests", "limits"} <= container["resources"].keys(), name
            assert container["resources"]["limits"]["memory"], name
            assert not container.get("image", "").endswith(":latest"), name


def test_images_are_pinned_and_the_same_everywhere(built):
    for _, pod in pods(built):
        for container in pod["containers"]:
            image = container.get("image", serve.DOCKER_IMAGE)
            assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+(-gpu)?", image)
            if image.startswith("tensorflow/serving"):
                assert image.removesuffix("-gpu") == serve.DOCKER_IMAGE


def test_the_job_pushes_where_the_server_looks():
    [(_, job)] = pods([yaml.safe_load(CRONJOB.read_text())])
    [(_, server)] = pods(
        one for one in kustomize.build(DEPLOY / "serving/tf-serving/base") if "spec" in one
    )
    claims = [pod["volumes"][0]["persistentVolumeClaim"]["claimName"] for pod in (job, server)]
    assert claims[0] == claims[1]
    assert job["securityContext"]["runAsUser"] == server["securityContext"]["runAsUser"]
    [container], [serving] = job["containers"], server["containers"]
    [mount] = container["volumeMounts"]
    options = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    workdir = Path(options["--workdir"]).relative_to(mount["mountPath"])
    assert str(workdir / "serving") == serving["volumeMounts"][0]["subPath"]


def test_selectors_meet_their_pods(built):
    templates = [
        one["spec"]["template"]["metadata"]["labels"]
        for one in built
        if one["kind"] == "Deployment"
    ]
    for one in built:
        selector = {
            "Deployment": lambda spec: spec["selector"]["matchLabels"],
            "Service": lambda spec: spec["selector"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
        }.get(one["kind"])
        if selector is not None:
            wanted = selector(one["spec"])
            assert wanted, one["kind"]
            assert any(wanted.items() <= labels.items() for labels in templates), one["kind"]


def test_no_secret_is_written_down():
    for path in DEPLOY.rglob("*.yaml"):
        for one in yaml.safe_load_all(path.read_text()):
            assert not (isinstance(one, dict) and one.get("kind") == "Secret"), path


KUBEFLOW = DEPLOY / "kubeflow"
OVERLAYS = [KUBEFLOW / "base", KUBEFLOW / "overlays/laptop", KUBEFLOW / "overlays/gpu"]


def of_kind(manifests, kind):
    return {one["metadata"]["name"]: one for one in manifests if one["kind"] == kind}


@pytest.fixture(scope="module", params=OVERLAYS, ids=name_of)
def around(request):
    """What runs on Kubeflow need around them, as one overlay builds it."""
    return kustomize.build(request.param)


def test_rights_are_the_least(around):
    manifests = around
    roles = of_kind(manifests, "Role")
    assert "ClusterRole" not in {one["kind"] for one in manifests}
    for name, role in roles.items():
        for rule in role["rules"]:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]], name
            if {"secrets", "configmaps"} & set(rule["resources"]):
                assert rule["verbs"] == ["get"] and rule["resourceNames"], name
    accounts = of_kind(manifests, "ServiceAccount")
    for name, binding in of_kind(manifests, "RoleBinding").items():
        assert binding["roleRef"]["name"] in roles, name
        for subject in binding["subjects"]:
            account = accounts[subject["name"]]
            # The base alone is in no namespace; an overlay puts all of it into one.
            assert subject.get("namespace") == account["metadata"].get("namespace")


def test_the_network_is_closed_but_for_what_is_needed(around):
    manifests = around
    policies = {name: one["spec"] for name, one in of_kind(manifests, "NetworkPolicy").items()}
    deny = policies.pop("safelight-deny")
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & deny.keys()
    job = of_kind(manifests, "CronJob")["safelight-retrain"]["spec"]["jobTemplate"]["spec"]
    step = platform.document(Kubeflow(image="x:1"), {"trainer": {}})
    executors = step["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    pods = [
        job["template"]["metadata"]["labels"],
        executors["exec-trainer"]["podMetadata"]["labels"],
    ]
    for labels in pods:
        assert deny["podSelector"]["matchLabels"].items() <= labels.items()
    for name, spec in policies.items():
        assert "ingress" not in spec, name
        assert any(spec["podSelector"]["matchLabels"].items() <= one.items() for one in pods), name
        for rule in spec["egress"]:
            assert rule["ports"], name
            for peer in rule["to"]:
                block = peer.get("ipBlock", {})
                assert not block or "169.254.169.254/32" in block["except"], name


def test_the_job_decides_by_a_profile_that_the_cluster_can_run(around, tmp_path):
    manifests = around
    [profiles] = [one for one in manifests if one["kind"] == "ConfigMap"]
    file = tmp_path / "cluster.toml"
    file.write_text(profiles["data"]["cluster.toml"])
    config = configuration.load(str(file)).config
    checks.check(config, STAGES, "/safelight/spans")
    job = of_kind(manifests, "CronJob")["safelight-retrain"]["spec"]
    assert (job["concurrencyPolicy"], job["jobTemplate"]["spec"]["backoffLimit"]) == ("Forbid", 0)
    pod = job["jobTemplate"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    [volume] = [one for one in pod["volumes"] if one["name"] == mounts["/safelight"]]
    claim = volume["persistentVolumeClaim"]["claimName"]
    assert {"claim": claim, "path": "/safelight"} in config.kubeflow.volumes
    assert claim in of_kind(manifests, "PersistentVolumeClaim")
    assert config.kubeflow.service_account in of_kind(manifests, "ServiceAccount")
    options = dict(one.lstrip("-").split("=", 1) for one in container["args"])
    assert options["workdir"] == config.kubeflow.workdir
    token = config.kubeflow.token_file
    assert not token or str(Path(token).parent) in mounts
    namespace = manifests[0]["metadata"].get("namespace")
    assert config.kubeflow.namespace in ("", namespace)


def test_gpus_are_for_the_training_alone():
    profile = KUBEFLOW / "overlays/gpu/cluster.toml"
    config = configuration.load(str(profile)).config
    assert [name for name, step in config.kubeflow.steps.items() if "gpus" in step] == ["Trainer"]
    trainer = config.kubeflow.steps["Trainer"]
    assert trainer["node_selector"] and trainer["tolerations"]


def test_batching_has_the_fields_of_tf_serving():
    """BatchingParameters is not among the protos of tensorflow-serving-api: its field names are."""
    known = {"max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"}
    files = sorted((DEPLOY / "serving").rglob("batching.config"))
    assert len(files) == 2
    for path in files:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        found = [re.fullmatch(r"(\w+) \{ value: \d+ \}", line) for line in lines]
        assert {match[1] for match in found if match} == known
        assert all(found)


def test_two_versions_are_kept():
    config = model_server_config_pb2.ModelServerConfig()
    path = DEPLOY / "serving/tf-serving/base/models.config"
    text_format.Parse(path.read_text(), config)
    [model] = config.model_config_list.config
    assert model.model_version_policy.latest.num_versions == 2
    same = model_server_config_pb2.ModelServerConfig()
    text_format.Parse(serve.model_config("model", "/models/model"), same)
    assert same == config
    with pytest.raises(text_format.ParseError):
        text_format.Parse(path.read_text().replace("base_path", "basepath"), config)


def test_probes_ask_for_the_model_that_is_served():
    for folder in FOLDERS:
        for one in kustomize.build(folder):
            if one["kind"] != "Deployment":
                continue
            [container] = one["spec"]["template"]["spec"]["containers"]
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert container[probe]["httpGet"]["path"].startswith("/v1/models/model")


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_kustomize_builds_the_same(folder):
    """Where Kustomize itself is installed, the builder above is held to it."""
    kustomizations = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert kustomizations["apiVersion"] == "kustomize.config.k8s.io/v1beta1"
    binary = shutil.which("kustomize")
    if binary is None:
        return
    line = [binary, "build", str(folder)]
    built = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
    theirs = [one for one in yaml.safe_load_all(built.stdout) if one]
    hashed = re.compile(r"(safelight-[a-z]+)-[a-z0-9]{10}\b")

    def normal(manifests):
        texts = (yaml.safe_dump(one, sort_keys=True) for one in manifests)
        return sorted(hashed.sub(r"\1-HASH", text) for text in texts)

    assert normal(kustomize.build(folder)) == normal(theirs)


def stages():
    """Returns {name: (base, instructions)} of the Dockerfile's stages."""
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    found = {}
    for line in text.splitlines():
        start = re.fullmatch(r"FROM (\S+) AS (\S+)", line)
        if start:
            found[start[2]] = (start[1], [])
            name = start[2]
        elif found and line and not line.startswith("#"):
            found[name][1].append(line.strip())
    return found


def test_the_image_ends_without_build_tools_and_without_root():
    found = stages()
    base, lines = found["cpu"]
    assert base == "scratch"
    assert {"USER 65532:65532", "COPY --from=runtime / /"} <= set(lines)
    assert not any(line.startswith("RUN") for line in lines)
    assert found["gpu"] == ("cpu", ["COPY --from=build-gpu /opt/safelight /opt/safelight"])
    trimmed = " ".join(found["runtime"][1])
    for tool in ("g++", "gcc", "make", "python3-dev"):
        assert re.search(rf"purge [^&]*(?<!\S){re.escape(tool)}(?!\S)", trimmed), tool


def test_the_image_has_the_locked_packages_and_all_of_the_code():
    lines = stages()["build"][1]
    assert any("uv sync --locked --no-dev" in line for line in lines)
    sent = (DEPLOY.parent / ".dockerignore").read_text().split()
    for name in ("pipeline", "components", "schemas"):
        assert f"COPY {name} {name}" in lines
        assert f"!{name}" in sent
    for name in ("pyproject.toml", "uv.lock", "README.md", "LICENSE"):
        assert f"!{name}" in sent
