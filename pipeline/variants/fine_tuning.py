"""How a pruned network is trained on; plain Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config import Train


def of_model(train: Train, architecture: Mapping[str, Any], epochs: int) -> Train:
    """Returns the section for training on: short, at a constant low rate, on one device.

    Averages of weights are off: they would remember what was pruned.

    Args:
      train: what the model was trained with, before a search may have chosen another network.
      architecture: of the model's model.json.
      epochs: variants.prune_epochs.
    """
    update = {
        **architecture,
        "epochs": epochs,
        "phases": (),
        "learning_rate": train.learning_rate / 10,
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "patience": 0,
        "ema": 0.0,
        "precision": "float32",
        "strategy": "cpu" if train.strategy == "cpu" else "auto",
        "devices": 1,
        "board_images": 0,
        "profile_steps": "",
    }
    return train.model_copy(update=update)
