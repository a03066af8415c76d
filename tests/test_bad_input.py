"""Settings that can't be, or can't go together: refused before a run is begun, by their keys."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline import config as configuration
from pipeline import hardware
from pipeline.errors import ConfigError
from pipeline.ingest.scan import scan
from pipeline.runners import local
from pipeline.trainer.devices import Devices
from pipeline.workdir import open_workdir
from tests import made

CUTMIX = 'train.augment=["cut_mix"]'
NUMBER = 'train.heads=[{name="severity", kind="regression"}]'


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return made.class_folders(tmp_path_factory.mktemp("data") / "colours", {"red": 4, "blue": 4})


def asked(data: Path, root: Path, *overrides: str) -> Path:
    """Asks for a run as the command does, but starts none; returns the folder of runs."""
    effective = configuration.load(None, overrides)
    workdir = open_workdir(root / "work")
    local.prepare(workdir, effective, scan(str(data), effective.config.ingest))
    return workdir.runs


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.preset=cifar10-cn"], ["train.preset", "Did you mean 'cifar10-cnn'"]),
        (["train.backbone=ResNet5O"], ["train.backbone", "Did you mean 'ResNet50'"]),
        (["train.augment=rotaton"], ["train.augment", "Did you mean 'rotation'"]),
        ([CUTMIX, NUMBER], ["train.augment", "'cut_mix'", "train.heads", "'severity'"]),
        (
            ["train.backbone=Xception", "transform.image_size=32"],
            ["transform.image_size 32", "train.backbone 'Xception'", "at least 71"],
        ),
        (
            ["train.preset=cifar10-fast", "transform.image_size=12"],
            ["transform.image_size 12", "train.preset 'cifar10-fast'", "at least 16"],
        ),
        (
            ["train.strategy=mirrored", "train.devices=4", "train.batch_size=3"],
            ["train.batch_size=3", "train.strategy=mirrored", "train.devices=4"],
        ),
        (
            ["train.strategy=multi_worker", "train.workers=3", "train.batch_size=2"],
            ["train.batch_size=2", "train.strategy=multi_worker", "train.workers=3"],
        ),
        (
            ["train.strategy=tpu", "train.tpu=grpc://10.0.0.2:8470"],
            ["train.tpu", "train.cache=auto", "train.cache=off"],
        ),
        (
            ["train.class_weights.bleu=2"],
            ["train.class_weights", "'bleu'", "Did you mean 'blue'"],
        ),
        (
            ["train.phases=[{epochs=1, unfreeze='none'}]", "train.preset=mnist-cnn"],
            ["train.phases", "'none'", "train.preset 'mnist-cnn'"],
        ),
        (["train.weights=imagenet"], ["train.weights", "train.backbone"]),
        (
            ["train.epochs=3", "train.phases=[{epochs=2}]"],
            ["train.epochs 3", "train.phases"],
        ),
        ([NUMBER], ["train.heads", "ingest.form", "'folders'"]),
    ],
)
def test_it_is_refused_before_a_run_is_begun(colours, tmp_path, overrides, words):
    with pytest.raises(ConfigError) as caught:
        asked(colours, tmp_path, *overrides)
    for word in words:
        assert word in str(caught.value)
    assert not list(tmp_path.glob("work/runs/*"))


def test_weights_of_classes_that_there_are_pass(colours, tmp_path):
    runs = asked(colours, tmp_path, "train.class_weights.blue=2")
    assert len(list(runs.iterdir())) == 1


def test_a_layer_to_unfreeze_from_is_looked_for_before_a_run_is_begun(colours, tmp_path):
    network = ["train.backbone=cifar10-fast", "transform.image_size=32"]
    phases = "train.phases=[{{epochs=1, unfreeze='none'}}, {{epochs=1, unfreeze='{}'}}]"
    with pytest.raises(ConfigError) as caught:
        asked(colours, tmp_path, *network, phases.format("conv2d_l"))
    for word in ("train.phases", "'conv2d_l'", "train.backbone 'cifar10-fast'", "Did you mean"):
        assert word in str(caught.value)
    assert not list(tmp_path.glob("work/runs/*"))
    [remembered] = (tmp_path / "work" / "cache").glob("layers-cifar10-fast-*.json")
    # What was found is not asked for again: a name that only this file knows is then known.
    remembered.write_text('["conv2d_l"]')
    assert len(list(asked(colours, tmp_path, *network, phases.format("conv2d_l")).iterdir())) == 1


def test_a_batch_smaller_than_the_gpus_that_are_there(monkeypatch):
    monkeypatch.setattr(hardware, "visible_gpus", lambda: ["0", "1", "2", "3"])
    for strategy in ("auto", "mirrored"):
        train = configuration.load(
            None, [f"train.strategy={strategy}", "train.batch_size=3"]
        ).config.train
        with pytest.raises(ConfigError, match=f"train.batch_size=3.*train.strategy={strategy}"):
            hardware.check(train)
        hardware.check(train.model_copy(update={"batch_size": 4}))
        hardware.check(train, here=False)
    many = configuration.load(None, ["train.strategy=mirrored", "train.devices=8"]).config.train
    with pytest.raises(ConfigError, match=r"8 GPUs \(train.devices\); found: 4"):
        hardware.check(many)


def test_a_tpu_is_given_no_batch_of_another_size():
    """There is no setting for it: batches on a TPU are whole, and images have one size."""
    strategy = cast(Any, SimpleNamespace(num_replicas_in_sync=8))
    tpu = Devices("tpu", strategy)
    assert tpu.whole_batches and tpu.batch_size(100, 1000) == 96
    with pytest.raises(ConfigError, match=r"train.batch_size=7.*8 devices of train.strategy=tpu"):
        tpu.batch_size(7, 1000)
