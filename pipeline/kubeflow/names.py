"""Names that the compiled pipeline, its steps and whoever follows a run share."""

from __future__ import annotations

import re
from typing import Final

# The tasks beside the graph's own nodes.
PREPARE: Final = "prepare"
IMPORT: Final = "import-data"
REPORT: Final = "report"
# The group of all tasks but the exit task.
GROUP: Final = "pipeline"

# The pipeline's parameters.
DATA: Final = "data"
FINGERPRINT: Final = "data_fingerprint"
SPANS: Final = "spans"
CHAMPION: Final = "champion"
OVERRIDES: Final = "overrides"
NO_CHAMPION: Final = "none"

# Inputs and outputs of tasks that no node of the graph declares.
CONFIG: Final = "config"
STATUS: Final = "status"
PROPERTIES: Final = "properties"
BLESSED: Final = "blessed"
METRICS: Final = "metrics"
CONFUSION: Final = "confusion_matrix"
HTML: Final = "report"
IMPORTED: Final = "files"
# Artifacts that a step only keeps for the report: record-<task>-<output>.
RECORDED: Final = "record"

# Labels of every step's pod.
STEP: Final = "safelight-step"
PART_OF: Final = "safelight"

# Environment variable of every step: the run's id on the server.
RUN_ID: Final = "KFP_RUN_ID"

# In front of the JSON of a run's result, as the last line of the exit task's log.
RESULT_LINE: Final = "SAFELIGHT-RESULT "


def task(node: str) -> str:
    """Returns the name of a node's task: ImageExampleGen's is image-example-gen."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", node).lower()


def executor(name: str) -> str:
    """Returns the label of a task's executor."""
    return f"exec-{name}"


def component(name: str) -> str:
    """Returns the name of a task's component."""
    return f"comp-{name}"
