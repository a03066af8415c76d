"""Fitting a Keras model: its phases, optimizer, losses and metrics, and resuming.

All randomness derives from (seed, epoch, step): the data's order from (seed, epoch), and the random
layers' generators are set from it at each epoch's start and count their steps from there. So an
epoch is the same whether training came to it in one go or was resumed before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras

from pipeline import events, models, phases
from pipeline.config import Train
from pipeline.errors import ConfigError
from pipeline.heads import Head
from pipeline.models import freezing
from pipeline.phases import Phase
from pipeline.trainer import losses, optimizers
from pipeline.trainer.checkpoints import Checkpoints, State
from pipeline.trainer.data import Batches
from pipeline.trainer.fit_callbacks import Keeper, Progress, Randomness, phase_losses
from pipeline.trainer.fit_callbacks import (
    NotFinite as NotFinite,  # what `fit` raises, by its name here
)

MakeBatches = Callable[[int], Batches]
"""Takes the number of finished epochs; `Batches.train` begins with the next one."""

Loop = Callable[[keras.Model, Batches, int, int, Sequence[keras.callbacks.Callback]], None]
"""Takes the model, the batches, the number of finished epochs, that of the phase's last epoch, and
callbacks; runs epochs as `keras_loop` does, until the model's `stop_training`."""


def history(state: State, resumed_from: int | None, examples: int) -> dict[str, Any]:
    """Returns the content of history.json; `examples` are those of an epoch."""
    epochs = state.epochs
    rows = []
    for epoch in epochs:
        row = {name: value for name, value in vars(epoch).items() if name != "fit_seconds"}
        rows.append({name: value for name, value in row.items() if name != "heads" or value})
    fitting = sum(epoch.fit_seconds for epoch in epochs)
    return {
        "epochs": rows,
        "phases": [asdict(phase) for phase in state.phases],
        "best_epoch": state.best_epoch,
        "stopped_early": state.stopped_early,
        "resumed_from": resumed_from,
        "seconds": round(sum(epoch.seconds for epoch in epochs), 3),
        "images_per_second": round(examples * len(epochs) / max(fitting, 1e-9), 1),
    }


def compile_model(
    model: keras.Model,
    train: Train,
    heads: Sequence[Head],
    steps_per_epoch: int,
    phase: Phase | None = None,
) -> None:
    """Sets what a phase trains, and gives the model a fresh optimizer, losses and metrics.

    Called in the scope of the strategy that the model's variables belong to.

    Args:
      model: of `models.build`.
      train: the configuration, completed.
      heads: the model's.
      steps_per_epoch: batches of an epoch.
      phase: by default the first.

    Raises:
      ConfigError: a phase can't train what it names, or ends before its first update.
    """
    plan = phases.plan(train)
    for number, each in enumerate(plan, 1):  # the later ones too: the epochs before would be lost
        _check_phase(model, train, each, number, steps_per_epoch)
    phase = phase or plan[0]
    if train.phases or train.weights:  # else a network of the user's own keeps what it froze
        freezing.unfreeze(model, phase.unfreeze, keep_statistics=bool(train.weights))
    fitted_by: Any = {head.name: losses.loss(head, train) for head in heads}
    measured: Any = {head.name: [losses.metric(head)] for head in heads}
    weights: Any = {head.name: head.weight for head in heads}
    if len(heads) == 1:
        [fitted_by], [measured], weights = fitted_by.values(), measured.values(), None
    model.compile(
        optimizer=optimizers.make(train, phase, steps_per_epoch, model.trainable_variables),
        loss=fitted_by,
        loss_weights=weights,
        metrics=measured,
        jit_compile=train.xla,
    )
    model.optimizer.build(model.trainable_variables)


def _check_phase(
    model: keras.Model, train: Train, phase: Phase, number: int, steps_per_epoch: int
) -> None:
    if train.phases:
        freezing.first_trained(model, phase.unfreeze)
    batches = phase.epochs * steps_per_epoch
    if train.accumulate > batches:
        where, longer = "there are", "raise train.epochs"
        if train.phases:
            where, longer = f"phase {number} of train.phases has", "give it more epochs"
        raise ConfigError(
            f"train.accumulate={train.accumulate} adds up more batches than {where}: {batches}, "
            f"by {phase.epochs} epochs of {steps_per_epoch}: nothing would be learned. Lower it "
            f"or train.batch_size, or {longer}."
        )


