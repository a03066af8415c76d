"""The command of every step's container.

    python -m pipeline.kubeflow.entrypoint prepare|node|report … --executor-input '{{$}}'

Kubeflow's launcher starts it, with the inputs downloaded and the placeholder filled in. It ends
with the exit code of the error it met (pipeline/errors.py); the launcher makes 1 of every such
code, so that the record on the volume says which it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pipeline import events, hardware
from pipeline.errors import SafelightError, known_cause
from pipeline.kubeflow import names, record
from pipeline.kubeflow.record import Record, StepRecord
from pipeline.workdir import Workdir, open_workdir

_DATA_REFUSED = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one step; returns its exit code."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    # TFX's executors hand the program's own arguments to Beam: there is nothing here for it.
    del sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # TensorFlow Transform chooses Keras 2 where nothing is said.
    os.environ["TF_USE_LEGACY_KERAS"] = "0"
    # Trainer's and Tuner's children take the GPUs; whatever else runs here may not.
    os.environ.update(hardware.hidden())
    try:
        workdir = open_workdir(Path(options.workdir))
        kept = record.open_record(
            workdir, options.record_megabytes, create=options.step == names.PREPARE
        )
        if options.step == names.REPORT:
            return _report(options, workdir, kept)
        return _step(options, workdir, kept)
    except SafelightError as error:
        _tell(error)
        return error.exit_code
    except Exception:  # noqa: BLE001 - the log is where a step's last words go
        traceback.print_exc()
        return 1


def _step(options: argparse.Namespace, workdir: Workdir, kept: Record) -> int:
    name = options.node if options.step == "node" else names.PREPARE
    before = kept.read(name)
    if before is not None and before.exit_code == _DATA_REFUSED:
        # Tried again by the server; the data is no better than a minute ago.
        sys.stderr.write(f"error: {before.message}\n")
        return before.exit_code
    started = time.monotonic()
    run = _run_node if options.step == "node" else _run_prepare
    try:
        properties = run(options, workdir, kept)
    except Exception as error:  # noqa: BLE001 - recorded, told, and given as the exit code
        traceback.print_exc()
        known = known_cause(error)
        _tell(known or error)
        code = known.exit_code if known is not None else 1
        _write(kept, _failed(name, known or error, code, started))
        return code
    seconds = round(time.monotonic() - started, 2)
    _write(kept, StepRecord(name, "complete", seconds, properties=properties))
    return 0


def _run_prepare(options: argparse.Namespace, workdir: Workdir, kept: Record) -> dict[str, Any]:
    from pipeline.kubeflow import prepare
    from pipeline.kubeflow.artifacts import ExecutorInput

    prepare.run(ExecutorInput.parse(options.executor_input), workdir, kept)
    return {}


def _run_node(options: argparse.Namespace, workdir: Workdir, kept: Record) -> dict[str, Any]:
    events.configure(kept.events(options.node))
    events.emit("stage", name=options.node, state="start")
    started = time.monotonic()
    import tensorflow as tf

    from pipeline.kubeflow import node
    from pipeline.kubeflow.artifacts import ExecutorInput

    # Trainer's child takes the accelerators; nothing in this process may.
    tf.config.set_visible_devices([], "GPU")
    what = node.Node(
        id=options.node,
        executor=options.executor,
        inputs=json.loads(options.inputs),
        outputs=json.loads(options.outputs),
        sources={key: tuple(pair) for key, pair in json.loads(options.sources).items()},
    )
    state = "failed"
    try:
        properties = node.run(what, ExecutorInput.parse(options.executor_input), workdir, kept)
        state = "complete"
        return properties
    finally:
        seconds = round(time.monotonic() - started, 2)
        events.emit("stage", name=options.node, state=state, seconds=seconds)


def _report(options: argparse.Namespace, workdir: Workdir, kept: Record) -> int:
    from pipeline.kubeflow import final
    from pipeline.kubeflow.artifacts import ExecutorInput

    given = ExecutorInput.parse(options.executor_input)
    result = final.run(given, workdir, kept, json.loads(options.nodes))
    # `safelight submit` reads this line from the log.
    sys.stdout.write(f"{names.RESULT_LINE}{result.to_json()}\n")
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--workdir", required=True)
    common.add_argument("--record-megabytes", type=int, required=True)
    common.add_argument("--executor-input", required=True)
    parser = argparse.ArgumentParser(prog="pipeline.kubeflow.entrypoint")
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser(names.PREPARE, parents=[common])
    steps.add_parser(names.REPORT, parents=[common]).add_argument("--nodes", required=True)
    node = steps.add_parser("node", parents=[common])
    for option in ("--node", "--executor", "--inputs", "--outputs", "--sources"):
        node.add_argument(option, required=True)
    return parser.parse_args(list(argv))


def _failed(name: str, error: BaseException, code: int, started: float) -> StepRecord:
    reasons = error.reasons if isinstance(error, SafelightError) else []
    kind = "" if isinstance(error, SafelightError) else f"{type(error).__name__}: "
    seconds = round(time.monotonic() - started, 2)
    return StepRecord(name, "failed", seconds, code, f"{kind}{error}", list(reasons))


def _write(kept: Record, step: StepRecord) -> None:
    # Before `prepare` has made the folder there is nothing to keep a failure in.
    kept.run.root.mkdir(parents=True, exist_ok=True)
    kept.write(step)


def _tell(error: BaseException) -> None:
    sys.stderr.write(f"error: {error}\n")
    for reason in getattr(error, "reasons", []):
        sys.stderr.write(f"  {reason}\n")


def _leave(run: Callable[[], int]) -> NoReturn:
    """Ends the process at once: native threads of gRPC and Arrow can abort an orderly exit."""
    code = run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _leave(main)
