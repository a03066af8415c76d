"""TensorFlow as a model server has it: without Keras. Importing this module imports it.

TensorFlow itself would import Keras for the sake of its optimizers: two seconds of five.
"""

from __future__ import annotations

import sys

# An export that needs Keras is none: hidden, it is missed here and not in production.
sys.modules["keras"] = None  # type: ignore[assignment]

import tensorflow  # noqa: E402, F401
