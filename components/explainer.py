"""Explainer: pictures of what the model looked at, for mistakes and for changed answers.

The pictures decide nothing: where they can't be made, explanations.json says why, and the run goes
on.
"""

import json
import os
import tempfile
from pathlib import Path

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Examples, Model, TransformGraph
from tfx.utils import path_utils

from components import artifacts
from pipeline import events, features, model_json
from pipeline.config import Explain
from pipeline.errors import SafelightError, bounded
from pipeline.evaluator import predictions as answers
from pipeline.explain import choose, job


@component
def Explainer(
    examples: InputArtifact[Examples],
    model: InputArtifact[Model],
    transform_graph: InputArtifact[TransformGraph],
    predictions: InputArtifact[artifacts.Predictions],
    champion_predictions: InputArtifact[artifacts.Predictions],
    explanations: OutputArtifact[artifacts.Explanations],
    options: Parameter[str],
    code: Parameter[str],
) -> None:
    """Writes explanations.json and its pictures.

    Args:
      examples: with a split `test`.
      model: the export whose answers are explained.
      transform_graph: what stands before its network.
      predictions: its answers about `test`.
      champion_predictions: the champion's, or an empty directory.
      explanations: the pictures.
      options: JSON of config.Explain.
      code: fingerprint of the sources, for the cache key.

    Raises:
      SafelightError: an input is damaged.
    """
    del code
    settings = Explain.model_validate_json(options)
    said = answers.read(Path(predictions.uri))
    if said is None:
        raise SafelightError(f"There are no predictions at {predictions.uri}. Run again.")
    chosen = choose.choose(said, answers.read(Path(champion_predictions.uri)), settings.images)
    folder = Path(explanations.uri)
    folder.mkdir(parents=True, exist_ok=True)
    if not chosen:
        _write(folder, "There is nothing to explain: no mistake, and no answer that changed.")
        return
    export = Path(path_utils.serving_model_path(model.uri)).absolute()
    with tempfile.TemporaryDirectory(prefix="safelight-explain-") as scratch:
        work = job.Job(
            model=export,
            transform_graph=Path(transform_graph.uri).absolute(),
            steps=settings.steps,
            folder=folder.absolute(),
            images=_asked(said, chosen, examples.uri, Path(scratch)),
            own=model_json.read(export).get("architecture", {}).get("model") or "",
            events=events.sink(),
            parent=os.getpid(),
        )
        try:
            job.run(work, Path(scratch))
        except SafelightError as error:
            events.warn(f"Nothing could be explained: {error}")
            _write(folder, str(error))


def _asked(
    said: answers.Predictions, chosen: list[choose.Chosen], examples_uri: str, scratch: Path
) -> tuple[job.Asked, ...]:
    """Writes the chosen images as files, and returns what is asked about each."""
    encoded = _stored(examples_uri, {one.row: said.ids[one.row] for one in chosen})
    asked = []
    for number, one in enumerate(chosen):
        name = said.ids[one.row]
        path = scratch / f"{number:03d}.image"
        path.write_bytes(encoded[one.row])
        asked.append(
            job.Asked(
                id=answers.text(name),
                encoded=path,
                why=one.why,
                label=said.labels[one.row],
                predicted=said.predicted[one.row],
                confidence=float(said.probabilities[one.row].max()),
                was=one.was,
            )
        )
    return tuple(asked)


def _stored(examples_uri: str, wanted: dict[int, bytes]) -> dict[int, bytes]:
    """Returns the encoded images of these rows of the predictions.

    An answer's record is the one at its place, for two images may have one name.

    Args:
      examples_uri: of the examples.
      wanted: the rows, with the ids that stand there.

    Raises:
      SafelightError: another image is there, or none.
    """
    import tensorflow as tf

    spec = {name: tf.io.FixedLenFeature([], tf.string) for name in (features.ID, features.IMAGE)}
    found: dict[int, bytes] = {}
    first = 0
    files = answers.split_files(examples_uri, features.TEST)
    for batch in tf.data.TFRecordDataset(files).batch(answers.at_once(files)):
        parsed = tf.io.parse_example(batch, spec)
        for place, name in enumerate(parsed[features.ID].numpy()):
            if wanted.get(first + place) == name:
                found[first + place] = parsed[features.IMAGE][place].numpy()
        if len(found) == len(wanted):
            return found
        first += len(batch)
    missing = [answers.text(name) for row, name in sorted(wanted.items()) if row not in found]
    raise SafelightError(
        f"{bounded(missing)} stand in the predictions and not in the examples at {examples_uri}. "
        "Run again."
    )


def _write(folder: Path, message: str) -> None:
    text = json.dumps({"images": [], "message": message}, indent=2, ensure_ascii=False)
    (folder / job.FILE).write_text(text + "\n", encoding="utf-8")
