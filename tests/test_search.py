"""A search: what may be searched over, which values are tried, and what a killed one remembers."""

from __future__ import annotations

import collections
import json
from types import SimpleNamespace

import pytest

from pipeline import config as configuration
from pipeline import lineage, search
from pipeline.config import Config, Train, Transform, Tune
from pipeline.errors import ConfigError
from pipeline.ingest.scan import scan
from pipeline.runners import local
from pipeline.trainer import train as trainer
from pipeline.trainer import tune_child
from pipeline.trainer.trials import Trials
from tests import made

SPACE = {
    "learning_rate": {"min": 1e-4, "max": 1e-1, "log": True},
    "batch_size": [16, 32, 64],
    "optimizer": ["adam", "sgd"],
    "nesterov": [True, False],
    "dropout": [0, 0.25],
    "patience": {"min": 2, "max": 6, "step": 2},
    "augment": [[], ["flip"]],
}

IMAGES = Transform(image_size=32, channels=3)


def refusal(space, algorithm="random", **train) -> str:
    with pytest.raises(ConfigError) as caught:
        search.check(Tune(algorithm=algorithm, space=space), Train(**train))
    return str(caught.value)


@pytest.mark.current
def test_any_key_of_train_can_be_searched_over():
    search.check(Tune(algorithm="random", space=SPACE), Train())
    search.check(Tune(algorithm="random", space={"train.learning_rate": [0.1]}), Train())
    # What `off` would search over is nobody's concern.
    search.check(Tune(space={"nothing": 3}), Train())


