"""What the processes that make variants are told, and what they leave behind.

Both are training jobs with a few more fields, so that they start, tell of their progress, fail and
end as the training process does (`pipeline.trainer.train`, `pipeline.trainer.train_child`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from pipeline.config.variants import VariantName
from pipeline.trainer.train import Job

STAGE: Final = "VariantMaker"

# Files in a variant's folder: what is published.
LITE_FILE: Final = "model.tflite"
LABELS: Final = "labels.txt"
FACTS: Final = "model.json"


class PruneJob(Job):
    """Prunes the model `export` and exports it again to `model_dir`."""

    export: Path
    sparsity: float


class MakeJob(Job):
    """Converts the model `export`, and tries each variant on the same test images.

    `names` are the variants in their order; below `model_dir` each gets a folder. `wanted` is a
    JSON list of the test images' ids (hexadecimal), and `test_files` are the TFRecords they are in.
    `scratch` gets the pixels, and for each variant its answers and what was found.
    """

    export: Path
    names: tuple[VariantName, ...]
    test_files: tuple[str, ...]
    wanted: Path
    scratch: Path
    representative_images: int

    def begun(self, name: str) -> Path:
        """Returns the file that says that work on a variant has begun."""
        return self.scratch / f"{name}.begun"

    def found(self, name: str) -> Path:
        """Returns the file of what was found of a variant: its error, or its figures."""
        return self.scratch / f"{name}.json"

    def answers(self, name: str) -> Path:
        """Returns the file of a variant's probabilities, float32 [images, classes]."""
        return self.scratch / f"{name}.npy"

    def write_found(self, name: str, found: dict[str, Any]) -> None:
        """Writes what was found of a variant; it is there as a whole or not at all."""
        path = self.found(name)
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(found), encoding="utf-8")
        beside.replace(path)
