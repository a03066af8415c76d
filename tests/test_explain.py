"""Explanations: the sums that must hold, where the heat lies, and the pictures."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from pipeline import export, features, heads, model_json, models
from pipeline.commands import explain_command
from pipeline.config import Train
from pipeline.errors import SafelightError
from pipeline.evaluator.predictions import Predictions
from pipeline.explain import attributions, child, choose, drawing, job
from pipeline.explain.network import Network
from pipeline.runs import RunDir, write_json
from pipeline.workdir import open_workdir
from tests import exports, graphs, two_heads

SIDE = 24


def spot(corner):
    """Returns a dark picture with a bright square in one corner, float32 [SIDE, SIDE, 1]."""
    rng = np.random.default_rng(1)
    pixels = rng.uniform(0, 0.1, (SIDE, SIDE, 1)).astype(np.float32)
    rows = slice(0, 6) if corner[0] == "t" else slice(SIDE - 6, SIDE)
    columns = slice(0, 6) if corner[1] == "l" else slice(SIDE - 6, SIDE)
    pixels[rows, columns] = 1.0
    return pixels


def quarter(values, corner):
    """Returns the share of a map's sum that lies in one quarter of it."""
    half = SIDE // 2
    rows = slice(0, half) if corner[0] == "t" else slice(half, SIDE)
    columns = slice(0, half) if corner[1] == "l" else slice(half, SIDE)
    return values[rows, columns].sum() / values.sum()


def bright_or_dark(nested):
    """Returns a network whose first class is bright light anywhere, the second the want of it."""
    pixels = keras.Input((SIDE, SIDE, 1))
    seen = layers.Conv2D(2, 3, padding="same", activation="relu", name="seen")
    pooled = layers.GlobalAveragePooling2D()
    if nested:
        inner = keras.Input((SIDE, SIDE, 1))
        found = keras.Model(inner, pooled(seen(inner)), name="backbone")(pixels)
    else:
        found = pooled(seen(pixels))
    answer = layers.Dense(2, activation="softmax", name="probabilities")
    model = keras.Model(pixels, answer(found))
    kernel = np.zeros((3, 3, 1, 2), np.float32)
    kernel[1, 1, 0] = [1.0, -1.0]
    seen.set_weights([kernel, np.array([-0.5, 0.5], np.float32)])
    answer.set_weights([np.array([[9.0, 0.0], [0.0, 9.0]], np.float32), np.zeros(2, np.float32)])
    return model


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "in a backbone"])
@pytest.mark.parametrize("corner", ["tl", "br"])
def test_the_heat_lies_where_the_evidence_is(corner, nested):
    network = Network(bright_or_dark(nested))
    pixels = spot(corner)
    found = network.feature_map(pixels[np.newaxis], 0)
    assert found is not None
    assert found.layer == "seen"
    heat = attributions.heat(found, pixels)
    assert not isinstance(heat, str)
    assert heat.shape == (SIDE, SIDE)
    assert heat.max() == pytest.approx(1)
    assert quarter(heat, corner) > 0.95
    other = attributions.heat(network.feature_map(pixels[np.newaxis], 1), pixels)
    assert not isinstance(other, str)
    assert quarter(other, corner) < 0.3


@pytest.mark.parametrize("corner", ["tr", "bl"])
def test_the_pixels_that_matter_lie_where_the_evidence_is(corner):
    network = Network(bright_or_dark(False))
    pixels = spot(corner)
    found = attributions.integrated(network, pixels, np.zeros_like(pixels), 0, steps=50)
    assert quarter(attributions.brightness(found.values), corner) > 0.95


def built(**train):
    settings = Train(**train)
    classes = heads.of(settings, graphs.CLASSES, {"grade": ("good", "bad")})
    keras.utils.set_random_seed(5)
    model = models.build(settings, image_size=32, channels=3, heads=classes)
    return settings, classes, model


