"""The peer of benchmarks/speed.py: the same network on the same files by Keras alone.

    python -m benchmarks.plain_keras DATA [--epochs 10] [--seed 17]

DATA has train/<class>/ and test/<class>/. An eighth of train is held out, as Safelight does with
its default split. Prints one JSON object: seconds of the whole script, of fitting, images a second
after the first epoch (which fills the cache), and the accuracy on test.
"""

from __future__ import annotations

import argparse
import json
import time

STARTED = time.monotonic()

import keras  # noqa: E402 - its import is part of what is measured
from keras import layers  # noqa: E402

SIZE, BATCH, HELD_OUT = (32, 32), 128, 0.125


def load(folder: str, shuffle: bool, **options: object):
    images = keras.utils.image_dataset_from_directory(
        folder,
        label_mode="categorical",
        image_size=SIZE,
        batch_size=BATCH,
        shuffle=shuffle,
        **options,
    )
    scaled = images.map(lambda pixels, label: (pixels / 255.0, label))
    return scaled.cache(), len(images.file_paths), len(images.class_names)


def network(classes: int) -> keras.Model:
    stack = [layers.Input((*SIZE, 3))]
    for filters in (32, 64):
        stack += [
            layers.Conv2D(filters, 3, padding="same", activation="relu"),
            layers.Conv2D(filters, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Dropout(0.25),
        ]
    stack += [
        layers.Flatten(),
        layers.Dense(512, activation="relu"),
        layers.Dropout(0.5),
        layers.Dense(classes, activation="softmax"),
    ]
    model = keras.Sequential(stack)
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    return model


class EpochSeconds(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self._began = time.monotonic()
        self._training: float | None = None

    def on_test_begin(self, logs: object = None) -> None:
        self._training = time.monotonic() - self._began

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.seconds.append(self._training or time.monotonic() - self._began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=17, help="of weights, dropout and order")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    split = {"validation_split": HELD_OUT, "seed": 17}
    train, count, classes = load(f"{arguments.data}/train", True, subset="training", **split)
    held_out, _, _ = load(f"{arguments.data}/train", True, subset="validation", **split)
    test, _, _ = load(f"{arguments.data}/test", False)
    model = network(classes)
    clock = EpochSeconds()
    began = time.monotonic()
    model.fit(
        train.shuffle(1000).prefetch(2),
        validation_data=held_out,
        epochs=arguments.epochs,
        verbose=0,
        callbacks=[clock],
    )
    fit = time.monotonic() - began
    _, accuracy = model.evaluate(test, verbose=0)
    later = clock.seconds[1:] or clock.seconds
    print(
        json.dumps(
            {
                "seconds": time.monotonic() - STARTED,
                "fit_seconds": fit,
                "images_per_second": count * len(later) / sum(later),
                "accuracy": accuracy,
                "images": count,
                "parameters": model.count_params(),
            }
        )
    )


if __name__ == "__main__":
    main()
