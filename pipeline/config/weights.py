"""What train.class_weights asks of the data: the classes that it names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from pipeline.config.training import Train


def check_classes(train: Train, classes: Iterable[str]) -> None:
    """Refuses weights of classes that there aren't.

    Raises:
      ConfigError: train.class_weights names a class that is none of `classes`.
    """
    if not isinstance(train.class_weights, Mapping):
        return
    known = set(classes)
    for name in train.class_weights:
        if name not in known:
            raise ConfigError(
                f"train.class_weights names the class {name!r}, which the data doesn't have."
                f"{did_you_mean(name, known)}"
            )