NETWORKS = {
    "mnist-cnn": {"preset": "mnist-cnn"},
    "cifar10-fast": {"preset": "cifar10-fast"},
    "MobileNetV2": {"backbone": "MobileNetV2"},
    "two heads": {"preset": "mnist-cnn-small", "heads": ({"name": "grade", "kind": "class"},)},
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "MobileNetV2")) for name in NETWORKS],
)
def test_attributions_add_up_to_the_difference_of_the_scores(name):
    _, _, model = built(**NETWORKS[name])
    network = Network(model)
    rng = np.random.default_rng(2)
    pixels = rng.uniform(0, 1, (32, 32, 3)).astype(np.float32)
    black = np.zeros_like(pixels)
    found = attributions.integrated(network, pixels, black, 2, steps=300)
    scores = np.asarray(network.scores(np.stack([pixels, black])))[:, 2]
    assert found.difference == pytest.approx(float(scores[0] - scores[1]), abs=1e-6)
    scale = np.abs(found.values).sum()
    assert abs(found.values.sum() - found.difference) < 0.02 * scale
    coarse = attributions.integrated(network, pixels, black, 2, steps=8)
    assert coarse.values.shape == pixels.shape


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_what_stands_before_the_probabilities(name):
    _, _, model = built(**NETWORKS[name])
    pixels = np.random.default_rng(3).uniform(0, 1, (2, 32, 32, 3)).astype(np.float32)
    scores = np.asarray(Network(model).scores(pixels))
    said = model(pixels, training=False)
    said = said["label"] if isinstance(said, dict) else said
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(chances, said, atol=1e-5)


def test_a_map_too_small_to_say_where_is_passed_over_for_one_inside_the_backbone():
    _, _, model = built(backbone="MobileNetV2")
    pixels = np.random.default_rng(3).uniform(0, 1, (1, 32, 32, 3)).astype(np.float32)
    found = Network(model).feature_map(pixels, 0)
    assert found is not None
    assert min(found.values.shape[1:3]) >= 4
    assert found.gradients.shape == found.values.shape
    assert np.abs(found.gradients).max() > 0


def test_the_network_is_left_as_it_was():
    _, _, model = built(preset="mnist-cnn")
    pixels = np.random.default_rng(3).uniform(0, 1, (1, 32, 32, 3)).astype(np.float32)
    before = np.asarray(model(pixels, training=False))
    Network(model).feature_map(pixels, 0)
    assert not [layer.name for layer in model.layers if "call" in vars(layer)]
    np.testing.assert_array_equal(before, model(pixels, training=False))


def test_without_convolutions_there_is_a_reason_instead_of_heat():
    pixels = keras.Input((8, 8, 1))
    answer = layers.Dense(2, activation="softmax", name="probabilities")
    network = Network(keras.Model(pixels, answer(layers.Flatten()(pixels))))
    given = np.ones((8, 8, 1), np.float32)
    assert attributions.heat(network.feature_map(given[np.newaxis], 0), given) == (
        attributions.NO_MAP
    )


def test_a_model_that_is_not_ours_is_refused():
    pixels = keras.Input((8, 8, 1))
    model = keras.Model(pixels, layers.Dense(2, name="mine")(layers.Flatten()(pixels)))
    with pytest.raises(SafelightError, match="no layer 'probabilities'.*mine"):
        Network(model)


def predictions(rows, classes=("cat", "dog")):
    """Returns the answers of rows (id, label, predicted, probability of predicted)."""
    chances = [
        [sure if name == said else 1 - sure for name in classes] for _, _, said, sure in rows
    ]
    return Predictions(
        model="m",
        version=None,
        classes=classes,
        ids=[name.encode() for name, *_ in rows],
        labels=[label for _, label, *_ in rows],
        predicted=[said for _, _, said, _ in rows],
        probabilities=np.array(chances, np.float32),
    )


NOW = predictions(
    [
        ("a", "cat", "dog", 0.9),
        ("b", "cat", "dog", 0.7),
        ("c", "dog", "dog", 0.8),
        ("d", "dog", "cat", 0.6),
        ("e", "cat", "cat", 0.99),
    ]
)


def test_the_surest_mistakes_come_first():
    found = choose.choose(NOW, None, 2)
    assert [(one.row, one.why, one.was) for one in found] == [
        (0, "mistake", None),
        (1, "mistake", None),
    ]


def test_answers_that_became_wrong_come_before_those_that_became_right():
    before = predictions(
        [("c", "dog", "cat", 0.6), ("b", "cat", "cat", 0.9), ("a", "cat", "dog", 0.9)]
    )
    found = choose.choose(NOW, before, 4)
    assert [(one.row, one.why, one.was) for one in found] == [
        (1, "flipped", "cat"),  # lost
        (2, "flipped", "cat"),  # gained
        (0, "mistake", None),
        (3, "mistake", None),
    ]
    # With few wanted, half of them are flipped ones; there are no more mistakes than two.
    assert [one.row for one in choose.choose(NOW, before, 2)] == [1, 0]


def test_without_a_mistake_nothing_is_chosen():
    right = predictions([("a", "cat", "cat", 0.9)])
    assert choose.choose(right, right, 5) == []


