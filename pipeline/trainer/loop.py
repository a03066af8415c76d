"""The epochs of training where Keras's own loop fails: several workers, and TPUs.

Keras 3's `fit` can't hand out what the replicas of several workers return (keras-team/keras issue
20585). Here the same steps, the model's own `train_step` and `test_step`, run in a loop that reads
the metrics from their variables. Callbacks see what `fit` shows them. All workers run through the
same steps with the same callbacks; who writes is decided by what the callbacks are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

if TYPE_CHECKING:
    from pipeline.trainer.fitting import Batches

Logs = dict[str, float]
Step = Callable[[Any], dict[str, tf.Tensor]]


def run(
    model: keras.Model,
    batches: Batches,
    done: int,
    last: int,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    """Runs the epochs behind `done` up to `last`, or until the chief's `model.stop_training`.

    Args:
      model: compiled, made in its strategy's scope.
      batches: with several workers, this worker's share of each step and of the split eval; else
        whole batches, which are divided among the replicas.
      done: the number of finished epochs.
      last: the number of the last epoch.
      callbacks: called as `fit` does.
    """
    strategy = model.distribute_strategy
    train_step, test_step = _train_step(model), _test_step(model)
    around = keras.callbacks.CallbackList(list(callbacks), model=model)
    iterator = iter(_distributed(strategy, batches.train))
    held_out = _distributed(strategy, batches.held_out)
    model.stop_training = False
    around.on_train_begin()
    for epoch in range(done, last):
        model.reset_metrics()
        around.on_epoch_begin(epoch)
        for step in range(batches.steps):
            around.on_train_batch_begin(step)
            around.on_train_batch_end(step, _numbers(train_step(iterator)))
        logs = _numbers(model.get_metrics_result())
        evaluated = _evaluated(model, held_out, test_step, around)
        logs |= {f"val_{name}": value for name, value in evaluated.items()}
        around.on_epoch_end(epoch, logs)
        model.stop_training = _chief_says(strategy, model.stop_training)
        if model.stop_training:
            break
    around.on_train_end()


def _evaluated(
    model: keras.Model,
    held_out: tf.distribute.DistributedDataset,
    test_step: Step,
    around: keras.callbacks.CallbackList,
) -> Logs:
    model.reset_metrics()
    around.on_test_begin()
    for batch in held_out:
        test_step(batch)
    logs = _numbers(model.get_metrics_result())
    around.on_test_end(logs)
    return logs


def _train_step(model: keras.Model) -> Step:
    strategy = model.distribute_strategy

    @tf.function
    def step(iterator: Iterator[Any]) -> dict[str, tf.Tensor]:
        figures = strategy.run(model.train_step, args=(next(iterator),))
        # The mean over the replicas: alike on all workers, so that all stop at a loss not finite.
        return {
            name: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None)
            for name, value in figures.items()
        }

    return step


def _test_step(model: keras.Model) -> Step:
    strategy = model.distribute_strategy

    @tf.function(reduce_retracing=True)
    def step(batch: Any) -> None:
        strategy.run(model.test_step, args=(batch,))

    return step


def _distributed(
    strategy: tf.distribute.Strategy, dataset: tf.data.Dataset
) -> tf.distribute.DistributedDataset:
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return strategy.experimental_distribute_dataset(dataset)
    here = len(strategy.extended.worker_devices)

    def share(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return dataset if here == 1 else _cut(dataset, here)

    return strategy.distribute_datasets_from_function(share)


def _cut(dataset: tf.data.Dataset, parts: int) -> tf.data.Dataset:
    """Cuts each batch into as many parts, one a replica, the last ones smaller or empty."""

    def cut(*batch: Any) -> tf.data.Dataset:
        rows = tf.shape(tf.nest.flatten(batch)[0])[0]
        each = -(-rows // parts)

        def part(number: tf.Tensor) -> Any:
            start, end = number * each, (number + 1) * each
            return tf.nest.map_structure(lambda values: values[start:end], batch)

        return tf.data.Dataset.range(parts, output_type=tf.int32).map(part)

    return dataset.flat_map(cut)


def _chief_says(strategy: tf.distribute.Strategy, stop: bool) -> bool:
    """Returns what the chief's first replica says, on all workers."""
    said = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(int(stop and context.replica_id_in_sync_group == 0))
    )
    return bool(strategy.reduce(tf.distribute.ReduceOp.SUM, said, axis=None))


def _numbers(figures: dict[str, Any]) -> Logs:
    return {name: float(value) for name, value in figures.items()}
