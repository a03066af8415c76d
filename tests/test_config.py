"""The configuration: where values come from, and what is refused with which words."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from pipeline import config as configuration
from pipeline.config import Config
from pipeline.errors import ConfigError

pytestmark = pytest.mark.current


def refusal(*overrides: str, profile: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        configuration.load(profile, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_defaults_alone():
    effective = configuration.load()
    assert effective.config == Config()
    assert effective.origin("train.epochs") == "default"


def test_an_override_beats_the_profile_and_the_profile_beats_the_default():
    effective = configuration.load("smoke", ["train.epochs=7"])
    assert effective.config.train.epochs == 7
    assert effective.config.train.preset == "mnist-cnn-small"
    assert effective.config.train.seed == Config().train.seed
    assert effective.origin("train.epochs") == "--set train.epochs"
    assert effective.origin("train.preset") == "profile smoke"
    assert effective.origin("train.seed") == "default"


def test_a_key_below_a_table_is_set_by_itself(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[tune.space]\nbatch_size = [32, 64]\n[train.class_weights]\ncat = 2.0\n")
    overrides = [
        "tune.space.learning_rate=[0.1, 0.01]",
        'train.class_weights."great tit"=3',
        "train.class_weights.cat=4",
    ]
    effective = configuration.load(str(path), overrides)
    assert effective.config.tune.space == {"batch_size": [32, 64], "learning_rate": [0.1, 0.01]}
    assert effective.config.train.class_weights == {"cat": 4.0, "great tit": 3.0}
    # The table comes from all of them.
    assert effective.origin("train.class_weights") == (
        f'profile {path}, --set train.class_weights."great tit", --set train.class_weights.cat'
    )


def test_thresholds_of_a_head_can_be_set_on_the_command_line():
    heads = 'train.heads=[{name="severity", kind="regression"}]'
    overrides = ["evaluate.heads.severity.max_mae=0.1", "evaluate.heads.severity.max_regression=0"]
    config = configuration.load(None, [heads, *overrides]).config
    assert config.evaluate.heads == {"severity": {"max_mae": 0.1, "max_regression": 0.0}}


def test_the_last_of_two_overrides_wins():
    effective = configuration.load(None, ["train.epochs=7", "train.epochs=9"])
    assert effective.config.train.epochs == 9


def test_a_profile_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[push]\nmodel_name = "cats"\n')
    effective = configuration.load(str(path))
    assert effective.config.push.model_name == "cats"
    assert str(path) in effective.origin("push.model_name")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.learning_rate=1e-2", 0.01),
        ("train.learning_rate = 0.01", 0.01),
        ("train.preset=mnist-cnn", "mnist-cnn"),
        ('train.preset="mnist-cnn"', "mnist-cnn"),
        ("ingest.split=80/10/10", "80/10/10"),
        ("push.model_name=a=b", None),
        ('beam.args=["--x=1", "--y=2"]', ("--x=1", "--y=2")),
    ],
)
def test_values_are_read_as_in_toml_and_bare_words_are_strings(override, expected):
    if expected is None:
        assert "push.model_name" in refusal(override)
        return
    section, key = override.partition("=")[0].strip().split(".")
    config = configuration.load(None, [override]).config
    assert getattr(getattr(config, section), key) == expected


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epoch=3", ["train.epoch", "Did you mean 'epochs'"]),
        ("trian.epochs=3", ["trian", "Did you mean 'train'"]),
        ("train.zzz=3", ["train.zzz", "There is:", "epochs"]),
        ("train.epochs", ["section.key=value", "'train.epochs'"]),
        ("epochs=3", ["section.key=value"]),
        ("a.b.c=3", ["a.b.c", "unknown section 'a'"]),
        ("train.epochs.x=3", ["train.epochs holds no table", "--set train.epochs=value"]),
        ("train.augmet.x=3", ["train.augmet", "Did you mean 'augment'"]),
        ("evaluate.heads.size.max_ame=1", ["evaluate.heads.size", "Did you mean 'max_mae'"]),
        ("kubeflow.steps.Trainer.gpu=1", ["kubeflow.steps.Trainer", "Did you mean 'gpus'"]),
        ("train.phases=[{epoch=3}]", ["train.phases.0", "Did you mean 'epochs'"]),
        ("train.epochs=0", ["train.epochs = 0", "--set train.epochs", "greater than or equal"]),
        ("train.epochs=many", ["train.epochs = 'many'", "integer"]),
        ("train.preset=resnet", ["train.preset = 'resnet'", "mnist-cnn"]),
        ("ingest.split=70/30", ["ingest.split = '70/30'", "three positive shares"]),
        ("ingest.split=70/20/20", ["add up to 100"]),
        ("ingest.split=100/0/0", ["three positive shares"]),
        ("ingest.error_budget=1.5", ["ingest.error_budget = 1.5"]),
        ("push.model_name=../up", ["push.model_name = '../up'", "letters, digits"]),
        ("retrain.pattern=days", ["retrain.pattern = 'days'", "{SPAN} or {YYYY}"]),
        ("evaluate.min_accuracy=96", ["evaluate.min_accuracy = 96"]),
        # In a list or table the very place is named, and TOML's words are used.
        ('train.heads=[{name="a", kind="clas"}]', ["train.heads.0.kind = 'clas'"]),
        ("kubeflow.steps.Trainer.cpu=0", ["kubeflow.steps.Trainer.cpu = 0"]),
        ("train.class_weights.cat=-1", ["train.class_weights.cat = -1"]),
        ('train.augment=["flip", 3]', ["train.augment.1 = 3"]),
        ("ingest.targets=age", ["ingest.targets = 'age'", "expected a list"]),
        ("train.heads=[3]", ["train.heads.0 = 3", "expected a table"]),
        # JSON, as which values reach the stages, has none of these.
        ("train.weight_decay=inf", ["train.weight_decay = inf", "finite"]),
        ("variants.budgets.pruned.max_size_ratio=inf", ["pruned.max_size_ratio = inf", "finite"]),
        ("retrain.growth=nan", ["retrain.growth = nan"]),
        # As a number true would be 1: here a bound that nothing reaches.
        ("calibration.max_ece=true", ["calibration.max_ece = True", "switches"]),
        ("train.patience=false", ["train.patience = False", "switches"]),
        ("transform.channels=true", ["transform.channels = True", "switches"]),
    ],
)
def test_what_is_wrong_is_named_with_what_was_expected(override, words):
    message = refusal(override)
    for word in words:
        assert word in message


def test_every_bad_value_is_named_at_once():
    message = refusal("train.epochs=0", "train.batch_size=0", "ingest.split=1/2/3")
    assert len(message.splitlines()) == 3


def test_keys_that_can_not_go_together():
    message = refusal("transform.image_size=8", "train.preset=mnist-cnn")
    assert "transform.image_size" in message
    assert "train.preset" in message


def test_images_that_ingest_takes_are_no_larger_than_the_model_takes():
    message = refusal("ingest.max_pixels=60000000")
    assert "ingest.max_pixels 60000000" in message
    assert "transform.max_pixels 50000000" in message
    configuration.load(None, ["ingest.max_pixels=60000000", "transform.max_pixels=60000000"])


def test_a_column_named_twice_is_carried_once():
    # Else its second column in the table of images ended the run with a KeyError.
    twice = '["age", "size", "age"]'
    keys = ("targets", "class_columns", "slices")
    ingest = configuration.load(None, [f"ingest.{key}={twice}" for key in keys]).config.ingest
    assert all(getattr(ingest, key) == ("age", "size") for key in keys)


def test_auto_leaves_open_again_what_a_profile_chose():
    config = configuration.load("smoke", ["train.preset=auto", "evaluate.slices=auto"]).config
    assert config.train.preset is None and config.evaluate.slices is None
    assert "train.seed = 'auto'" in refusal("train.seed=auto")


def test_an_unknown_profile_is_answered_with_the_nearest():
    assert "Did you mean 'smoke'" in refusal(profile="smok")
    assert "does not exist" in refusal(profile="nowhere.toml")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[train\n", "not valid TOML"),
        ("[trian]\nepochs = 1\n", "Did you mean 'train'"),
        ("[train]\nepoch = 1\n", "Did you mean 'epochs'"),
        ("train = 3\n", "is a section"),
    ],
)
def test_a_wrong_profile_is_refused_by_its_name(tmp_path, text, word):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    message = refusal(profile=str(path))
    assert word in message
    assert "mine.toml" in message


def test_a_profile_that_is_no_text_file_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"# caf\xe9\n[train]\nepochs = 3\n")
    assert "mine.toml is not UTF-8" in refusal(profile=str(path))
    (tmp_path / "folder.toml").mkdir()
    assert "folder.toml is a folder" in refusal(profile=str(tmp_path / "folder.toml"))
    path.write_bytes(b"\xef\xbb\xbf[train]\r\nepochs = 3\r\n")  # as Notepad saves
    assert configuration.load(str(path)).config.train.epochs == 3


def test_the_configuration_is_frozen():
    config = Config()
    with pytest.raises(ValidationError):
        config.train.epochs = 3


def test_every_key_has_a_description_and_survives_json():
    config = configuration.load("smoke").config
    keys = list(configuration.entries(config))
    assert len(keys) > 30
    for key, _, field in keys:
        assert field.description, f"{key} has no description"
        assert field.description.endswith((".", ")", "db")), f"{key}: {field.description}"
    assert configuration.validated(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize("name", configuration.profiles())
def test_each_shipped_profile_loads_and_states_only_differences(name):
    effective = configuration.load(name)
    default = Config()
    for key, value, _ in configuration.entries(effective.config):
        if effective.origin(key) != "default":
            section, field = key.split(".")
            assert value != getattr(getattr(default, section), field), f"{key} is the default"
