"""A process that must not outlive the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def end_with_parent(parent: int | None = None, by: signal.Signals = signal.SIGKILL) -> None:
    """Asks the kernel for a signal when the parent dies, however it dies.

    Args:
      parent: its process id. Where it has died already, this process ends at once.
      by: the signal.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)
    if parent is not None and os.getppid() != parent:  # it died before it could be asked for
        os._exit(1)
