"""`safelight config`: values as TOML, and what each key takes."""

from __future__ import annotations

import json

import pytest

from pipeline import config as configuration
from pipeline.commands import show_config

pytestmark = pytest.mark.current

NESTED = [
    'train.augment=["flip", {name="rotation", factor=0.2}]',
    'train.heads=[{name="age", kind="regression", minimum=0.0}]',
    'kubeflow.node_selector={"a.b/c"="x"}',
]


def shown(capsys, *overrides: str, schema: bool = False, as_json: bool = False) -> str:
    show_config.command(None, overrides, schema, as_json)
    return capsys.readouterr().out


@pytest.mark.parametrize("override", NESTED)
def test_what_is_shown_can_be_set_again(override):
    section, key = override.partition("=")[0].split(".")
    config = configuration.load(None, [override]).config
    value = config.model_dump(mode="json")[section][key]
    again = show_config.toml(value).replace("\n", "")
    assert configuration.load(None, [f"{section}.{key}={again}"]).config == config


def test_long_lists_and_tables_take_a_line_for_each_entry():
    value = [{"name": "flip", "mode": "horizontal"}, {"name": "rotation", "factor": 0.05}]
    assert show_config.toml(value).split("\n") == [
        "[",
        '  {name = "flip", mode = "horizontal"},',
        '  {name = "rotation", factor = 0.05},',
        "]",
    ]
    assert show_config.toml({}) == "{}"
    assert show_config.toml(None) == "auto"


def test_every_key_says_what_it_takes(capsys):
    rows = {row["key"]: row for row in json.loads(shown(capsys, as_json=True))}
    known = {key for key, _, _ in configuration.entries(configuration.Config())}
    assert set(rows) == known
    assert rows["train.epochs"]["type"] == "integer, from 1 or auto"
    assert rows["train.learning_rate"]["type"] == "number, above 0"
    assert rows["train.seed"]["type"] == "integer, from 0 below 4294967296"
    assert rows["train.xla"]["type"] == "true or false"
    assert rows["tune.algorithm"]["type"] == '"off" | "random" | "hyperband" | "bayesian"'
    assert rows["train.phases"]["type"] == "list of tables"
    assert rows["train.phases"]["fields"]["epochs"] == "integer, from 1 (required)"
    assert "gpus" in rows["kubeflow.steps"]["fields"]
    for row in rows.values():
        assert "any value" not in row["type"] or row["key"] == "tune.space", row


def test_the_schema_lists_the_keys_of_tables(capsys):
    text = shown(capsys, schema=True)
    assert "train.phases = []" in text
    assert "      unfreeze: text" in text


def test_values_come_with_where_they_are_from(capsys):
    text = shown(capsys, "train.epochs=3")
    [line] = [line for line in text.splitlines() if line.startswith("train.epochs")]
    assert line.split() == ["train.epochs", "3", "--set", "train.epochs"]


def test_a_name_that_looks_like_markup_is_shown_as_it_is(capsys):
    shown(capsys, 'train.class_weights."[/cat]"=2')  # no MarkupError
    row = shown(capsys, 'train.class_weights."[b]"=2').replace("\n", " ")
    assert "[b]" in row.partition("--set")[2]
