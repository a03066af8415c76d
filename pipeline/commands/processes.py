"""What the commands share that keep a server up until they are asked to stop."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from pipeline import lifetime

STOP_SECONDS: Final = 10.0


class Stop:
    """Whether somebody asked to stop: an event without a lock.

    A signal's handler may run inside another's, or inside `wait`: for threading.Event's lock it
    would wait for ever.
    """

    def __init__(self) -> None:
        """Takes a pipe, which `close` gives back."""
        self._asked = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def set(self) -> None:
        """Asks; from a handler, too."""
        self._asked = True
        with suppress(BlockingIOError):  # it is full: somebody asked often
            os.write(self._write, b"\0")

    def is_set(self) -> bool:
        """Says whether somebody asked."""
        return self._asked

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until somebody asks, or the seconds are over; says whether somebody asked."""
        select.select([self._read], [], [], seconds)
        return self._asked

    def close(self) -> None:
        """Gives the pipe back."""
        os.close(self._read)
        os.close(self._write)


@contextmanager
def stop_asked() -> Iterator[Stop]:
    """Yields what Ctrl-C, SIGTERM and a terminal that is closed set."""
    stopped = Stop()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, lambda *_: stopped.set()) for number in numbers}
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        stopped.close()


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
