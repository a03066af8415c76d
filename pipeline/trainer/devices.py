"""What training computes on: the strategy, how many replicas share a batch, and the precision.

    hardware.set_environment(train)   before TensorFlow is imported
    opened = devices.open_devices(train)

TensorFlow takes logical devices, visible GPUs and the cluster only before it computes anything: so
this belongs into a process of its own (`pipeline/trainer/train_child.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from pipeline import events, hardware, workers
from pipeline.config import Train
from pipeline.errors import ConfigError, SafelightError

if TYPE_CHECKING:
    import tensorflow as tf

Kind = Literal["cpu", "gpu", "mirrored", "multi_worker", "tpu"]

_POLICIES: Final = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}


@dataclass(frozen=True)
class Devices:
    """What this process trains on.

    Attributes:
      kind: what was asked for, `auto` resolved.
      strategy: TensorFlow's; variables are made and steps run in its scope.
      worker: this process's number among `workers`; the others are other processes.
      workers: how many there are: more than one only with `multi_worker`.
      chief: whether this process writes checkpoints, logs and the model.
    """

    kind: Kind
    strategy: tf.distribute.Strategy
    worker: int = 0
    workers: int = 1
    chief: bool = True

    @property
    def replicas(self) -> int:
        """Returns how many copies of the network share a batch, those of all workers."""
        count: int = self.strategy.num_replicas_in_sync
        return count

    @property
    def own_loop(self) -> bool:
        """Whether `pipeline.trainer.loop` fits: Keras's own loop fails here."""
        return self.kind in ("multi_worker", "tpu")

    @property
    def whole_batches(self) -> bool:
        """Whether each training batch has to be full: its shares are equal, its shape is static."""
        return self.replicas > 1 or self.kind == "tpu"

    def batch_size(self, wanted: int, examples: int) -> int:
        """Returns the images of a step on all replicas: a multiple of their number.

        Args:
          wanted: train.batch_size.
          examples: images of an epoch; a batch that has to be full can't be larger.

        Raises:
          ConfigError: there are fewer images than replicas, or the batch is smaller.
        """
        if not self.whole_batches:
            return wanted
        hardware.check_batch(wanted, self.replicas, f"train.strategy={self.kind}")
        if examples < self.replicas:
            raise ConfigError(
                f"train.strategy={self.kind} spreads each batch over {self.replicas} devices, and "
                f"there are {examples} images to train on. Use train.devices=1."
            )
        return min(wanted, examples) // self.replicas * self.replicas


def open_devices(train: Train) -> Devices:
    """Makes the strategy that train.strategy asks for, and notes what it is.

    Raises:
      ConfigError: it isn't there, or it can't be used with other keys; see `check`.
    """
    opened = _OPENERS[train.strategy](train)
    hardware.check_keys(train, opened.kind)
    if train.batch_size and opened.replicas > 1:
        hardware.check_batch(train.batch_size, opened.replicas, f"train.strategy={opened.kind}")
    if opened.chief:
        events.note(_said(opened, train))
    return opened


def _said(opened: Devices, train: Train) -> str:
    cores = len(os.sched_getaffinity(0))
    where = {
        "cpu": f"the CPU, {cores} cores",
        "gpu": "1 GPU",
        "mirrored": f"{opened.replicas} devices of this machine",
        "multi_worker": f"{opened.workers} workers with {opened.replicas} devices",
        "tpu": f"a TPU with {opened.replicas} cores",
    }[opened.kind]
    precision = "" if train.precision == "float32" else f", in {train.precision}"
    return f"Trains on {where}{precision}{', compiled by XLA' if train.xla else ''}."


def _auto(train: Train) -> Devices:
    gpus = _gpus()
    if not gpus:
        return _cpu(train)
    return _gpu(train) if len(gpus) == 1 or train.devices == 1 else _mirrored(train)


def _cpu(train: Train) -> Devices:
    import tensorflow as tf

    if _gpus():
        _before_tensorflow_computes(lambda: tf.config.set_visible_devices([], "GPU"))
    return Devices("cpu", tf.distribute.get_strategy())


def _gpu(train: Train) -> Devices:
    import tensorflow as tf

    gpus = _gpus()
    if not gpus:
        raise hardware.absent(train, "a GPU", "no GPU that TensorFlow sees")
    if len(gpus) > 1:
        _before_tensorflow_computes(lambda: tf.config.set_visible_devices(gpus[:1], "GPU"))
    return Devices("gpu", tf.distribute.get_strategy())


def _mirrored(train: Train) -> Devices:
    import tensorflow as tf

    gpus = _gpus()
    count = train.devices or len(gpus)
    if not count:
        raise hardware.absent(
            train, "several GPUs", "none; to try it on the CPU, set train.devices=2"
        )
    if gpus and count > len(gpus):
        raise hardware.absent(train, f"{count} GPUs (train.devices)", str(len(gpus)))
    names = [f"GPU:{index}" for index in range(count)]
    if not gpus:
        names = [f"CPU:{index}" for index in range(count)]
        _split_cpu(count)
    return Devices("mirrored", tf.distribute.MirroredStrategy(names))


def _split_cpu(count: int) -> None:
    """Makes `count` logical devices of the CPU."""
    import tensorflow as tf

    [cpu] = tf.config.list_physical_devices("CPU")
    parts = [tf.config.LogicalDeviceConfiguration()] * count
    _before_tensorflow_computes(lambda: tf.config.set_logical_device_configuration(cpu, parts))


def _multi_worker(train: Train) -> Devices:
    import tensorflow as tf

    cluster = workers.from_environment()
    if cluster is None:
        raise ConfigError(
            "train.strategy=multi_worker needs TF_CONFIG in each worker's environment. Start the "
            "training through `safelight run`, which sets it, or from an operator that does."
        )
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    return Devices("multi_worker", strategy, cluster.worker, cluster.workers, cluster.worker == 0)


def _tpu(train: Train) -> Devices:
    import tensorflow as tf

    name = train.tpu or os.environ.get("TPU_NAME", "local")
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        if name != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, OSError, RuntimeError, tf.errors.OpError) as error:
        reason = str(error).strip().split("\n")[0][:300].rstrip(".")
        raise hardware.absent(train, f"the TPU {name!r} (train.tpu)", reason) from None
    return Devices("tpu", tf.distribute.TPUStrategy(resolver))


def _gpus() -> list[Any]:
    import tensorflow as tf

    found: list[Any] = tf.config.list_physical_devices("GPU")
    return found


def _before_tensorflow_computes(change: Callable[[], None]) -> None:
    """Makes a change that TensorFlow takes only before its first operation."""
    try:
        change()
    except RuntimeError as error:
        raise SafelightError(
            f"The devices can't be set any more ({error}): TensorFlow has begun to compute in this "
            "process. Train in a process of its own, as `safelight run` does."
        ) from None


_OPENERS: Final[Mapping[str, Callable[[Train], Devices]]] = MappingProxyType(
    {
        "auto": _auto,
        "cpu": _cpu,
        "gpu": _gpu,
        "mirrored": _mirrored,
        "multi_worker": _multi_worker,
        "tpu": _tpu,
    }
)


@contextmanager
def precision(train: Train) -> Iterator[None]:
    """Makes layers that are built in here compute in train.precision.

    Their variables stay float32, and so do layers that were given a type. Keras scales the loss
    of a model that is compiled in float16 (LossScaleOptimizer).
    """
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(_POLICIES[train.precision])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
