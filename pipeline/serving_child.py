"""The serving check's clean process: loads an export afresh and serves real files through it.

    python -m pipeline.serving_child REQUEST.json PARENT_PID

It knows the export and the files, and nothing else of the run: no TFX, no devices, none of the
modules that trained. `request.json` has `model` (a directory), `files` (image files), `examples`
(a TFRecord of the same images, in the same order) and `answer` (the file to write); the answer has
`load_seconds`, and `served` and `examples`, each with `labels`, `probabilities` and `heads`: for
each head beside the label the same, or `values`.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.head_columns import Classes, HeadColumns, Values
from pipeline.predictions import Answer, Export

_PR_SET_PDEATHSIG = 1
_BATCH = 32


def main() -> None:
    """Serves what the request names; an error ends the process with its traceback."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    _die_with_parent(int(sys.argv[2]))
    import tensorflow  # noqa: F401 - now, so that its import does not count as loading

    started = time.monotonic()
    export = Export(Path(request["model"]))
    loaded = time.monotonic() - started
    answer = {
        "load_seconds": round(loaded, 3),
        "served": _served(export, [Path(name) for name in request["files"]]),
        "examples": _examples(export, request["examples"]),
    }
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def _served(export: Export, files: Sequence[Path]) -> dict[str, Any]:
    """Sends files as a client does: prepared, in batches."""
    from pipeline import images

    batches = [files[start : start + _BATCH] for start in range(0, len(files), _BATCH)]
    return _joined(
        [
            export.serve([images.prepare(file.read_bytes()).encoded for file in batch])
            for batch in batches
        ]
    )


def _examples(export: Export, path: str) -> dict[str, Any]:
    import tensorflow as tf

    records = tf.data.TFRecordDataset(path).batch(_BATCH)
    return _joined([export.serve_examples(batch) for batch in records])


def _joined(answers: Sequence[Answer]) -> dict[str, Any]:
    return {
        "labels": [label for answer in answers for label in answer.labels],
        "probabilities": [row for answer in answers for row in answer.probabilities.tolist()],
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


def _die_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when its parent dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be asked for
        os._exit(1)


if __name__ == "__main__":
    main()