def restore(model: keras.Model, state: State) -> None:
    """Puts a checkpoint's weights and optimizer into a compiled model of the same shape."""
    models.set_weights(model, state.weights)
    for variable, value in zip(model.optimizer.variables, state.optimizer, strict=True):
        variable.assign(value)


def keras_loop(
    model: keras.Model,
    batches: Batches,
    done: int,
    last: int,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    """Runs the epochs behind `done` up to `last` with Keras's own loop."""
    model.fit(
        batches.train,
        epochs=last,
        initial_epoch=done,
        steps_per_epoch=batches.steps,
        validation_data=batches.held_out,
        callbacks=list(callbacks),
        shuffle=False,  # the batches are shuffled already; Keras would warn that it can't
        verbose=0,
    )


def fit(
    model: keras.Model,
    make_batches: MakeBatches,
    train: Train,
    heads: Sequence[Head],
    *,
    state: State,
    run_dir: Path | None = None,
    checkpoints: Checkpoints | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    loop: Loop = keras_loop,
    stage: str = "Trainer",
) -> State:
    """Trains phase by phase from the state's epoch on, until the last phase is over.

    A phase begins with the best weights so far and a fresh optimizer; it ends behind its last epoch
    or when eval loss has stopped improving. Restores what the state holds.

    Args:
      model: of `models.build`, compiled or not.
      make_batches: gives the batches from an epoch on.
      train: the configuration, completed.
      heads: the model's.
      state: the last finished epoch's, or an empty one. Of a training that was killed behind its
        last epoch the logs and the weights are brought back, and nothing is trained.
      run_dir: gets TensorBoard's logs, those of the epochs before included.
      checkpoints: written at each epoch's end.
      callbacks: called before ours, with the evaluated weights in the model at an epoch's end.
      loop: runs the epochs.
      stage: whose progress the events are.

    Returns:
      The last epoch's state; the model has the best epoch's weights.

    Raises:
      NotFinite: the loss became infinite or not a number.
      ConfigError: a phase can't train what it names.
    """
    plan = phases.plan(train)
    keeper = Keeper(train, heads, run_dir, checkpoints, state)
    try:
        while not keeper.state.finished:
            number = _next_phase(plan, keeper.state)
            done = len(keeper.state.epochs)
            batches = make_batches(done)
            begun = _begin(model, train, heads, batches.steps, plan, number, keeper.state)
            _tell(plan, number, model, goes_on=begun > 0)
            keeper.begin(model, plan[number], last=number == len(plan) - 1)
            epochs = sum(phase.epochs for phase in plan)
            told = Progress(stage, epochs, batches.examples, batches.steps, len(heads) > 1)
            last = done - begun + plan[number].epochs
            around = [Randomness(train.seed), told, *callbacks, keeper]
            loop(model, batches, done, last, around)
    finally:
        keeper.close()
    models.set_weights(model, keeper.state.best_weights)
    return keeper.state


def _next_phase(plan: Sequence[Phase], state: State) -> int:
    """Returns the index of the phase that the next epoch belongs to."""
    if not state.phases:
        return 0
    current = len(state.phases) - 1
    return current + 1 if phases.over(plan[current], phase_losses(state)) else current


def _begin(
    model: keras.Model,
    train: Train,
    heads: Sequence[Head],
    steps: int,
    plan: Sequence[Phase],
    number: int,
    state: State,
) -> int:
    """Compiles the model for a phase, restores it, and returns how many epochs the phase has."""
    with model.distribute_strategy.scope():
        compile_model(model, train, heads, steps, plan[number])
        if number < len(state.phases):
            restore(model, state)
            return state.phases[number].epochs
        if state.best_weights:
            models.set_weights(model, state.best_weights)
    return 0


def _tell(plan: Sequence[Phase], number: int, model: keras.Model, goes_on: bool) -> None:
    if len(plan) == 1:
        return
    phase = plan[number]
    trained = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    events.note(
        f"Phase {number + 1} of {len(plan)}, {phase.name}, {'goes on' if goes_on else 'begins'}: "
        f"up to {phase.epochs} epochs at learning rate {phase.learning_rate:g}, "
        f"{trained:,} of {model.count_params():,} parameters trained."
    )