def test_what_changed_is_told_by_the_row_where_two_images_have_one_name():
    now = predictions([("a", "cat", "cat", 0.9), ("a", "dog", "dog", 0.8)])
    before = predictions([("a", "cat", "dog", 0.9), ("a", "dog", "dog", 0.8)])
    assert choose.choose(now, before, 4) == [choose.Chosen(0, "flipped", "dog")]


def placed(resize, width, height):
    """Returns the red of an overlay of a map that is hot in its upper left pixel."""
    values = np.zeros((4, 4), np.float32)
    values[0, 0] = 1
    picture = Image.new("RGB", (width, height))
    return np.asarray(drawing.overlay(picture, values, resize))[..., 0]


def test_maps_go_back_to_where_the_picture_was_resized_from():
    assert placed("stretch", 80, 40)[2, 5] > 200
    assert placed("stretch", 80, 40)[2, 60] < 50
    cropped = placed("crop", 80, 40)  # columns 20 to 60 were seen
    assert cropped[2, 22] > 200
    assert cropped[2, 5] < 50
    padded = placed("pad", 40, 80)  # the square has bars of 20 left and right
    assert padded.max() < 50
    values = np.ones((4, 4), np.float32)
    overlaid = drawing.overlay(Image.new("RGB", (40, 80)), values, "pad")
    assert overlaid.size == (40, 80)


def test_small_pictures_are_enlarged_by_whole_factors_and_large_ones_shrunk():
    small = drawing.shown(np.full((28, 20, 1), 77, np.uint8))
    assert small.size == (140, 196)
    assert small.mode == "RGB"
    assert set(np.asarray(small).ravel()) == {77}
    assert max(drawing.shown(np.zeros((900, 1200, 3), np.uint8)).size) == 448


def exported(folder, size=16, normalize="unit", **train):
    """Writes what the explaining process reads of an export: its facts and its weights."""
    settings = Train(**train)
    classes = heads.of(settings, graphs.CLASSES)
    keras.utils.set_random_seed(5)
    model = models.build(settings, image_size=size, channels=3, heads=classes)
    facts = export.model_facts(
        model, train=settings, heads=classes, resize="stretch", normalize=normalize
    )
    extra = folder / model_json.ASSETS
    extra.mkdir(parents=True)
    (extra / features.MODEL_FACTS).write_text(json.dumps(asdict(facts)))
    model.save_weights(extra / features.WEIGHTS)
    return folder


def work(tmp_path, graph, names=("blue", "red"), **asked):
    images = []
    for number, name in enumerate(names):
        file = tmp_path / f"{number}.image"
        file.write_bytes(exports.encoded(name, number))
        images.append(job.Asked(id=f"{name}.png", encoded=file, why="asked", **asked))
    return job.Job(
        model=exported(tmp_path / "model", preset="mnist-cnn-small"),
        transform_graph=graph,
        steps=16,
        folder=tmp_path / "out",
        images=tuple(images),
        parent=os.getpid(),
    )


def test_each_image_gets_three_pictures(tmp_path):
    child.run(work(tmp_path, graphs.transform_graph(16, 3), label="red", predicted="green"))
    told = json.loads((tmp_path / "out" / job.FILE).read_text())
    assert [one["id"] for one in told["images"]] == ["blue.png", "red.png"]
    for one in told["images"]:
        assert (one["why"], one["label"], one["predicted"]) == ("asked", "red", "green")
        assert 0 <= one["confidence"] <= 1
        sizes = [
            Image.open(tmp_path / "out" / one[kind]).size
            for kind in ("picture", "gradcam", "saliency")
            if one[kind]
        ]
        assert set(sizes) == {(192, 192)}
        assert (one["gradcam"] is None) == (one["gradcam_missing"] is not None)


def test_without_a_transform_graph_the_pixels_are_the_same(tmp_path):
    with_graph = work(tmp_path, graphs.transform_graph(16, 3))
    child.run(with_graph)
    bare = with_graph.model_copy(update={"transform_graph": None, "folder": tmp_path / "bare"})
    child.run(bare)
    for name in sorted(path.name for path in (tmp_path / "out").iterdir()):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "bare" / name).read_bytes()


