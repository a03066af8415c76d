"""The commands that run nothing: they answer from the configuration, the data or the machine."""

from __future__ import annotations

import json

from tests import made
from tests.e2e.command import safelight


def test_inspect_shows_what_ingest_would_see(tmp_path):
    data = made.class_folders(tmp_path / "colours", {"red": 12, "blue": 9})
    (data / "red" / "empty.png").touch()
    sheet = tmp_path / "sheet.png"
    ended = safelight("inspect", data, "--sheet", sheet, "--json")
    assert ended.code == 0, ended.stderr
    seen = ended.result
    assert seen["form"] == "folders" and seen["files"] == 22
    assert {name: sum(counts.values()) for name, counts in seen["per_class"].items()} == {
        "blue": 9,
        "red": 12,
    }
    assert seen["problems"]["empty"]["count"] == 1
    assert sheet.stat().st_size > 0
    assert not (tmp_path / "work").exists()


def test_inspect_refuses_a_sheet_that_is_no_png(tmp_path):
    data = made.class_folders(tmp_path / "colours", {"red": 2, "blue": 2})
    ended = safelight("inspect", data, "--sheet", tmp_path / "sheet.pdf")
    assert ended.code == 2 and ".png" in ended.stderr


def test_config_says_where_each_value_comes_from():
    ended = safelight("config", "--profile", "smoke", "--set", "train.epochs=9", "--json")
    assert ended.code == 0, ended.stderr
    rows = {row["key"]: row for row in json.loads(ended.stdout)}
    assert rows["train.epochs"]["value"] == 9
    assert rows["train.epochs"]["origin"] == "--set train.epochs"
    assert rows["train.preset"]["origin"] == "profile smoke"
    assert rows["train.seed"]["origin"] == "default"
    assert all(row["help"] for row in rows.values())


def test_config_schema_documents_every_key():
    ended = safelight("config", "--schema")
    assert ended.code == 0, ended.stderr
    for key in ("ingest.error_budget", "train.learning_rate", "push.model_name", "beam.runner"):
        assert key in ended.stdout
