"""What TensorBoard shows beside the curves: images, the confusion matrix by epoch, a profile.

`callbacks` makes the Keras callbacks for what train.board_images and train.profile_steps ask for.
The curves are `pipeline.trainer.fit_callbacks`'s. All of it is for the label's head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline import events
from pipeline.config import Train
from pipeline.heads import LABEL, Head
from pipeline.trainer import augment

# Names of more classes would be too small to be read.
_NAMED: Final = 30
# Counts in the cells of more classes would be, too.
_COUNTED: Final = 15

Pixels = npt.NDArray[np.float32]
Range = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


def callbacks(
    train: Train,
    heads: Sequence[Head],
    run_dir: Path,
    samples: Callable[[], tf.data.Dataset],
    held_out: Callable[[], tf.data.Dataset],
    value_range: Callable[[], Range | None],
    steps: int,
) -> list[keras.callbacks.Callback]:
    """Returns the callbacks that the configuration asks for; none by default.

    Args:
      train: the configuration.
      heads: the model's.
      run_dir: gets the logs, in folders of their own beside `train` and `validation`.
      samples: gives batches of (pixels, targets) of the split train, not augmented.
      held_out: gives the split eval once, the same way; targets of one head are int64 [batch],
        of several a dict by the head's name.
      value_range: gives what black and white are among the pixels, float32 [channels] each; None
        stands for 0 and 1.
      steps: of all epochs that are still to be trained; 0 where none is.
    """
    made: list[keras.callbacks.Callback] = []
    if train.board_images:
        [label] = [head for head in heads if head.name == LABEL]
        made += [
            Samples(train, run_dir / "samples", samples, value_range),
            ConfusionByEpoch(label.classes, run_dir / "confusion", held_out),
        ]
    if train.profile_steps:
        profile = Profile(train.profile_steps, run_dir)
        if 0 < steps < profile.first:
            events.warn(
                f"train.profile_steps={train.profile_steps} begins behind the last step: there are "
                f"at most {steps:,}, and no profile. Set it to steps among them."
            )
        made.append(profile)
    return made


class Samples(keras.callbacks.Callback):
    """Shows images as the network gets them, and the same ones augmented."""

    def __init__(
        self,
        train: Train,
        folder: Path,
        batches: Callable[[], tf.data.Dataset],
        value_range: Callable[[], Range | None],
    ) -> None:
        super().__init__()
        self._range = value_range
        self._train = train
        self._folder = folder
        self._batches = batches
        self._shown = False

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        if self._shown:  # the second phase of one training
            return
        self._shown = True
        count = self._train.board_images
        batch = next(iter(self._batches().take(1)))
        pixels = _visible(_spread(np.asarray(batch[0], np.float32), count), self._range())
        writer = tf.summary.create_file_writer(str(self._folder))
        with writer.as_default(step=0):
            tf.summary.image("train", pixels, max_outputs=count)
            if self._train.augment:
                changed = augment.preview(self._train.augment, pixels, self._train.seed)
                tf.summary.image("train, augmented", np.clip(changed, 0, 1), max_outputs=count)
        writer.close()


class ConfusionByEpoch(keras.callbacks.Callback):
    """Draws the confusion matrix of the split eval at each epoch's end.

    It costs another pass over eval: Keras's own evaluation keeps no answers.
    """

    def __init__(
        self, classes: Sequence[str], folder: Path, held_out: Callable[[], tf.data.Dataset]
    ) -> None:
        super().__init__()
        self._classes = tuple(classes)
        self._folder = folder
        self._held_out = held_out

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        counts = confusion(self.model, self._held_out(), len(self._classes))
        writer = tf.summary.create_file_writer(str(self._folder))
        with writer.as_default(step=epoch + 1):
            tf.summary.image("confusion matrix of eval", drawn(counts, self._classes)[None])
        writer.close()


class Profile(keras.callbacks.Callback):
    """Has TensorFlow's profiler look at some steps, counted from 1 through all epochs."""

    def __init__(self, steps: str, run_dir: Path) -> None:
        """Takes `10` or `10-20`."""
        super().__init__()
        first, _, last = steps.partition("-")
        self.first, self._last = int(first), int(last or first)
        self._run_dir = run_dir
        self._step = 0
        self._running = False

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self._step += 1
        if self._step == self.first:
            tf.profiler.experimental.start(str(self._run_dir))
            self._running = True

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if self._step >= self._last:
            self._stop()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._running:
            tf.profiler.experimental.stop()
            self._running = False


def confusion(model: keras.Model, batches: tf.data.Dataset, classes: int) -> npt.NDArray[np.int64]:
    """Counts a model's answers: int64 [classes, classes], rows by the truth.

    Args:
      model: with the label's probabilities, alone or in a dict by the head's name.
      batches: (pixels, targets) once; a target below 0 isn't counted.
      classes: how many the label has.
    """
    answers = model.predict(batches.map(lambda pixels, *_: pixels), verbose=0)
    probabilities = answers[LABEL] if isinstance(answers, dict) else answers
    predicted = np.argmax(probabilities, axis=-1)
    truth = np.concatenate([_labels(batch[1]) for batch in batches])
    counts = np.zeros((classes, classes), np.int64)
    known = truth >= 0
    np.add.at(counts, (truth[known], predicted[known]), 1)
    return counts


def drawn(counts: npt.NDArray[np.int64], classes: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Draws a confusion matrix: uint8 [height, width, 3], each row shaded by its shares."""
    # Matplotlib takes a moment to import, and few runs want it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = min(4.0 + 0.3 * len(classes), 12.0)
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= _NAMED:
        axes.set_xticks(range(len(classes)), [_plain(name) for name in classes], rotation=90)
        axes.set_yticks(range(len(classes)), [_plain(name) for name in classes])
    if len(classes) <= _COUNTED:
        for row, column in np.ndindex(*counts.shape):
            dark = shares[row, column] > 0.5
            axes.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                color="white" if dark else "black",
            )
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _plain(name: str) -> str:
    """A dollar sign begins a formula to Matplotlib."""
    return name.replace("$", r"\$")


def _labels(targets: Any) -> npt.NDArray[np.int64]:
    label = targets[LABEL] if isinstance(targets, dict) else targets
    return np.asarray(label, np.int64).reshape(-1)


def _spread(pixels: Pixels, count: int) -> Pixels:
    """Returns `count` images spread over a batch: neighbours are often of one class."""
    rows = np.linspace(0, len(pixels) - 1, min(count, len(pixels))).astype(int)
    return pixels[rows]


def _visible(pixels: Pixels, value_range: Range | None) -> Pixels:
    """Returns pixels in 0 to 1, however the transform graph has normalized them."""
    if value_range is None:
        return pixels
    black, white = value_range
    return np.clip((pixels - black) / (white - black), 0, 1)