@pytest.mark.current
@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "tune.space is empty"),
        ({"learning_rat": [0.1]}, "Did you mean 'learning_rate'"),
        ({"strategy": ["cpu", "gpu"]}, "can't differ between trials"),
        ({"learning_rate": 0.1}, "expected a list of values"),
        ({"learning_rate": []}, "expected a list of values"),
        ({"learning_rate": {"min": 0.1}}, "lacks max"),
        ({"learning_rate": {"min": 0.1, "max": 0.01}}, "not below"),
        ({"learning_rate": {"min": "a", "max": 0.01}}, "expected a number"),
        ({"learning_rate": {"min": 0.1, "max": 1, "lag": True}}, "Did you mean 'log'"),
        ({"learning_rate": {"min": 0.1, "max": 1, "log": 1}}, "expected true or false"),
        ({"momentum": {"min": 0, "max": 0.9, "log": True}}, "log needs a min above 0"),
        ({"batch_size": {"min": 8, "max": 64, "log": True, "step": 1}}, "expected more than 1"),
        ({"learning_rate": [0.1, -1]}, "train.learning_rate refuses -1"),
        ({"batch_size": {"min": 0, "max": 64}}, "train.batch_size refuses 0"),
        ({"batch_size": {"min": 8.5, "max": 64}}, "train.batch_size refuses 8.5"),
        ({"optimizer": ["adam", "adma"]}, 'refuses "adma"'),
        ({"preset": ["mnist-cnn", "mnist-cn"]}, "Did you mean 'mnist-cnn'"),
        ({"preset": ["mnist-cnn"], "backbone": ["ResNet50"]}, "each name the network"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused_before_anything_runs(space, words):
    assert words in refusal(space)


@pytest.mark.current
@pytest.mark.parametrize(
    "space",
    [
        {"loss": ["auto", "focal"]},
        {"label_smoothing": {"min": 0.0, "max": 0.2}},
        {"label_weight": [1.0, 0.1]},
        {"focal_gamma": [1.0, 2.0]},
    ],
)
def test_losses_of_two_kinds_are_not_compared(space):
    train = Train(loss="focal") if "focal_gamma" in space else Train()
    [key] = space
    with pytest.raises(ConfigError, match=f"tune.space.{key} .* tune.objective=eval_accuracy"):
        search.check(Tune(algorithm="random", space=space, objective="eval_loss"), train)
    search.check(Tune(algorithm="random", space=space), train)


def test_losses_of_presets_that_smooth_labels_otherwise_are_not_compared():
    space = {"preset": ["cifar10-cnn", "cifar10-fast"]}
    tune = Tune(algorithm="random", space=space, objective="eval_loss")
    with pytest.raises(ConfigError, match="tune.space.preset .*train.label_smoothing"):
        search.check_networks(tune, Train(), Transform(image_size=32, channels=3))
    smoothed = Train(label_smoothing=0.1)
    settled = search.settled(tune, smoothed, ["label_smoothing"])
    search.check_networks(settled, smoothed, Transform(image_size=32, channels=3))


def test_what_can_not_go_together_is_refused():
    assert "hyperband sets it" in refusal({"epochs": [1, 2]}, algorithm="hyperband")
    assert "multi_worker" in refusal({"momentum": [0.5]}, strategy="multi_worker")
    assert "train.model and tune.space.backbone" in refusal(
        {"backbone": ["ResNet50"]}, model="nets:build"
    ).replace(", ", " and ")


@pytest.mark.current
def test_the_configuration_refuses_it_on_the_command_line():
    with pytest.raises(ConfigError, match=r"Did you mean 'learning_rate'\?$"):
        configuration.load(None, ["tune.algorithm=random", "tune.space={learning_rat=[0.1]}"])


@pytest.mark.current
def test_a_trial_trains_its_own_values_for_its_own_epochs():
    train = Train(epochs=20, learning_rate=0.1, warmup_epochs=3, board_images=4)
    trial = search.of_trial(train, {"learning_rate": 0.2, "batch_size": 8}, 3, IMAGES)
    assert (trial.learning_rate, trial.batch_size, trial.epochs) == (0.2, 8, 3)
    assert (trial.warmup_epochs, trial.board_images) == (1.5, 0)
    assert search.of_trial(train, {"epochs": 7}, 3, IMAGES).epochs == 7
    phases = ({"epochs": 4, "unfreeze": "none"}, {"epochs": 6, "learning_rate": 1e-5})
    cut = search.of_trial(Train(phases=phases, epochs=10), {}, 5, IMAGES)
    assert cut.phases == ({"epochs": 4, "unfreeze": "none"}, {"epochs": 1, "learning_rate": 1e-5})
    assert cut.epochs == 5
    assert search.of_trial(Train(phases=phases), {}, 99, IMAGES).epochs == 10


@pytest.mark.current
def test_a_network_brings_its_own_settings_along_where_none_are_given():
    train = Train(epochs=12, batch_size=8, dropout=0.3)
    found = search.merged(train, {"backbone": "MobileNetV2", "weights": "imagenet"}, IMAGES)
    assert found.dropout == 0.3
    assert [phase["unfreeze"] for phase in found.phases] == ["none", "20%"]
    assert sum(phase["epochs"] for phase in found.phases) == 12


@pytest.mark.current
@pytest.mark.parametrize(
    ("train", "values"),
    [
        ({}, {"optimizer": "adamw"}),
        ({"preset": "cifar10-fast"}, {"optimizer": "sgd"}),
        ({"backbone": "MobileNetV2", "weights": "imagenet"}, {"epochs": 4}),
        ({"backbone": "MobileNetV2"}, {"weights": "imagenet"}),
        ({"backbone": "MobileNetV2", "weights": "imagenet"}, {"weights": ""}),
        ({"backbone": "MobileNetV2", "weights": "imagenet"}, {"learning_rate": 0.01}),
        ({"backbone": "MobileNetV2"}, {"phases": [{"epochs": 2}, {"epochs": 1}]}),
        ({}, {"preset": "cifar10-fast"}),
        ({"augment": [], "learning_rate": 0.001}, {"preset": "cifar10-fast"}),
    ],
)
def test_a_searched_value_means_what_it_means_in_train(tmp_path, train, values):
    """Through all that it passes on its way: the request, the worker, Tuner's file, Trainer."""
    tune = Tune(algorithm="random", space={key: [value] for key, value in values.items()})
    request = resolved(tmp_path, Config(train=Train(**train), tune=tune))
    config = Config.model_validate(json.loads(json.dumps(request.model_dump(mode="json"))))
    directly = resolved(tmp_path, Config(train=Train(**{**train, **values}))).train
    given = search.given(config.train, config.tune.space)
    assert search.merged(given, values, config.transform) == directly
    trials = Trials(config.tune, 17, tmp_path / "search")
    trials.completed(trials.next(), 0.5, 1, 1.0)
    job = SimpleNamespace(tune=config.tune, run_dir=tmp_path, best=tmp_path / "best")
    tune_child._write(job, trials)
    told = json.loads(job.best.read_text())
    assert trainer._best(config.train, told, config.transform) == directly


@pytest.mark.current
def test_all_automatic_phases_of_searched_epochs_are_tried():
    train = Train(backbone="MobileNetV2", weights="imagenet")
    for epochs, phases in ((1, [1]), (4, [3, 1]), (12, [8, 4])):
        trial = search.of_trial(train, {"epochs": epochs}, 5, IMAGES)
        assert [phase["epochs"] for phase in trial.phases] == phases


@pytest.mark.current
def test_what_the_space_names_is_found_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.weights.h5").write_bytes(b"1")
    (tmp_path / "vector").mkdir()
    (tmp_path / "vector" / "saved_model.pb").write_bytes(b"1")
    (tmp_path / "own_nets_s.py").write_text("def build(pixels):\n    return pixels\n")

    def settled(train, space):
        tune = Tune(algorithm="random", space=space)
        config = resolved(tmp_path, Config(train=train, tune=tune))
        return config.train, config.tune

    train, tune = settled(Train(backbone="VGG16"), {"weights": ["", "imagenet", "mine.weights.h5"]})
    assert tune.space["weights"] == ["", "imagenet", str(tmp_path / "mine.weights.h5")]
    before = lineage.code(train, tune)
    (tmp_path / "mine.weights.h5").write_bytes(b"other")
    assert changed(before, lineage.code(train, tune)) == {"Tuner", "Trainer"}

    train, tune = settled(Train(), {"feature_vector": ["vector"]})
    assert tune.space["feature_vector"] == [str(tmp_path / "vector")]
    assert changed(lineage.code(train, tune), lineage.code(train)) == {"Tuner", "Trainer"}

    train, tune = settled(Train(), {"model": ["own_nets_s:build", "own_nets_s:other"]})
    before = lineage.code(train, tune)
    (tmp_path / "own_nets_s.py").write_text("def build(pixels):\n    return pixels + 1\n")
    assert changed(before, lineage.code(train, tune)) == {"Tuner", "Trainer"}
    off = Tune(space=tune.space)
    assert lineage.code(train, off) == lineage.code(train)
    with pytest.raises(ConfigError, match="no module 'own_nets_z'"):
        lineage.code(train, Tune(algorithm="random", space={"model": ["own_nets_z:build"]}))


def changed(before, after):
    return {node for node in before if before[node] != after[node]}


def resolved(root, config):
    """Returns the configuration of a run: `config` with what the data, 32x32 colour, decides."""
    data = root / "data"
    if not data.is_dir():
        made.class_folders(data, {"red": 1, "blue": 1})
    given = configuration.validated(
        {
            "train": config.train.model_dump(include=config.train.model_fields_set),
            "tune": config.tune.model_dump(),
        }
    )
    return local.resolve(given, scan(str(data), given.ingest))[0]


@pytest.mark.current
def test_a_network_that_can_not_take_the_images_is_refused_before_anything_runs():
    tune = Tune(algorithm="random", space={"backbone": ["MobileNetV2", "InceptionV3"]})
    train = Train(epochs=5, batch_size=8)
    with pytest.raises(ConfigError, match="With backbone InceptionV3: transform.image_size 32"):
        search.check_networks(tune, train, IMAGES)
    search.check_networks(tune, train, Transform(image_size=96, channels=3))


@pytest.mark.current
def test_weights_of_the_space_that_are_not_there_are_refused_before_anything_runs(tmp_path):
    tune = Tune(algorithm="random", space={"weights": ["", str(tmp_path / "gone.h5")]})
    train = Train(backbone="MobileNetV2", epochs=5, batch_size=8)
    with pytest.raises(ConfigError, match="gone.h5' does not exist; expected `imagenet`"):
        search.check_networks(tune, train, IMAGES)


@pytest.mark.current
def test_values_that_can_not_go_together_say_which():
    with pytest.raises(ConfigError, match="With backbone ResNet50: train.preset"):
        search.merged(Train(preset="mnist-cnn"), {"backbone": "ResNet50"}, IMAGES)


def score_of(trial) -> float:
    """Is best at a rate of 0.01 and with sgd."""
    import math

    off = abs(math.log10(trial.values["learning_rate"]) + 2)
    return 1 - 0.2 * off - (0 if trial.values["optimizer"] == "sgd" else 0.1)


def run_all(trials, most=100):
    tried = []
    while len(tried) < most and (trial := trials.next()) is not None:
        tried.append(trial)
        trials.completed(trial, score_of(trial), trial.epochs, 1.0)
    return tried


@pytest.mark.parametrize("algorithm", ["random", "hyperband", "bayesian"])
def test_a_search_tries_values_of_the_space_and_says_the_best(tmp_path, algorithm):
    tune = Tune(algorithm=algorithm, space=SPACE, trials=8, epochs=4)
    search.check(tune, Train())
    trials = Trials(tune, 17, tmp_path / "state")
    tried = run_all(trials)
    assert len(tried) == 8
    for trial in tried:
        assert set(trial.values) == set(SPACE)
        assert 1e-4 <= trial.values["learning_rate"] <= 1e-1
        assert trial.values["batch_size"] in (16, 32, 64)
        assert trial.values["nesterov"] in (True, False)
        assert trial.values["augment"] in ([], ["flip"])
        assert search.of_trial(Train(), trial.values, trial.epochs, IMAGES).epochs == trial.epochs
    best = trials.best
    assert best is not None
    assert best.score == max(map(score_of, tried))
    # What Trainer reads is what was found, through the file that TFX's Tuner writes.
    stored = json.loads(json.dumps(trials.hyperparameters(best)))
    assert search.found(stored) == best.values
    assert search.found(None) == {}


def test_hyperband_lets_the_best_go_on_where_they_ended(tmp_path):
    tune = Tune(algorithm="hyperband", space=SPACE, trials=100, epochs=9)
    tried = run_all(Trials(tune, 17, tmp_path / "state"))
    by_id = {trial.id: trial for trial in tried}
    went_on = [trial for trial in tried if trial.continues]
    assert went_on
    for trial in went_on:
        before = by_id[trial.continues]
        assert trial.values == before.values
        assert trial.epochs > before.epochs
    assert max(trial.epochs for trial in tried) == 9


@pytest.mark.parametrize("algorithm", ["random", "hyperband"])
def test_a_search_that_was_killed_tries_the_same_as_one_that_was_not(tmp_path, algorithm):
    tune = Tune(algorithm=algorithm, space=SPACE, trials=8, epochs=4)
    whole = run_all(Trials(tune, 17, tmp_path / "whole"))
    first = run_all(Trials(tune, 17, tmp_path / "state"), most=3)
    began = Trials(tune, 17, tmp_path / "state")
    under_way = began.next()
    again = Trials(tune, 17, tmp_path / "state")
    assert again.resumed == 3
    rest = run_all(again)
    assert again.interrupted(rest[0])
    assert not again.interrupted(rest[1])
    assert rest[0] == under_way
    assert [trial.values for trial in first + rest] == [trial.values for trial in whole]
    assert len(again.rows) == 8


def test_more_trials_go_on_behind_a_search_that_had_ended(tmp_path):
    run_all(Trials(Tune(algorithm="random", space=SPACE, trials=2), 17, tmp_path))
    more = Trials(Tune(algorithm="random", space=SPACE, trials=4), 17, tmp_path)
    assert len(run_all(more)) == 2
    assert [row.trial for row in more.rows] == [1, 2, 3, 4]


def test_a_damaged_state_starts_anew_and_says_so(tmp_path, event_log):
    tune = Tune(algorithm="random", space=SPACE, trials=3)
    before = run_all(Trials(tune, 17, tmp_path))
    (tmp_path / "state.json").write_text('{"oracle": {')
    trials = Trials(tune, 17, tmp_path)
    assert [trial.values for trial in run_all(trials)] == [trial.values for trial in before]
    assert "is damaged" in event_log.read_text()


def test_failed_trials_are_counted_and_do_not_stop_the_others(tmp_path):
    tune = Tune(algorithm="random", space=SPACE, trials=6, objective="eval_loss")
    trials = Trials(tune, 17, tmp_path)
    for number in range(1, 7):
        trial = trials.next()
        assert trial.number == number
        if number in (1, 2, 3, 4, 6):
            trials.failed(trial, "the loss became nan", 0.5)
        else:
            trials.completed(trial, 0.25, 3, 0.5)
    assert trials.next() is None
    assert [row.state for row in trials.rows].count("failed") == 5
    assert trials.best.trial == 5
    marked = search.with_best(trials.rows, 5)
    assert [row.trial for row in marked if row.best] == [5]


def test_the_budget_in_minutes_counts_what_a_killed_process_had_used(tmp_path):
    tune = Tune(algorithm="random", space=SPACE, trials=100, minutes=1)
    trials = Trials(tune, 17, tmp_path)
    for _ in range(2):
        trials.completed(trials.next(), 0.5, 1, 25.0)
    later = Trials(tune, 17, tmp_path)
    later.completed(later.next(), 0.5, 1, 25.0)
    assert later.next() is None


def test_a_small_space_ends_when_it_is_used_up(tmp_path):
    tune = Tune(algorithm="random", space={"optimizer": ["adam", "sgd"]}, trials=50)
    trials = Trials(tune, 17, tmp_path)
    tried = []
    while (trial := trials.next()) is not None:
        tried.append(trial)
        trials.completed(trial, 0.5, 1, 1.0)
    assert sorted(trial.values["optimizer"] for trial in tried) == ["adam", "sgd"]


@pytest.mark.parametrize(
    ("bounds", "values"),
    [
        ({"min": 0, "max": 0.5, "step": 0.1}, [0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        ({"min": 0.1, "max": 0.7, "step": 0.2}, [0.1, 0.3, 0.5, 0.7]),
        ({"min": 0.1, "max": 0.6, "step": 0.2}, [0.1, 0.3, 0.5]),
        ({"min": 0.001, "max": 0.1, "step": 10, "log": True}, [0.001, 0.01, 0.1]),
        ({"min": 0, "max": 2, "step": 1}, [0, 1, 2]),
    ],
)
def test_both_bounds_of_a_range_with_steps_are_tried(tmp_path, bounds, values):
    tune = Tune(algorithm="random", space={"clip_norm": bounds}, trials=100)
    trials = Trials(tune, 17, tmp_path)
    tried = []
    while (trial := trials.next()) is not None:
        tried.append(trial.values["clip_norm"])
        trials.completed(trial, 0.5, 1, 1.0)
        assert search.found(trials.hyperparameters(trials.rows[-1])) == trial.values
    assert sorted(tried) == values


def test_bayesian_does_not_train_the_same_point_twice(tmp_path):
    tune = Tune(algorithm="bayesian", space={"optimizer": ["adam", "sgd"]}, trials=6)
    trials = Trials(tune, 17, tmp_path)
    trained = 0
    while (trial := trials.next()) is not None:
        known = trials.known(trial)
        trained += known is None
        trials.completed(trial, known.score if known else 0.5, 1, 1.0)
    assert trained == 2


def test_bayesian_leaves_alone_what_failed(tmp_path):
    space = {"learning_rate": {"min": 1e-4, "max": 1.0, "log": True}}
    trials = Trials(Tune(algorithm="bayesian", space=space, trials=8), 17, tmp_path)
    while (trial := trials.next()) is not None:
        if trial.values["learning_rate"] > 0.1:
            trials.failed(trial, "the loss became nan", 1.0)
        else:
            trials.completed(trial, 0.5 + trial.values["learning_rate"], 1, 1.0)
    assert [row.state for row in trials.rows].count("failed") <= 3
    assert trials.best.score > 0.58


def test_a_point_that_failed_is_known(tmp_path):
    space = {"optimizer": ["adam", "sgd"]}
    trials = Trials(Tune(algorithm="bayesian", space=space, trials=8), 17, tmp_path)
    failed = 0
    while (trial := trials.next()) is not None:
        known = trials.known(trial)
        failed += known is None and trial.values["optimizer"] == "sgd"
        if trial.values["optimizer"] == "sgd":
            trials.failed(trial, known.reason if known else "out of memory", 1.0)
        else:
            trials.completed(trial, 0.5, 1, 1.0)
    assert failed == 1


@pytest.mark.parametrize("count", [1, 4, 8])
def test_hyperband_lets_the_best_of_a_small_space_go_on(tmp_path, count):
    space = {"batch_size": list(range(1, count + 1))}
    tune = Tune(algorithm="hyperband", space=space, trials=100, epochs=9)
    rungs = collections.defaultdict(set)
    # In two processes: what the first had learned of the space is in the state.
    for most in (count + 1, 100):
        trials = Trials(tune, 17, tmp_path)
        for _ in range(most):
            trial = trials.next()
            if trial is None:
                break
            size = trial.values["batch_size"]
            rungs[trial.epochs].add(size)
            trials.completed(trial, size / 10, trial.epochs, 1.0)
    assert len(rungs[3]) >= len(rungs[1]) / 3
    assert max(rungs[9]) == max(rungs[1])


def test_hyperband_does_not_wait_for_what_failed(tmp_path):
    space = {"momentum": {"min": 0.0, "max": 0.9}}
    tune = Tune(algorithm="hyperband", space=space, trials=13, epochs=9)
    trials = Trials(tune, 17, tmp_path)
    began = 0
    while (trial := trials.next()) is not None:
        began += trial.epochs == 1
        if began <= 3 and trial.epochs == 1:
            trials.failed(trial, "the loss became nan", 1.0)
        else:
            trials.completed(trial, trial.values["momentum"], trial.epochs, 1.0)
    assert [row.epochs for row in trials.rows if row.score is not None] == [1] * 6 + [3] * 3 + [9]


@pytest.mark.current
def test_a_change_of_a_network_in_the_space_searches_and_trains_anew(tmp_path, monkeypatch):
    from pipeline import graph

    monkeypatch.chdir(tmp_path)
    given = graph.Given(
        data="/data",
        known_classes=(),
        champion_uri="",
        lineage={"data": "d", "known_classes": [], "champion": None},
        artifacts=str(tmp_path / "artifacts"),
        checkpoints=str(tmp_path / "checkpoints"),
        serving_dir=str(tmp_path / "serving" / "model"),
    )
    config = Config(
        transform=IMAGES, tune=Tune(algorithm="random", space={"model": ["own_nets_g:build"]})
    )

    def properties(source):
        (tmp_path / "own_nets_g.py").write_text(source)
        nodes = graph.build(config, given).components
        return {node.id: str(node.exec_properties) for node in nodes}

    assert changed(properties("A = 1"), properties("A = 2")) == {"Tuner", "Trainer"}


def kubeflow(*overrides: str):
    image = ("kubeflow.image=registry.example.com/safelight:0.1.0", *overrides)
    return configuration.load("kubeflow", image).config


TUNED = ("tune.algorithm=random", "tune.space={learning_rate=[0.1, 0.01]}")


@pytest.mark.current
def test_the_step_on_kubeflow_gets_what_it_asks_for_and_feeds_trainer():
    import yaml

    from pipeline.kubeflow import compile

    steps = "kubeflow.steps={Tuner={cpu=4, memory_gb=16, gpus=1}}"
    specification, _ = yaml.safe_load_all(compile.compile_package(kubeflow(*TUNED, steps)))
    container = specification["deploymentSpec"]["executors"]["exec-tuner"]["container"]
    assert container["resources"]["accelerator"]["count"] == "1"
    tasks = specification["components"]["comp-pipeline"]["dag"]["tasks"]
    given = tasks["trainer"]["inputs"]["artifacts"]["hyperparameters"]["taskOutputArtifact"]
    assert given == {"producerTask": "tuner", "outputArtifactKey": "best_hyperparameters"}
    with pytest.raises(ConfigError) as caught:
        compile.compile_package(kubeflow(steps))
    assert any("set tune.algorithm" in reason for reason in caught.value.reasons)


@pytest.mark.current
def test_a_run_on_kubeflow_can_change_the_space_but_not_whether_there_is_a_search():
    from pipeline.kubeflow import prepare

    compiled = kubeflow(*TUNED, "train.preset=cifar10-fast")
    merged = prepare.merge(compiled, "tune.trials=3\ntune.space={momentum=[0.5]}")
    assert merged.train.model_fields_set == compiled.train.model_fields_set == {"preset"}
    assert (merged.tune.trials, merged.tune.space) == (3, {"momentum": [0.5]})
    with pytest.raises(ConfigError, match="fixed when the pipeline is compiled"):
        prepare.merge(compiled, "tune.algorithm=off")
