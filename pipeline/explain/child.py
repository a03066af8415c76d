"""The explaining process: rebuilds a network, and draws what it looked at, image by image.

    python -m pipeline.explain.child JOB.json

It writes the pictures and explanations.json into the job's folder.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import events, images, lifetime, model_json
from pipeline.errors import SafelightError
from pipeline.explain.job import FILE, Asked, Job

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pipeline.explain.network import Network

_STAGE = "Explainer"


def main() -> None:
    """Runs the job named on the command line; an error of ours is the last line that it says."""
    job = Job.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    lifetime.end_with_parent(job.parent)
    # Ctrl-C reaches every process of the terminal; the parent decides, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    events.configure(job.events or Path(os.devnull))
    try:
        run(job)
    except SafelightError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)


def run(job: Job) -> None:
    """Explains all images and writes explanations.json.

    Raises:
      SafelightError: the model can't be built again.
    """
    view = _view(job)
    job.folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number, asked in enumerate(job.images):
        events.progress(_STAGE, number, len(job.images), "images")
        found.append(_one(view, job, number, asked))
    events.progress(_STAGE, len(job.images), len(job.images), "images")
    text = json.dumps({"images": found}, indent=2, ensure_ascii=False)
    (job.folder / FILE).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


@dataclass(frozen=True)
class _View:
    """The model, and what stands before its network.

    Attributes:
      network: rebuilt, with the export's weights.
      classes: in the order of its scores.
      temperature: what its scores are divided by before the softmax.
      resize: how a picture becomes the square that the network sees.
      pixels: makes float32 [side, side, channels] of an encoded image.
      black: the baseline, of the same shape.
    """

    network: Network
    classes: tuple[str, ...]
    temperature: float
    resize: Any
    pixels: Callable[[bytes], npt.NDArray[np.float32]]
    black: npt.NDArray[np.float32]


def _view(job: Job) -> _View:
    from pipeline import export
    from pipeline.explain.network import Network

    facts = model_json.read(job.model)
    network = Network(export.load_weights(job.model))
    pixels, black = _before(job, facts, network.shape)
    return _View(
        network=network,
        classes=tuple(facts["classes"]),
        temperature=facts.get("temperature") or 1.0,
        resize=facts.get("resize", "stretch"),
        pixels=pixels,
        black=black,
    )


def _before(
    job: Job, facts: Mapping[str, Any], shape: tuple[int, int, int]
) -> tuple[Callable[[bytes], npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    """Returns what makes pixels of an encoded image, and those of a black one."""
    import numpy as np
    import tensorflow as tf

    from pipeline import decode, transform
    from pipeline.records import Input

    side, _, channels = shape
    black = np.zeros(shape, np.float32)
    if job.transform_graph is None:

        def decoded(encoded: bytes) -> npt.NDArray[np.float32]:
            made = decode.decode_and_resize(
                tf.constant([encoded]),
                image_size=side,
                channels=channels,
                resize=facts["resize"],
                max_pixels=images.MOST_PIXELS,
            )
            return np.asarray(made[0])

        return decoded, black
    source = Input(job.transform_graph, side, channels)
    ends = source.value_range()
    if ends is not None:
        black = np.broadcast_to(ends[0], shape).astype(np.float32)

    def transformed(encoded: bytes) -> npt.NDArray[np.float32]:
        return np.asarray(transform.serving_pixels(source.apply, tf.constant([encoded]))[0])

    return transformed, black


def _one(view: _View, job: Job, number: int, asked: Asked) -> dict[str, Any]:
    """Draws one image's pictures and returns what explanations.json says of it."""
    import numpy as np

    from pipeline.explain import attributions, drawing

    encoded = asked.encoded.read_bytes()
    pixels = view.pixels(encoded)
    scores = np.asarray(view.network.scores(pixels[np.newaxis]))[0] / view.temperature
    target = int(scores.argmax())
    if asked.predicted in view.classes:  # a threshold may have made it `unknown`
        target = view.classes.index(asked.predicted)
    chances = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    whole = images.prepare(encoded, min_side=1, max_pixels=images.MOST_PIXELS)
    picture = drawing.shown(whole.pixels)
    picture_file = _saved(picture, job.folder, number, "picture")

    heat = attributions.heat(view.network.feature_map(pixels[np.newaxis], target), pixels)
    gradcam = None
    if not isinstance(heat, str):
        over = drawing.overlay(picture, heat, view.resize)
        gradcam = _saved(over, job.folder, number, "gradcam")
    found = attributions.integrated(view.network, pixels, view.black, target, job.steps)
    marked = drawing.overlay(picture, attributions.brightness(found.values), view.resize)
    return {
        "id": asked.id,
        "why": asked.why,
        "label": asked.label,
        "predicted": asked.predicted or view.classes[target],
        "confidence": float(chances[target]) if asked.confidence is None else asked.confidence,
        "was": asked.was,
        "picture": picture_file,
        "gradcam": gradcam,
        "gradcam_missing": heat if isinstance(heat, str) else None,
        "saliency": _saved(marked, job.folder, number, "saliency"),
        # Integrated gradients add up to the difference of the scores; the rest is the integral's.
        "saliency_gap": round(found.gap, 4),
    }


def _saved(picture: Any, folder: Path, number: int, kind: str) -> str:
    name = f"{number:03d}-{kind}.png"
    picture.save(folder / name, optimize=True)
    return name


if __name__ == "__main__":
    main()
