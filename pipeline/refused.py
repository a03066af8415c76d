"""What a node found before it refused the data: kept beside the run, for its report.

TFX deletes the outputs of a node that fails, and these say why it did.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline import events
from pipeline.runs import RunDir


def keep(node: str, output: str, folder: Path) -> None:
    """Copies an output into the run's directory; without one (in a container, say) it is lost.

    Args:
      node: the name of the node that is about to fail.
      output: the output's key.
      folder: with the output's files.
    """
    sink = events.sink()
    if sink is not None:
        shutil.copytree(folder, RunDir(sink.parent).refused(node, output), dirs_exist_ok=True)
