"""Magnitude pruning: the smallest weights of each kernel become zero, and stay zero.

As Zhu and Gupta ("To prune, or not to prune: exploring the efficacy of pruning for model
compression", 2017) found, a network that is trained on behind the pruning loses little. Each
kernel is pruned to the same share by itself: a share of all weights together would empty the
large layers, or leave small ones alone, depending on how far apart their scales are. Theirs rises
over many steps; with the few epochs here it is reached at once.
"""

from __future__ import annotations

import keras
import numpy as np
import numpy.typing as npt

from pipeline import events, export, model_json, models
from pipeline.blessing.calibration import Fitted
from pipeline.trainer import data, fitting, training
from pipeline.trainer.checkpoints import State
from pipeline.variants.job import STAGE, PruneJob


class Held(keras.constraints.Constraint):
    """Keeps the weights that a mask leaves out at zero; the optimizer applies it at each step."""

    def __init__(self, mask: npt.NDArray[np.bool_]) -> None:
        # A tensor, not an array: an array would become a constant of the graph.
        self._mask = keras.ops.convert_to_tensor(mask)

    def __call__(self, weight: keras.KerasTensor) -> keras.KerasTensor:
        return weight * keras.ops.cast(self._mask, weight.dtype)


def run(job: PruneJob) -> None:
    """Prunes, trains on for `job.train.epochs`, and exports to `job.model_dir`."""
    # What reading and fitting tell is about one of the variants.
    events.as_part_of(STAGE, 0, 1, "variants")
    setup = training.prepare(job)
    model = training.make_model(setup, job.train)
    told = model_json.read(job.export)
    before = export.load_weights(job.export)
    models.set_weights(model, before.get_weights())
    zeros = hold(model, job.sparsity)
    events.note(f"Prunes {zeros:.0%} of the model's weights, and trains on.")
    fitting.fit(
        model,
        lambda done: training.make_batches(setup, job.train, done),
        job.train,
        setup.heads,
        state=State(),
        stage=STAGE,
    )
    facts = export.model_facts(
        model,
        train=job.train,
        heads=setup.heads,
        resize=setup.transform.resize,
        normalize=setup.transform.normalize,
        calibrated=Fitted(temperature=told.get("temperature"), threshold=told.get("threshold")),
    )
    images = data.sample_images(setup.held_out, 8)
    export.export(model, setup.source, facts, images, job.model_dir)


def hold(model: keras.Model, sparsity: float) -> float:
    """Sets the smallest weights of each kernel to zero and has them held there.

    Kernels are trainable variables of two dimensions or more; biases and normalizations stay.

    Args:
      model: changed in place.
      sparsity: the share of each kernel, above 0 and below 1.

    Returns:
      The share of all the model's weights that is zero now.
    """
    pruned = 0
    for variable in model.trainable_variables:
        if len(variable.shape) < 2:
            continue
        kept = mask(np.asarray(variable), sparsity)
        variable.constraint = Held(kept)
        variable.assign(variable.constraint(variable))
        pruned += int(kept.size - kept.sum())
    return pruned / max(model.count_params(), 1)


def mask(weights: npt.NDArray[np.float32], sparsity: float) -> npt.NDArray[np.bool_]:
    """Returns which weights stay: all but the share `sparsity` of the smallest magnitudes.

    Of equal magnitudes the first in memory go, so that the share holds whatever the weights.
    """
    order = np.argsort(np.abs(weights), axis=None, kind="stable")
    kept = np.ones(weights.size, np.bool_)
    kept[order[: round(sparsity * weights.size)]] = False
    return kept.reshape(weights.shape)
