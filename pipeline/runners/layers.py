"""Whether the layers that train.phases names are there, before anything runs.

Only Keras knows a backbone's layers, and only once it has built it. So a process of its own is
asked, which takes some seconds, and the answer is kept in the workdir's `cache/`.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

from pipeline import hardware, phases, runs
from pipeline.config import Train

_SECONDS = 300


def check(train: Train, cache: Path) -> None:
    """Refuses a layer to unfreeze from that train.backbone doesn't have.

    Args:
      train: the section.
      cache: the folder that remembers; made if it isn't there.

    Raises:
      ConfigError: there is no such layer; the nearest name is given.
    """
    named = [phase["unfreeze"] for phase in train.phases if phases.is_layer(phase.get("unfreeze"))]
    if not (named and train.backbone):
        return
    names = _names(train.backbone, cache)
    for name in named:
        if names and name not in names:
            raise phases.unknown_layer(name, names, f"train.backbone {train.backbone!r}")


def _names(backbone: str, cache: Path) -> list[str]:
    """Returns the layers' names; none where Keras can't be asked: training will say why."""
    path = cache / f"layers-{backbone}-{importlib.metadata.version('keras')}.json"
    if path.is_file():
        remembered: list[str] = json.loads(path.read_text(encoding="utf-8"))
        return remembered
    environment = {**hardware.hidden(), "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.models.names", backbone],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        env=environment,
    )
    if done.returncode:
        return []
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    cache.mkdir(exist_ok=True)
    runs.write_json(path, names)
    return names
