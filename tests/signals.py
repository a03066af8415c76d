"""Signals as a terminal would give them to a command that a test starts."""

from __future__ import annotations

import signal


def heeded() -> None:
    """For Popen's preexec_fn: a shell's job in the background, or nohup, has these ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
