"""What every process that trains does, Trainer's and Tuner's: data, model and batches of a job.

    setup = prepare(job)
    model = make_model(setup, train)
    batches = make_batches(setup, train, first_epoch=0)

`train` may differ from the job's own from one model to the next, as it does in a search; what
comes from the transform graph is kept in between.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import keras
import numpy as np
import tensorflow as tf

from pipeline import events, export, heads, models, phases
from pipeline.blessing import calibration
from pipeline.blessing.calibration import Fitted
from pipeline.config import Calibration, Train, Transform
from pipeline.errors import ConfigError, bounded
from pipeline.heads import Head
from pipeline.models import freezing
from pipeline.trainer import board, data, devices, fitting, loop
from pipeline.trainer.checkpoints import Checkpoints, State
from pipeline.trainer.data import Batches, Input, Layout, Loaded, Records
from pipeline.trainer.devices import Devices
from schemas import image_schema

if TYPE_CHECKING:
    from pipeline.trainer.train import Job


# Of batch normalizations: what an epoch leaves of the averages before it is e to minus this; and
# the least momentum, with which some two batches count.
_FOLLOWED: Final = 5.0
_LEAST_MOMENTUM: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a job's models have in common.

    Attributes:
      heads: the label's, then those of train.heads.
      source: the transform graph.
      fitted_on: the split train.
      held_out: the split eval.
      train: the job's own section.
      transform: the section, its image size and channels set.
      calibration: the section.
      calib: the split calib; None where calibration is off.
      scratch: a directory for images kept on disk.
      devices: what this process computes on.
    """

    heads: tuple[Head, ...]
    source: Input
    fitted_on: Records
    held_out: Records
    train: Train
    transform: Transform
    scratch: Path
    devices: Devices
    calibration: Calibration = field(default_factory=Calibration)
    calib: Records | None = None

    @functools.cached_property
    def loaded(self) -> Loaded:
        """The splits behind the transform graph, read when they are first asked for."""
        return data.load(self.source, self.fitted_on, self.held_out, self.train.cache, self.scratch)

    def layout(self, train: Train) -> Layout:
        """Returns how batches are cut for the devices."""
        assert train.batch_size
        return Layout(
            batch_size=self.devices.batch_size(train.batch_size, self.fitted_on.examples),
            worker=self.devices.worker,
            workers=self.devices.workers,
            whole=self.devices.whole_batches,
            multiple=self.devices.replicas,
        )

    def steps(self, train: Train) -> int:
        """Returns the batches of an epoch."""
        layout = self.layout(train)
        full, rest = divmod(self.fitted_on.examples, layout.batch_size)
        return full + (1 if rest and not layout.whole else 0)


def prepare(job: Job) -> Setup:
    """Opens the devices and finds the data.

    Raises:
      ConfigError: the devices that train.strategy asks for are not there, or the split calib is
        too small for what it has to show.
      DataRefused: a split has no examples, or a class has a name that calibration needs.
    """
    transform = job.transform
    assert transform.image_size
    assert transform.channels
    opened = devices.open_devices(job.train)
    classes = image_schema.read_classes(job.schema_path)
    more = image_schema.head_classes(job.schema_path) if job.train.heads else {}
    answers = heads.of(job.train, classes, more)
    calib = data.scan(job.calib_files) if job.calib_files else None
    if calib is not None:
        calibration.check(job.calibration, classes, calib.examples)
    setup = Setup(
        heads=answers,
        source=Input(job.transform_graph, transform.image_size, transform.channels, answers),
        fitted_on=data.scan(job.train_files),
        held_out=data.scan(job.eval_files),
        train=job.train,
        transform=transform,
        scratch=job.checkpoints,
        devices=opened,
        calibration=job.calibration,
        calib=calib,
    )
    if setup.held_out.examples < opened.replicas:
        raise ConfigError(
            f"train.strategy={opened.kind} spreads each batch over {opened.replicas} devices, and "
            f"eval has {setup.held_out.examples} images. Use train.devices=1, or give eval more "
            "(ingest.split)."
        )
    size = setup.layout(job.train).batch_size
    if size != job.train.batch_size:
        events.note(
            f"A step takes {size} images, not {job.train.batch_size} (train.batch_size): a "
            f"multiple of {opened.replicas} devices, and no more than there are."
        )
    return setup


def make_model(setup: Setup, train: Train) -> keras.Model:
    """Returns a new compiled network, its variables where the strategy puts them.

    Randomness begins anew from train.seed: the same values give the same weights.

    Raises:
      ConfigError: train.xla, and a layer that XLA can't compile.
    """
    assert setup.transform.image_size
    assert setup.transform.channels
    keras.utils.set_random_seed(train.seed)
    with setup.devices.strategy.scope(), devices.precision(train):
        model = models.build(
            train,
            image_size=setup.transform.image_size,
            channels=setup.transform.channels,
            heads=setup.heads,
        )
        _settle_statistics(setup, model, train)
        fitting.compile_model(model, _shared(setup, train), setup.heads, setup.steps(train))
    if train.xla and not model.jit_compile:
        refused = [layer.name for layer in model.layers if not layer.supports_jit]
        raise ConfigError(
            f"train.xla=true, and XLA can't compile this network: {bounded(refused)}. "
            "Leave train.xla out, or choose another network."
        )
    return model


