"""A class head and a regression head beside the label, from a manifest to predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import made, two_heads
from tests.e2e.command import safelight

PROFILE = f"""
[train]
preset = "mnist-cnn-small"
epochs = 25
patience = 0
batch_size = 16

[[train.heads]]
name = "grade"
kind = "class"

[[train.heads]]
name = "severity"
kind = "regression"
column = "{two_heads.COLUMN}"
minimum = 0.0
maximum = 1.0
weight = 20.0

[evaluate.heads.grade]
min_accuracy = 0.8

[evaluate.heads.severity]
max_mae = 0.1
"""


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "heads.toml"
    path.write_text(PROFILE)
    return path


@pytest.mark.slow
def test_three_answers_about_one_picture(profile, tmp_path):
    data = two_heads.write_manifest(tmp_path / "data", 300)
    workdir = tmp_path / "work"
    ended = safelight("run", data, "--workdir", workdir, "--profile", profile, "--json")
    assert ended.code == 0, ended.stderr + ended.stdout
    pushed = Path(ended.result["pushed_to"])
    facts = json.loads((pushed / "assets.extra" / "model.json").read_text())
    assert [head["name"] for head in facts["heads"]] == ["grade", "severity"]
    run = workdir / "runs" / ended.result["run_id"]
    artifacts = json.loads((run / "artifacts.json").read_text())
    verdict = json.loads(Path(artifacts["BlessingGate"]["blessing"], "verdict.json").read_text())
    assert verdict["metrics"]["accuracy"] > 0.7
    assert verdict["heads"]["grade"]["metrics"]["accuracy"] > 0.9
    assert verdict["heads"]["severity"]["metrics"]["mae"] < 0.1
    assert verdict["heads"]["severity"]["metrics"]["r2"] > 0.5
    new = [1001, 1002, 1003, 1004]
    for number in new:
        (tmp_path / f"{number}.png").write_bytes(two_heads.shown(number).data)
    files = [tmp_path / f"{number}.png" for number in new]
    rows = safelight("predict", *files, "--workdir", workdir, "--json").result["predictions"]
    expected = [two_heads.shown(number) for number in new]
    assert [row["heads"]["grade"]["label"] for row in rows] == [one.grade for one in expected]
    for row, one in zip(rows, expected, strict=True):
        assert row["heads"]["severity"] == pytest.approx(one.severity, abs=0.3)
    # Nothing has changed: the second run finds all in the cache.
    again = safelight("run", data, "--workdir", workdir, "--profile", profile, "--json")
    assert again.code == 0 and again.result["outcome"] == "unchanged", again.stderr
    assert again.stages_in("complete") == set()


def test_class_folders_have_no_columns(profile, tmp_path):
    data = made.class_folders(tmp_path / "data", {"red": 4, "blue": 4})
    workdir = tmp_path / "work"
    ended = safelight("run", data, "--workdir", workdir, "--profile", profile)
    assert ended.code == 2
    assert "train.heads" in ended.stderr and "ingest.form" in ended.stderr
    assert not list((workdir / "runs").glob("*"))
