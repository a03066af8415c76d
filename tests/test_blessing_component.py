"""The final gate as a component, on what the components before it really make."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.blessing import intact
from pipeline.config import Evaluate
from pipeline.errors import SafelightError


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """All that the gate reads, made by the components that make it."""
    from tests.test_evaluate import run_evaluator
    from tests.test_serving_check import Made

    made = Made(tmp_path_factory.mktemp("gate"))
    made.predict()
    made.check(check_images=8)
    run_evaluator(made.root / "examples", made.root / "model", made.root / "evaluation")
    (made.root / "ingest").mkdir()
    (made.root / "ingest" / "summary.json").write_text('{"examples": {"test": 28}}')
    return made


def bless(made, target: Path, **options):
    from tfx.types import standard_artifacts

    from components import artifacts
    from components.blessing_gate import BlessingGate
    from tests import exports

    blessing = exports.artifact(standard_artifacts.ModelBlessing, target)
    BlessingGate.test_call(
        evaluation=exports.artifact(standard_artifacts.ModelEvaluation, made.root / "evaluation"),
        predictions=made.predictions,
        champion_predictions=made.champion_predictions,
        serving_check=exports.artifact(artifacts.ServingCheck, made.root / "check"),
        ingest_report=exports.artifact(artifacts.IngestReport, made.root / "ingest"),
        blessing=blessing,
        options=Evaluate(**options).model_dump_json(),
        code="",
    )
    return blessing, json.loads((target / "verdict.json").read_text())


def test_component_blesses(evaluated, tmp_path):
    from tfx.components.util import model_utils

    blessing, found = bless(evaluated, tmp_path)
    assert found["blessed"], found["reasons"]
    assert model_utils.is_model_blessed(blessing)
    assert (tmp_path / "BLESSED").is_file() and not (tmp_path / "NOT_BLESSED").exists()
    assert found["metrics"]["accuracy"] == 1
    assert found["tfma_validation_ok"] is True


def test_the_verdict_has_a_line_for_each_row_of_a_matrix(evaluated, tmp_path):
    """With a line for each number, the verdict on 1,000 classes had a million of them."""
    from tests import exports

    _, found = bless(evaluated, tmp_path)
    lines = (tmp_path / "verdict.json").read_text().splitlines()
    first = lines.index('  "confusion": [') + 1
    rows = [json.loads(line.strip().rstrip(",")) for line in lines[first : first + 4]]
    assert rows == found["confusion"] and lines[first + 4] == "  ],"
    assert found["per_class"].keys() == set(exports.CLASSES)


def test_component_refuses(evaluated, tmp_path):
    from tfx.components.util import model_utils

    blessing, found = bless(evaluated, tmp_path, min_accuracy=0.99)
    assert not found["blessed"] and len(found["reasons"]) == 1
    assert blessing.get_int_custom_property("blessed") == 0
    assert not model_utils.is_model_blessed(blessing)
    assert (tmp_path / "NOT_BLESSED").is_file()
    assert "accuracy" in found["reasons"][0].lower()


def test_a_champion_that_cannot_be_loaded_is_told_before_training(evaluated, tmp_path):
    champion = tmp_path / "3"
    shutil.copytree(evaluated.root / "model" / "Format-Serving", champion)
    intact.check("")
    intact.check(str(champion))
    (champion / "variables" / "variables.index").write_bytes(b"")
    (champion / "saved_model.pb").unlink()
    with pytest.raises(SafelightError, match="saved_model.pb, variables/variables.index") as caught:
        intact.check(str(champion))
    assert "safelight rollback" in str(caught.value)
    shutil.rmtree(champion)
    with pytest.raises(SafelightError, match="There is no model at"):
        intact.check(str(champion))