def test_a_trainers_artifact_has_the_transform_graph_of_its_run(tmp_path):
    place = open_workdir(tmp_path / "work")
    model, graph = place.artifacts / "Trainer/model/7", place.artifacts / "Transform/graph/5"
    for folder in (model / "Format-Serving", graph):
        folder.mkdir(parents=True)
    run = RunDir(place.runs / "20260101T000000-0000")
    run.root.mkdir(parents=True)
    made_by = {"Trainer": {"model": str(model)}, "Transform": {"transform_graph": str(graph)}}
    write_json(run.root / "run.json", {})
    write_json(run.artifacts, made_by)
    facts = {"normalize": "standard"}
    found = explain_command._transform_graph(place.root, model / "Format-Serving", facts)
    assert found == graph


def test_the_process_explains_and_says_why_it_can_not(tmp_path):
    asked = work(tmp_path, None, names=("blue",))
    told = job.run(asked, tmp_path)
    assert told["images"][0]["picture"] == "000-picture.png"
    (asked.model / model_json.ASSETS / features.WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(job.ExplanationFailed, match="does not hold the weights"):
        job.run(asked, tmp_path)


def test_the_node_explains_mistakes_and_survives_a_model_it_can_not_build(tmp_path, monkeypatch):
    from tfx.types import standard_artifacts

    from components import artifacts
    from components.explainer import Explainer

    monkeypatch.setattr("components.explainer.job.run", _in_this_process)
    counts = dict.fromkeys(graphs.CLASSES, 3)
    exports.write_examples(tmp_path / "examples", counts)
    exported(tmp_path / "model" / "Format-Serving", preset="mnist-cnn-small")
    (tmp_path / "none").mkdir()
    _write_answers(tmp_path / "said", counts)
    for name, weights in (("good", None), ("bad", b"nothing")):
        if weights is not None:
            extra = tmp_path / "model" / "Format-Serving" / model_json.ASSETS
            (extra / features.WEIGHTS).write_bytes(weights)
        Explainer.test_call(
            examples=exports.artifact(standard_artifacts.Examples, tmp_path / "examples"),
            model=exports.artifact(standard_artifacts.Model, tmp_path / "model"),
            transform_graph=exports.artifact(
                standard_artifacts.TransformGraph, graphs.transform_graph(16, 3)
            ),
            predictions=exports.artifact(artifacts.Predictions, tmp_path / "said"),
            champion_predictions=exports.artifact(artifacts.Predictions, tmp_path / "none"),
            explanations=exports.artifact(artifacts.Explanations, tmp_path / name),
            options='{"images": 3, "steps": 8}',
            code="test",
        )
    good, bad = (json.loads((tmp_path / name / job.FILE).read_text()) for name in ("good", "bad"))
    assert [one["why"] for one in good["images"]] == ["mistake"] * 3
    assert all(one["label"] != one["predicted"] for one in good["images"])
    assert bad["images"] == []
    assert "does not hold the weights" in bad["message"]


def test_as_small_as_an_image_can_be(tmp_path):
    # ingest.min_side says what to train on, not what may be asked.
    Image.new("RGB", (3, 1)).save(tmp_path / "small.png")
    [asked] = explain_command._asked([tmp_path / "small.png"], tmp_path)
    assert asked.encoded.read_bytes() == (tmp_path / "small.png").read_bytes()


def _in_this_process(asked, scratch):
    child.run(asked)
    return json.loads((asked.folder / job.FILE).read_text())


def _write_answers(folder, counts):
    """Writes predictions that call every image green, blue ones the more surely."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    rows = [(label, number) for label, count in counts.items() for number in range(count)]
    rows = rows[::2] + rows[1::2]  # as write_examples spreads them over two shards
    sure = {"blue": 0.9, "green": 0.5, "red": 0.6, "white": 0.7}
    columns = {
        "id": [f"test/{label}/{number:05d}.png".encode() for label, number in rows],
        "split": ["test"] * len(rows),
        "label": [label for label, _ in rows],
        "predicted": ["green"] * len(rows),
        "probabilities": [[0.0, sure[label], 0.0, 1 - sure[label]] for label, _ in rows],
    }
    metadata = {"classes": json.dumps(list(graphs.CLASSES)), "model": "m", "heads": "[]"}
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, folder / "predictions.parquet")


def test_several_heads_are_explained_by_the_label(tmp_path):
    train = Train(preset="mnist-cnn-small", heads=two_heads.CONFIGURED)
    model = models.build(train, image_size=two_heads.SIZE, channels=3, heads=two_heads.HEADS)
    pixels = np.random.default_rng(1).uniform(0, 1, (24, 24, 3)).astype(np.float32)
    network = Network(model)
    assert np.asarray(network.scores(pixels[np.newaxis])).shape == (1, 2)
    assert network.feature_map(pixels[np.newaxis], 1) is not None