def _settle_statistics(setup: Setup, model: keras.Model, train: Train) -> None:
    """Sets how batch normalizations come to the statistics that evaluation uses.

    On several devices they take those of the whole batch, not of a device's share: they then
    normalize as on one device, and all replicas keep the same moving averages. In a preset, and in
    a backbone that starts from nothing, the averages follow within an epoch. Those of Keras take
    500 steps or more; by then a small data set is trained to the end, and the model answers at
    random.
    """
    followed = max(_LEAST_MOMENTUM, 1 - _FOLLOWED / setup.steps(train))
    for layer in freezing.normalizations(model):
        if setup.devices.replicas > 1:
            layer.synchronized = True
        if not (train.model or train.weights):
            layer.momentum = min(layer.momentum, followed)


def make_batches(setup: Setup, train: Train, first_epoch: int) -> Batches:
    """Returns what a model is fitted on, behind `first_epoch` epochs already done."""
    layout = setup.layout(train)
    batches = data.batches_of(setup.loaded, train, layout=layout, first_epoch=first_epoch)
    if layout.workers == 1:
        return batches
    held_out = batches.held_out.map(functools.partial(_share, layout))
    return replace(batches, held_out=held_out.prefetch(tf.data.AUTOTUNE))


def _share(layout: Layout, pixels: tf.Tensor, targets: Any) -> tuple[tf.Tensor, Any]:
    """Returns this worker's rows of a batch of eval; the metrics are added up over all workers."""

    def rows(values: tf.Tensor) -> tf.Tensor:
        return values[layout.worker :: layout.workers]

    return rows(pixels), tf.nest.map_structure(rows, targets)


def fit(
    setup: Setup,
    model: keras.Model,
    train: Train,
    *,
    state: State,
    run_dir: Path,
    checkpoints: Checkpoints,
    stage: str = "Trainer",
) -> State:
    """Trains on the setup's devices; see `fitting.fit`. Of several workers the chief writes."""
    chief = setup.devices.chief
    return fitting.fit(
        model,
        lambda done: make_batches(setup, train, done),
        _shared(setup, train),
        setup.heads,
        state=state,
        run_dir=run_dir if chief else None,
        checkpoints=checkpoints if chief else None,
        callbacks=_board(setup, train, run_dir, len(state.epochs)),
        loop=loop.run if setup.devices.own_loop else fitting.keras_loop,
        stage=stage,
    )


def _board(setup: Setup, train: Train, run_dir: Path, done: int) -> list[keras.callbacks.Callback]:
    """Returns what TensorBoard is shown beside the curves, behind `done` epochs already trained."""
    if setup.devices.own_loop:
        # One worker can't predict alone: normalization layers ask the others for their averages.
        return []
    return board.callbacks(
        train,
        setup.heads,
        run_dir,
        samples=lambda: setup.source.read(setup.fitted_on),
        held_out=functools.cache(lambda: data.held_out(setup.loaded, setup.layout(train))),
        value_range=setup.source.value_range,
        steps=(sum(phase.epochs for phase in phases.plan(train)) - done) * setup.steps(train),
    )


def export_model(setup: Setup, model: keras.Model, train: Train, model_dir: Path) -> None:
    """Writes the SavedModel of a trained model: on one device, in float32, and calibrated."""
    plain = _plain(setup, model, train)
    facts = export.model_facts(
        plain,
        train=train,
        heads=setup.heads,
        resize=setup.transform.resize,
        normalize=setup.transform.normalize,
        calibrated=_calibrated(setup, plain),
    )
    export.export(plain, setup.source, facts, data.sample_images(setup.held_out, 8), model_dir)


def _calibrated(setup: Setup, plain: keras.Model) -> Fitted:
    """Fits temperature and threshold on the split calib, which nothing else has looked at."""
    if setup.calib is None:
        return Fitted()
    events.progress("Trainer", 0, setup.calib.examples, "images", "calibrating")
    said, truth = [], []
    for pixels, targets in setup.source.read(setup.calib):
        said.append(data.unpacked(plain.predict_on_batch(pixels))[heads.LABEL])
        truth.append(data.unpacked(targets)[heads.LABEL].numpy())
    fitted = calibration.fit(np.concatenate(said), np.concatenate(truth), setup.calibration)
    if fitted.temperature == calibration.UNTOLD:
        events.warn(
            f"The {setup.calib.examples:,} images of the split calib tell no temperature: as when "
            "all of them are answered rightly. The probabilities stay the network's own. Add "
            "images, or raise calibration.share."
        )
    if setup.calibration.target_precision is not None and fitted.threshold is None:
        events.warn(
            f"No threshold shows a precision of {setup.calibration.target_precision:g} on the "
            f"{setup.calib.examples:,} images of the split calib (calibration.target_precision): "
            "the model will not be blessed."
        )
    return fitted


def _plain(setup: Setup, model: keras.Model, train: Train) -> keras.Model:
    """Returns a model with the same weights whose layers know of no strategy and no precision."""
    if setup.devices.kind in ("cpu", "gpu") and train.precision == "float32":
        return model
    assert setup.transform.image_size
    assert setup.transform.channels
    plain = models.rebuild(
        models.architecture(train),
        image_size=setup.transform.image_size,
        channels=setup.transform.channels,
        heads=setup.heads,
        assets=None,
    )
    models.set_weights(plain, model.get_weights())
    return plain


def _shared(setup: Setup, train: Train) -> Train:
    """Returns the section as each replica sees it.

    Keras clips a replica's share of the gradient before the shares are added: with the bound
    divided as well, the sum stays below it.
    """
    return train.model_copy(update={"clip_norm": train.clip_norm / setup.devices.replicas})
