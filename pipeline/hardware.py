"""What can be said of devices before TensorFlow is imported: who sees them, what is refused.

Plain Python. `hidden` is the environment of the worker and all steps, `environment` that of the
process that trains, and `check` refuses settings that can be told to fail before anything runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipeline import workers
from pipeline.config import Train
from pipeline.errors import ConfigError

_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
# What _VISIBLE was before `hidden`, for the one child that shall have the GPUs.
_GIVEN: Final = "SAFELIGHT_GIVEN_GPUS"


def check_batch(batch_size: int, replicas: int, why: str) -> None:
    """Refuses a batch that would leave a replica without an image."""
    if batch_size < replicas:
        raise ConfigError(
            f"train.batch_size={batch_size} is smaller than the {replicas} devices of {why}: each "
            f"needs an image at least. Raise train.batch_size to {replicas} or more."
        )


def check(train: Train, *, here: bool = True) -> None:
    """Refuses what can be told to fail before anything runs.

    Args:
      train: the section, its batch size set or not.
      here: whether training will run on this machine, so that its devices can be looked for.

    Raises:
      ConfigError: settings that can't go together, by their keys; or devices that aren't there.
    """
    check_keys(train, train.strategy)
    replicas = _replicas_asked_for(train)
    if train.batch_size and replicas > 1:
        key = "workers" if train.strategy == "multi_worker" else "devices"
        check_batch(
            train.batch_size, replicas, f"train.strategy={train.strategy}, train.{key}={replicas}"
        )
    if here:
        _check_here(train)


def _check_here(train: Train) -> None:
    gpus = len(visible_gpus())
    if train.strategy == "gpu" and not gpus:
        raise absent(train, "a GPU", "no NVIDIA GPU on this machine")
    if train.strategy == "mirrored" and not gpus and not train.devices:
        raise absent(train, "several GPUs", "none; to try it on the CPU, set train.devices=2")
    if train.strategy == "mirrored" and 0 < gpus < train.devices:
        raise absent(train, f"{train.devices} GPUs (train.devices)", str(gpus))
    if train.strategy == "auto" and gpus > 1:
        check_keys(train, "mirrored")
    sharing = (train.devices or gpus) if train.strategy in ("auto", "mirrored") else 0
    if train.batch_size and gpus > 1 and sharing > 1:
        check_batch(
            train.batch_size,
            sharing,
            f"train.strategy={train.strategy}, which takes {sharing} GPUs",
        )
    if train.strategy == "tpu" and not (train.tpu or "TPU_NAME" in os.environ or _tpu_files()):
        raise absent(train, "a TPU", "none on this machine, and train.tpu names none")


def check_keys(train: Train, strategy: str) -> None:
    """Refuses keys that `strategy` can't be used with; it is train.strategy, `auto` resolved."""
    several = strategy in ("multi_worker", "tpu") or (strategy == "mirrored" and train.devices != 1)
    instead = " or set train.devices=1" if strategy == "mirrored" else ""
    if several and train.xla and strategy != "tpu":
        raise ConfigError(
            f"train.xla and train.strategy={strategy} don't go together: XLA compiles the step of "
            f"one device. Leave train.xla out{instead}."
        )
    if several and train.precision == "float16":
        raise ConfigError(
            f"train.precision=float16 and train.strategy={strategy} don't go together: each device "
            f"would scale its loss by what it sees of the batch. Use bfloat16{instead}."
        )
    if several and train.accumulate > 1:
        raise ConfigError(
            f"train.accumulate={train.accumulate} and train.strategy={strategy} don't go together. "
            f"Raise train.batch_size instead, which is divided among the devices{instead}."
        )
    if strategy == "tpu" and train.tpu.startswith("grpc://") and train.cache != "off":
        raise ConfigError(
            f"train.tpu={train.tpu} reads the images on the TPU's own machine, where those that "
            f"train.cache={train.cache} keeps here are not. Set train.cache=off."
        )


def _replicas_asked_for(train: Train) -> int:
    if train.strategy == "multi_worker":
        cluster = workers.from_environment()
        return cluster.workers if cluster else train.workers
    return train.devices if train.strategy == "mirrored" else 0


def _tpu_files() -> list[Path]:
    """Returns the device files of a TPU VM."""
    return [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]


def prepared(train: Train, variables: Mapping[str, str]) -> dict[str, str]:
    """Returns an environment with what TensorFlow, Keras and TFT read when they are imported."""
    found = {
        # A GPU may be shared, with TF Serving say: take memory as it is needed.
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "TF_CPP_MIN_LOG_LEVEL": "1",
        **variables,
        "KERAS_BACKEND": "tensorflow",
        # TensorFlow Transform chooses Keras 2 where nothing is said.
        "TF_USE_LEGACY_KERAS": "0",
    }
    if train.strategy == "cpu":
        found[_VISIBLE] = "-1"
    if train.strategy != "multi_worker":
        found.pop(workers.TF_CONFIG, None)
    return found


def set_environment(train: Train) -> None:
    """Prepares this process's own environment, before TensorFlow is imported."""
    found = prepared(train, os.environ)
    os.environ.update(found)
    if workers.TF_CONFIG not in found:
        os.environ.pop(workers.TF_CONFIG, None)


def hidden() -> dict[str, str]:
    """Returns this process's environment with the GPUs hidden: for the worker, and for all steps.

    No step but Trainer and Tuner takes a GPU; `environment` gives it back to the process of those.
    """
    variables = dict(os.environ)
    # Empty hides all GPUs, and is something else than not set.
    variables.setdefault(_GIVEN, f"={variables[_VISIBLE]}" if _VISIBLE in variables else "")
    return {**variables, _VISIBLE: "-1"}


def environment() -> dict[str, str]:
    """Returns the environment of a process that shall have the GPUs: as it was before `hidden`."""
    variables = dict(os.environ)
    given = variables.pop(_GIVEN, None)
    if given is not None:
        variables.pop(_VISIBLE, None)
        if given:
            variables[_VISIBLE] = given.removeprefix("=")
    return variables


def visible_gpus() -> list[str]:
    """Returns this machine's NVIDIA GPUs as CUDA_VISIBLE_DEVICES would name them.

    Told by the driver's device files, which also show what a container was given: TensorFlow is
    not asked.
    """
    names = (re.fullmatch(r"nvidia(\d+)", path.name) for path in Path("/dev").glob("nvidia*"))
    found = sorted((match[1] for match in names if match), key=int)
    chosen = environment().get(_VISIBLE)
    if chosen is None or not found:
        return found
    return [name for name in chosen.split(",") if name.strip() not in ("", "-1")]


def absent(train: Train, expected: str, found: str) -> ConfigError:
    return ConfigError(
        f"train.strategy={train.strategy} expects {expected}; found: {found}. Leave "
        "train.strategy at auto, which takes what is there; `safelight doctor` shows the devices."
    )
