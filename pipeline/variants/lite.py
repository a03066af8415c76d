"""Asking a TensorFlow Lite file: as its own interpreter answers, one image at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline.features import PIXELS
from pipeline.variants.pixels import Bytes

Floats = npt.NDArray[np.float32]


class Lite:
    """A TensorFlow Lite file in an interpreter of one thread; for use by one thread alone."""

    def __init__(self, path: Path) -> None:
        """Loads the file.

        Raises:
          ValueError, RuntimeError: it is damaged, or has operations that are not known here.
        """
        self._interpreter = tf.lite.Interpreter(model_path=str(path), num_threads=1)
        self._interpreter.allocate_tensors()
        runner = self._interpreter.get_signature_runner()
        self._input: Mapping[str, Any] = runner.get_input_details()[PIXELS]
        self._outputs: dict[str, Mapping[str, Any]] = runner.get_output_details()

    def answer(self, pixels: Bytes) -> None:
        """Computes the answers to uint8 [1, side, side, channels]; `output` has them."""
        self._interpreter.set_tensor(self._input["index"], pixels)
        self._interpreter.invoke()

    def step(self, name: str) -> float:
        """Returns what two neighbouring values of an output stand apart; 0.0 for floats."""
        return float(self._outputs[name]["quantization"][0])

    def output(self, name: str) -> Floats:
        """Returns an output of the last answer, float32 [1, ...]: integers as what they stand for.

        Raises:
          KeyError: there is no such output.
        """
        details = self._outputs[name]
        found = self._interpreter.get_tensor(details["index"])
        scale, zero = details["quantization"]
        if scale:
            found = (found.astype(np.float32) - zero) * np.float32(scale)
        return np.asarray(found, np.float32)

    def described(self) -> dict[str, Any]:
        """Returns type, shape, scale and zero point of the input and of each output, as JSON."""
        return {
            "input": _described(PIXELS, self._input),
            "outputs": [_described(name, one) for name, one in self._outputs.items()],
        }


def _described(name: str, details: Mapping[str, Any]) -> dict[str, Any]:
    scale, zero = details["quantization"]
    told = {
        "name": name,
        "type": np.dtype(details["dtype"]).name,
        "shape": [int(size) for size in details["shape"]],
    }
    return {**told, "scale": float(scale), "zero_point": int(zero)} if scale else told


def probabilities(path: Path, pixels: Bytes, output: str) -> Floats:
    """Returns what a file answers about each image, float32 [images, classes].

    Args:
      path: the file.
      pixels: uint8 [images, side, side, channels].
      output: the output's name.
    """
    # The interpreter lets other Python threads run while it computes.
    workers = max(1, min(len(os.sched_getaffinity(0)), len(pixels)))
    parts = np.array_split(np.arange(len(pixels)), workers)

    def ask(rows: npt.NDArray[np.int64]) -> list[Floats]:
        lite = Lite(path)
        answers = []
        for row in rows:
            lite.answer(np.asarray(pixels[row : row + 1]))
            answers.append(lite.output(output)[0])
        return answers

    with ThreadPoolExecutor(workers) as pool:
        return np.stack([one for answers in pool.map(ask, parts) for one in answers])
