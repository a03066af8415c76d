"""The serving check's clean process: loads an export afresh and serves real files through it.

    python -m pipeline.blessing.serving_child REQUEST.json PARENT_PID

It knows the export and the files, and nothing else of the run: no TFX, no Keras, no devices, none
of the modules that trained. It imports TensorFlow, and reads the request when its standard input
says a line, or ends; where something is to be timed, it waits for another line before that.
`request.json` has `model` (a directory), `files` (image files), `examples` (a TFRecord of the same
images, in the same order) and `answer` (the file to write); and, to be timed, `requests` (how many)
and `champion` (a directory, or ""). The answer has `load_seconds`, and `served` and `examples`,
each with `labels`, `probabilities`, `answered` (null without a threshold) and `heads`: for each
head beside the label the same, or `values`. What was timed stands in `latency`, and in `not_timed`
why the champion was not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline import lifetime, spares
from pipeline.blessing import latency
from pipeline.errors import SafelightError
from pipeline.evaluator.head_columns import Classes, HeadColumns, Values
from pipeline.evaluator.predictions import Answer, Export

_BATCH = 32
_MODULE = "pipeline.blessing.serving_child"


def ahead() -> None:
    """Starts the process early, so that it has imported TensorFlow when it is needed."""
    spares.ahead(_MODULE, ["pipeline.bare_tensorflow", _MODULE], environment())


def start(request: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts the process, which reads `request` when its standard input says a line."""
    return spares.popen(_MODULE, [str(request), str(os.getpid())], environment(), log)


def environment() -> dict[str, str]:
    """Returns this process's environment without devices and without a cluster."""
    variables = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    variables["CUDA_VISIBLE_DEVICES"] = "-1"
    variables["TF_USE_LEGACY_KERAS"] = "0"
    variables.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return variables


def main() -> None:
    """Serves what the request names; an error ends the process with its traceback."""
    lifetime.end_with_parent(int(sys.argv[2]))
    # Now, so that its import does not count as loading: in the meantime the parent gathers images.
    from pipeline import bare_tensorflow  # noqa: F401

    sys.stdin.readline()
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    started = time.monotonic()
    export = Export(Path(request["model"]))
    loaded = time.monotonic() - started
    encoded = _prepared(request["files"])
    answer = {
        "load_seconds": round(loaded, 3),
        "served": _served(export, encoded),
        "examples": _examples(export, request["examples"]),
    }
    if request["requests"]:
        answer |= _timed(export, request["champion"], encoded, request["requests"])
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def _prepared(files: Sequence[str]) -> list[bytes]:
    """Returns the images as a client sends them."""
    from pipeline import images

    # Ingest has checked them, by the bounds of its own configuration.
    bounds = {"min_side": 1, "max_pixels": 1 << 62}
    return [images.prepare(Path(name).read_bytes(), **bounds).encoded for name in files]


def _served(export: Export, encoded: Sequence[bytes]) -> dict[str, Any]:
    batches = [encoded[start : start + _BATCH] for start in range(0, len(encoded), _BATCH)]
    return _joined([export.serve(batch) for batch in batches])


def _timed(
    export: Export, champion: str, encoded: Sequence[bytes], requests: int
) -> dict[str, Any]:
    """Times the model and the champion in turns; a champion that does not answer is told of."""
    not_timed = ""
    other = None
    if champion:
        try:
            other = Export(Path(champion))
            other.serve(encoded[:1])
        except SafelightError as error:
            other, not_timed = None, str(error)
    serve = other.serve if other is not None else None
    sys.stdin.readline()  # until the parent is done with its own work: it would count too
    return {
        "latency": latency.measure(export.serve, serve, encoded, requests),
        "not_timed": not_timed,
    }


def _examples(export: Export, path: str) -> dict[str, Any]:
    import tensorflow as tf

    records = tf.data.TFRecordDataset(path).batch(_BATCH)
    return _joined([export.serve_examples(batch) for batch in records])


def _joined(answers: Sequence[Answer]) -> dict[str, Any]:
    return {
        "labels": [label for answer in answers for label in answer.labels],
        "probabilities": [row for answer in answers for row in answer.probabilities.tolist()],
        "answered": (
            None
            if answers[0].answered is None
            else [one for answer in answers for one in np.asarray(answer.answered).tolist()]
        ),
        "heads": {
            name: _head([answer.heads[name] for answer in answers]) for name in answers[0].heads
        },
    }


def _head(parts: Sequence[HeadColumns]) -> dict[str, Any]:
    values = [one for part in parts if isinstance(part, Values) for one in part.predicted.tolist()]
    if values:
        return {"values": values}
    classes = [part for part in parts if isinstance(part, Classes)]
    return {
        "labels": [label for part in classes for label in part.predicted],
        "probabilities": [row for part in classes for row in part.probabilities.tolist()],
    }


if __name__ == "__main__":
    main()
