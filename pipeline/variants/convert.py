"""From an exported model to a TensorFlow Lite file that takes pixels as bytes.

The network is built anew from its `model.json` and weights, the scaling of pixels is put in front
of it, and what `keras.Model.export` writes of that is converted. (Converting the served SavedModel
itself ends the process, or gives an empty network: tf.Module's signatures are not understood.)
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline import export, features
from pipeline.config.variants import VariantName
from pipeline.errors import SafelightError
from pipeline.heads import LABEL, Head
from pipeline.variants.job import FACTS, LABELS
from pipeline.variants.pixels import Bytes

# The layer that gives the label's probabilities (`pipeline.models`).
_ANSWER: Final = features.OUT_PROBABILITIES

_MISSING_OP: Final = re.compile(r"'(tf\.\w+)' op is neither a custom op nor a flex op")
_SELECT_OPS: Final = re.compile(r"TF Select ops: ([\w, ]+)")
_NOT_QUANTIZED: Final = re.compile(r"Quantization not yet supported for op: '?(\w+)")


@dataclass(frozen=True)
class Network:
    """A network that takes pixels in 0-255, and gives its answers by the signature's names.

    Attributes:
      model: uint8 (or float32) [1, side, side, channels] to a dict of its outputs.
      directory: the SavedModel that `keras.Model.export` wrote of it.
    """

    model: keras.Model
    directory: Path


def load(directory: Path, temperature: float | None) -> keras.Model:
    """Builds an exported model's network with its weights, the label's temperature in them.

    Dividing the last layer's kernel and bias divides the logits: no operation is added, which
    integers would blur.

    Args:
      directory: the export.
      temperature: of its model.json; None or 1 changes nothing.
    """
    model = export.load_weights(directory)
    if temperature:
        layer = model.get_layer(_ANSWER)
        layer.set_weights([values / temperature for values in layer.get_weights()])
    return model


def output_name(head: Head) -> str:
    """Returns what a head's output is called: as in the signature `serving_default`."""
    return head.probabilities if head.kind == "class" else head.name


def network(
    model: keras.Model,
    heads: Sequence[Head],
    scaling: tuple[Sequence[float], Sequence[float]],
    kind: str,
    directory: Path,
) -> Network:
    """Puts the scaling of pixels in front of a model, and exports both together.

    The batch is one image: operations whose shapes are known are faster, and small devices run
    nothing else.

    Args:
      model: float32 [batch, side, side, channels] to its heads' answers.
      heads: the model's, the label's first.
      scaling: of `pixels.scaling`.
      kind: of the input, `uint8` or `float32`; in 0-255 either way.
      directory: for the SavedModel.
    """
    shape = (1, *model.input_shape[1:])
    pixels = keras.Input(batch_shape=shape, dtype=kind, name=features.PIXELS)
    scale, offset = (list(values) for values in scaling)
    said = model(keras.layers.Rescaling(scale, offset, name="bytes")(pixels), training=False)
    said = said if isinstance(said, Mapping) else {LABEL: said}
    outputs = {output_name(head): said[head.name] for head in heads}
    whole = keras.Model(pixels, outputs, name="variant")
    # Left to itself, Keras would export any number of images.
    taken = tf.TensorSpec(shape, kind, name=features.PIXELS)
    whole.export(str(directory), verbose=False, input_signature=[taken])
    return Network(whole, directory)


def converted(name: VariantName, exported: Network, representative: Bytes | None) -> bytes:
    """Returns a TensorFlow Lite model.

    Args:
      name: one of those that begin with `tflite`.
      exported: with the input float32 for `tflite-int8`, with uint8 for the others.
      representative: training images, uint8 [images, side, side, channels]; for `tflite-int8`.

    Raises:
      Exception: of many kinds; `reason` says it in a sentence.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(str(exported.directory))
    if name != "tflite-float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if name == "tflite-float16":
        converter.target_spec.supported_types = [tf.float16]
    if name == "tflite-int8":
        assert representative is not None
        converter.representative_dataset = lambda: _fed(representative)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.uint8
    content: bytes = converter.convert()
    return content


def _fed(images: Bytes) -> Iterator[list[npt.NDArray[np.float32]]]:
    for image in images:
        yield [image[np.newaxis].astype(np.float32)]


def reason(name: str, error: Exception) -> str:
    """Says in one sentence why a network could not be converted."""
    if isinstance(error, SafelightError):
        return f"{name} could not be made: {error}"
    text = str(error)
    missing = sorted({match[3:] for match in _MISSING_OP.findall(text)})
    selected = _SELECT_OPS.search(text)
    if selected:
        missing = sorted({op.strip() for op in selected[1].split(",")})
    if missing:
        return (
            f"{name} could not be made: TensorFlow Lite has no {', '.join(missing)}, which this "
            "network uses. Leave the variant out of variants.names, or train another network."
        )
    blurred = sorted(set(_NOT_QUANTIZED.findall(text)))
    if blurred:
        return (
            f"{name} could not be made: {', '.join(blurred)} has no form in integers. Use "
            "tflite-int8-dynamic, which keeps such operations in floats."
        )
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    said = f"{type(error).__name__}: {line[:300].rstrip('.')}"
    return f"{name} could not be made: {said}. The run's log has the converter's words."


def write(path: Path, content: bytes, labels: Sequence[str], facts: Mapping[str, Any]) -> None:
    """Writes a TensorFlow Lite file with its labels and facts inside, and beside it.

    Files inside of a model are a ZIP archive behind it, as TensorFlow Lite's own metadata have
    them: the interpreter reads the one, and any ZIP reader the other.

    Args:
      path: of the model; its folder gets labels.txt and model.json too.
      content: the model.
      labels: class names, a line each in labels.txt (a line break in a name becomes a space).
      facts: model.json.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(" ".join(name.splitlines()) + "\n" for name in labels)
    files = {LABELS: lines, FACTS: json.dumps(facts, indent=2, ensure_ascii=False) + "\n"}
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        for name, text in files.items():
            # Without the time of day: the same model is the same file.
            archive.writestr(zipfile.ZipInfo(name), text)
    for name, text in files.items():
        (path.parent / name).write_text(text, encoding="utf-8")
