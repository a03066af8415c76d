"""What stands behind the export of a model with several heads, made by the nodes that make it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing, ModelEvaluation

from components import artifacts
from components.blessing_gate import BlessingGate
from components.predictor import Predictor
from components.serving_check import compare
from pipeline.blessing import serving_child
from pipeline.config import Evaluate
from pipeline.evaluator import predictions
from pipeline.features import TEST
from tests import two_heads
from tests.examples import artifact
from tests.test_evaluate import run_evaluator


class Judged:
    """Predictions and evaluation of a model on made pictures, below one folder."""

    def __init__(self, model: Path, root: Path, numbers: Sequence[int]) -> None:
        self.root = root
        self.model = model
        self.numbers = numbers
        two_heads.write_split(root / "examples", TEST, numbers)
        Predictor.test_call(
            examples=artifact(Examples, root / "examples", [TEST]),
            model=artifact(Model, model),
            predictions=artifact(artifacts.Predictions, root / "predictions"),
            champion_predictions=artifact(artifacts.Predictions, root / "champion"),
            champion=str(model / "Format-Serving"),
            code="",
        )
        run_evaluator(root / "examples", model, root / "evaluation", beside=two_heads.HEADS[1:])
        served = {"passed": True, "max_difference": 0.0, "tolerance": 1e-4, "message": "served"}
        for name, content in {
            "check/serving_check.json": served,
            "ingest/summary.json": {"examples": {TEST: len(numbers)}},
        }.items():
            (root / name).parent.mkdir()
            (root / name).write_text(json.dumps(content))

    def verdict(self, **options: Any) -> dict[str, Any]:
        """Runs the final gate, behind an evaluation that was asked for the same floors."""
        evaluation = self.root / "evaluation"
        if options:
            evaluation = self.root / "evaluated-again"
            beside = two_heads.HEADS[1:]
            run_evaluator(self.root / "examples", self.model, evaluation, beside=beside, **options)
        BlessingGate.test_call(
            evaluation=artifact(ModelEvaluation, evaluation),
            predictions=artifact(artifacts.Predictions, self.root / "predictions"),
            champion_predictions=artifact(artifacts.Predictions, self.root / "champion"),
            serving_check=artifact(artifacts.ServingCheck, self.root / "check"),
            ingest_report=artifact(artifacts.IngestReport, self.root / "ingest"),
            blessing=artifact(ModelBlessing, self.root / "blessing"),
            options=Evaluate(**options).model_dump_json(),
            code="",
        )
        found: dict[str, Any] = json.loads((self.root / "blessing" / "verdict.json").read_text())
        return found

    def serving(self, moved: str = "") -> dict[str, Any]:
        """Compares the child's answers with the predictions; `moved` adds 1 to a head's first."""
        expected = predictions.read(self.root / "predictions")
        assert expected is not None
        export = predictions.Export(self.model / "Format-Serving")
        rows = list(range(4))
        images = [two_heads.shown(int(expected.ids[row][:4])).data for row in rows]
        said = serving_child._joined([export.serve(images[:2]), export.serve(images[2:])])
        answer = {"served": said, "examples": said, "load_seconds": 0.1}
        if moved:
            np.add.at(np.asarray(expected.heads[moved].predicted), 0, 1.0)
        return compare(expected, rows, answer, 1e-4)
