"""What the commands share that keep a server up until they are asked to stop."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from pipeline import lifetime

STOP_SECONDS: Final = 10.0


@contextmanager
def stop_asked() -> Iterator[threading.Event]:
    """Yields an event that Ctrl-C, SIGTERM and a terminal that is closed set."""
    stopped = threading.Event()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, lambda *_: stopped.set()) for number in numbers}
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def start(line: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Starts a process that does not outlive this one, even where this one is killed.

    Args:
      line: the command.
      options: as of `subprocess.Popen`.
    """

    def prepare() -> None:
        lifetime.end_with_parent(by=signal.SIGTERM)

    return subprocess.Popen(line, preexec_fn=prepare, **options)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks a process to end, and kills it where it has not done so after STOP_SECONDS."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
