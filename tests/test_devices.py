"""Devices: what is refused before anything runs, who gets the GPUs, and how a batch is divided."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import tensorflow as tf

from pipeline import hardware, workers
from pipeline.blessing import serving_child
from pipeline.config import Train
from pipeline.errors import ConfigError
from pipeline.runners import local
from pipeline.trainer import devices, train
from pipeline.trainer.devices import Devices
from tests import jobs

NO_DATA: dict[str, Any] = {
    "train_files": ("nowhere/*",),
    "eval_files": ("nowhere/*",),
    "schema_path": Path("nowhere"),
    "transform_graph": Path("nowhere"),
}


def section(**settings: Any) -> Train:
    return Train.model_validate({"preset": "mnist-cnn-small", "epochs": 1, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"strategy": "mirrored", "devices": 4, "batch_size": 3},
            "train.batch_size=3 is smaller than the 4 devices of train.strategy=mirrored, "
            "train.devices=4.*Raise train.batch_size to 4",
        ),
        (
            {"strategy": "multi_worker", "workers": 3, "batch_size": 2},
            "train.batch_size=2 .* train.strategy=multi_worker, train.workers=3",
        ),
        (
            {"strategy": "mirrored", "devices": 2, "xla": True},
            "train.xla and train.strategy=mirrored don't go together",
        ),
        (
            {"strategy": "multi_worker", "precision": "float16"},
            "train.precision=float16 and train.strategy=multi_worker.*bfloat16",
        ),
        (
            {"strategy": "mirrored", "devices": 2, "accumulate": 2},
            "train.accumulate=2 and train.strategy=mirrored",
        ),
        (
            {"strategy": "tpu", "tpu": "grpc://10.0.0.2:8470"},
            "train.tpu=grpc://10.0.0.2:8470.*train.cache=auto.*Set train.cache=off",
        ),
    ],
)
def test_keys_that_can_t_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hardware.check(section(**settings), here=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "gpu"}, "expects a GPU; found: no NVIDIA GPU.*train.strategy at auto"),
        ({"strategy": "mirrored"}, "expects several GPUs; found: none.*train.devices=2"),
        ({"strategy": "tpu"}, "expects a TPU; found: none on this machine"),
    ],
)
def test_devices_that_aren_t_there_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hardware.check(section(**settings))
    hardware.check(section(**settings), here=False)  # a cluster may have them


def test_what_is_there_passes() -> None:
    for settings in (
        {"strategy": "auto"},
        {"strategy": "cpu", "precision": "float16", "xla": True, "accumulate": 4},
        {"strategy": "mirrored", "devices": 2, "batch_size": 2},
        {"strategy": "multi_worker", "workers": 2, "precision": "bfloat16"},
    ):
        hardware.check(section(**settings))


def test_opened_in_this_process() -> None:
    opened = devices.open_devices(section())
    assert (opened.kind, opened.replicas, opened.workers, opened.chief) == ("cpu", 1, 1, True)
    assert not opened.own_loop
    assert opened.batch_size(10, 7) == 10
    with pytest.raises(ConfigError, match="train.strategy=gpu expects a GPU; found: no GPU"):
        devices.open_devices(section(strategy="gpu"))
    with pytest.raises(ConfigError, match="needs TF_CONFIG in each worker's environment"):
        devices.open_devices(section(strategy="multi_worker"))


def test_trainer_runs_in_the_chief_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**os.environ, **tf_config("worker", 0)}
    monkeypatch.setattr(os, "environ", environment)
    job = jobs.make(NO_DATA, tmp_path, "job", strategy="multi_worker")
    with pytest.raises(ConfigError, match="worker 1 of TF_CONFIG's 3.*worker 0 writes the model"):
        train.run_fn(jobs.fn_args(job))


def shared_by(replicas: int) -> Devices:
    strategy = SimpleNamespace(num_replicas_in_sync=replicas)
    return Devices("mirrored", cast(tf.distribute.Strategy, strategy))


def test_a_batch_is_a_multiple_of_the_replicas() -> None:
    assert shared_by(4).batch_size(32, 1000) == 32
    assert shared_by(3).batch_size(32, 1000) == 30
    assert shared_by(4).batch_size(32, 18) == 16
    with pytest.raises(ConfigError, match="train.batch_size=3 is smaller than the 4 devices"):
        shared_by(4).batch_size(3, 1000)
    with pytest.raises(ConfigError, match="over 4 devices, and there are 3 images"):
        shared_by(4).batch_size(32, 3)


CLUSTER = {"chief": ["a:1"], "worker": ["b:2", "c:3"]}


def tf_config(kind: str, index: Any, cluster: Any = CLUSTER) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def test_an_operator_s_tf_config_says_which_worker_this_is() -> None:
    assert workers.from_environment({}) is None
    assert workers.from_environment({"TF_CONFIG": "{}"}) is None
    chief = workers.from_environment(tf_config("chief", 0))
    assert chief is not None
    assert (chief.addresses, chief.worker, chief.workers) == (("a:1", "b:2", "c:3"), 0, 3)
    second = workers.from_environment(tf_config("worker", 1))
    assert second is not None
    assert second.worker == 2
    without_chief = workers.from_environment(tf_config("worker", 0, {"worker": ["b:2", "c:3"]}))
    assert without_chief is not None
    assert without_chief.worker == 0


@pytest.mark.parametrize(
    "environment",
    [
        {"TF_CONFIG": "not JSON"},
        {"TF_CONFIG": '{"cluster": {"worker": ["b:2"]}}'},
        tf_config("ps", 0),
        tf_config("worker", 2),
        tf_config("worker", "x"),
        tf_config("worker", 0, ["b:2"]),
    ],
)
def test_a_wrong_tf_config_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="TF_CONFIG does not make this process a worker.*receiv"):
        workers.from_environment(environment)


@pytest.mark.parametrize("changes", [{"precision": "float16"}, {"xla": True}, {"accumulate": 2}])
def test_what_several_gpus_can_not_share_is_refused_before_a_run_of_auto(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "visible_gpus", lambda: ["0", "1"])
    with pytest.raises(ConfigError, match="train.strategy=mirrored.*set train.devices=1"):
        hardware.check(section(**changes))
    hardware.check(section(**changes, devices=1))
    monkeypatch.setattr(hardware, "visible_gpus", lambda: ["0"])
    hardware.check(section(**changes))


def test_workers_of_this_machine_share_its_gpus() -> None:
    environments = workers.local(2, ["0", "1", "2"])
    clusters = [workers.from_environment(environment) for environment in environments]
    assert [cluster and cluster.worker for cluster in clusters] == [0, 1]
    assert clusters[0] is not None
    assert clusters[1] is not None
    assert clusters[0].addresses == clusters[1].addresses
    assert len(set(clusters[0].addresses)) == 2
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments] == ["0", "1"]
    # Fewer GPUs than workers: a step waits for the slowest, so none takes one.
    assert [e["CUDA_VISIBLE_DEVICES"] for e in workers.local(2, ["0"])] == ["-1", "-1"]


def shown_by(environment: dict[str, str]) -> str:
    code = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    return done.stdout.decode().strip()


@pytest.mark.parametrize("given", ["0,1", "", None])
def test_only_the_training_process_gets_the_gpus(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    worker = local._worker_environment()
    assert shown_by(worker) == "-1"
    # What follows happens in the worker, and in whatever it starts.
    for name, value in worker.items():
        monkeypatch.setenv(name, value)
    assert shown_by(serving_child.environment()) == "-1"
    assert shown_by(dict(os.environ)) == "-1"
    assert shown_by(hardware.environment()) == str(given)
    assert shown_by(hardware.hidden()) == "-1"


def test_a_child_s_environment_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that `train.run_child` starts sees the GPUs that were hidden from this one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    for name, value in hardware.hidden().items():
        monkeypatch.setenv(name, value)
    assert train.run_child("tests.environment_child", tmp_path / "seen", section()) == 0
    seen = json.loads((tmp_path / "seen").read_text())
    assert seen["CUDA_VISIBLE_DEVICES"] == "3"


def test_the_cpu_strategy_hides_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "KERAS_BACKEND", "TF_FORCE_GPU_ALLOW_GROWTH"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("TF_CONFIG", "{}")
    hardware.set_environment(section(strategy="auto"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert "TF_CONFIG" not in os.environ  # it belongs to multi_worker alone
    hardware.set_environment(section(strategy="cpu"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1"
