"""Prints the names of a backbone's layers as a JSON list: a process of its own, for `run`.

python -m pipeline.models.names ResNet50
"""

from __future__ import annotations

import json
import sys

from pipeline import backbones
from pipeline.models import pretrained


def main() -> None:
    """Builds the backbone that the command line names, small and of random weights."""
    name = sys.argv[1]
    network = pretrained.make(name, backbones.get(name).min_side)
    sys.stdout.write(json.dumps([layer.name for layer in network.layers]) + "\n")


if __name__ == "__main__":
    main()
