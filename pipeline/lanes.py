"""What differs between the two lanes: all of it, each with its reason.

A lane is a set of locked versions (docs/decisions/0001-two-lanes.md); Python's version tells which
one is installed, as it does in uv.lock. Everything else in Safelight is written for both at once.
"""

from __future__ import annotations

import sys
from typing import Final, Literal

# Python has a TOML reader and this name for a package's files since 3.11; the legacy lane is 3.10.
if sys.version_info >= (3, 11):
    from importlib.resources.abc import Traversable

    import tomllib
else:
    from importlib.abc import Traversable

    import tomli as tomllib

__all__ = ["CURRENT_GLIBC", "VERSIONS", "Lane", "Traversable", "of", "tomllib"]

Lane = Literal["legacy", "current"]

# TFX 1.16 has wheels for Python 3.9 and 3.10 alone, TFX 1.21 is locked from 3.11 on. To the minor
# version: the lock pins the rest. Protobuf's generated code follows TensorFlow's own.
VERSIONS: Final[dict[Lane, dict[str, str]]] = {
    "legacy": {"tfx": "1.16", "tensorflow": "2.16", "keras": "3.", "protobuf": "3.20"},
    "current": {"tfx": "1.21", "tensorflow": "2.21", "keras": "3.", "protobuf": "6."},
}

# The wheels of TFDV and ML Metadata 1.21 are manylinux_2_39: older systems can't load them.
CURRENT_GLIBC: Final = (2, 39)


def of(python: tuple[int, int]) -> Lane:
    """Returns the lane that the lock gives this version of Python."""
    return "legacy" if python < (3, 11) else "current"
