"""Child processes that are started before they are needed, so that their imports cost no time.

TensorFlow takes seconds to import, on one core, and much of what the worker does meanwhile takes
one core too. A spare imports what its module will need and then waits to be told its arguments.
Whoever starts the module calls `popen`, and gets the spare if there is one for just such an
environment, or else a new process: nothing depends on spares being there.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pipeline
from pipeline import lifetime

_Key = tuple[str, tuple[tuple[str, str | None], ...]]
_waiting: dict[_Key, subprocess.Popen[bytes]] = {}


def ahead(module: str, imports: Sequence[str], environment: Mapping[str, str]) -> None:
    """Starts a process that will run `module`, unless one waits already.

    Args:
      module: what `python -m` would be given.
      imports: modules to import while there is time.
      environment: the process's whole environment.
    """
    key = _key(module, environment)
    if key not in _waiting:
        command = [sys.executable, "-m", "pipeline.spares", str(os.getpid()), module, *imports]
        _waiting[key] = subprocess.Popen(
            command, cwd=_folder(), stdin=subprocess.PIPE, env=dict(environment)
        )


def popen(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Returns a process that runs `module` with these arguments; its `stdin` is a pipe.

    Args:
      module: what `python -m` is given.
      arguments: behind it.
      environment: the process's whole environment.
      log: where its output goes; by default to this process's own.
    """
    spare = _waiting.pop(_key(module, environment), None)
    if spare is not None and spare.poll() is None:
        assert spare.stdin is not None
        told = {"arguments": list(arguments), "log": log.name if log else None}
        try:
            spare.stdin.write(json.dumps(told).encode() + b"\n")
            spare.stdin.flush()
        except BrokenPipeError:  # it has just died: a new one says why, if it dies too
            spare.wait()
        else:
            return spare
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        # `-m` finds the package in the current directory, installed or not.
        cwd=_folder(),
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        env=dict(environment),
    )


@contextmanager
def uncollected() -> Iterator[None]:
    """Lets the garbage collector rest, and never look at what was made meanwhile.

    Importing TensorFlow and TFX makes two million objects, which stay for good: to go through them
    again and again would be a sixth of the time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _key(module: str, environment: Mapping[str, str]) -> _Key:
    """Returns the module, and by what the environment differs from this process's own.

    The own one grows when TensorFlow is imported (TF2_BEHAVIOR), which makes no other child of it.
    """
    names = sorted({*environment, *os.environ})
    pairs = [(name, environment.get(name)) for name in names]
    return module, tuple(pair for pair in pairs if pair[1] != os.environ.get(pair[0]))


def _folder() -> Path:
    assert pipeline.__file__ is not None
    return Path(pipeline.__file__).parents[1]


def main() -> None:
    """The spare itself: imports, waits for a line with its arguments, and becomes the module."""
    parent, module, *imports = sys.argv[1:]
    # One that is never needed ends with its parent, and Ctrl-C is the parent's to decide on.
    lifetime.end_with_parent(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with uncollected():
        for name in imports:
            importlib.import_module(name)
    line = sys.stdin.readline()
    if not line:
        return
    told = json.loads(line)
    if told["log"] is not None:
        with open(told["log"], "ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [module, *told["arguments"]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
