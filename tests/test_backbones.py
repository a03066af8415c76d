"""Backbones: their facts, their scaling, where their weights come from, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import backbones, export, features, models
from pipeline.config import Train
from pipeline.errors import ConfigError, SafelightError
from pipeline.heads import Head
from pipeline.models import freezing, pretrained, weights
from pipeline.trainer import data, fitting, training
from pipeline.trainer.checkpoints import State
from pipeline.trainer.fitting import Batches
from tests import graphs

HEADS = (Head(name="label", kind="class", classes=graphs.CLASSES),)


def build(side: int = 32, channels: int = 3, **settings: Any) -> keras.Model:
    train = Train.model_validate({"head_width": 8, **settings})
    return models.build(train, image_size=side, channels=channels, heads=HEADS)


def backbone_of(model: keras.Model) -> Any:
    found = pretrained.find(model)
    assert found is not None
    return found


def noise(side: int = 32, channels: int = 3, count: int = 4) -> np.ndarray:
    return np.random.default_rng(5).random((count, side, side, channels), np.float32)


def test_keras_has_each_of_them() -> None:
    ours = {name for name, backbone in backbones.BACKBONES.items() if backbone.imagenet}
    named = {name for name in dir(keras.applications) if name[0].isupper()}
    assert ours == named


def test_an_unknown_backbone_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="'ResNet5O'.*Did you mean 'ResNet50'"):
        backbones.get("ResNet5O")
    with pytest.raises(ConfigError, match="'mobilenetv2'.*Did you mean 'MobileNetV2'"):
        backbones.get("mobilenetv2")


@pytest.mark.parametrize(
    ("scaling", "module"),
    [
        ("mean_bgr", keras.applications.resnet),
        ("mean_bgr", keras.applications.vgg16),
        ("symmetric", keras.applications.mobilenet_v2),
        ("symmetric", keras.applications.inception_v3),
        ("symmetric", keras.applications.nasnet),
        ("standard", keras.applications.densenet),
        ("bytes", keras.applications.efficientnet),
        ("bytes", keras.applications.convnext),
    ],
)
def test_the_scaling_is_the_one_that_keras_s_weights_expect(
    scaling: backbones.Scaling, module: Any
) -> None:
    pixels = noise(8)
    scaled = np.asarray(pretrained.scale(keras.ops.convert_to_tensor(pixels), scaling))
    expected = module.preprocess_input(np.copy(pixels) * 255)
    np.testing.assert_allclose(scaled, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.slow
def test_mobilenet_v2_learns_from_grey_pictures_and_keeps_its_statistics(tmp_path: Path) -> None:
    source = build(backbone="MobileNetV2")
    path = str(tmp_path / "mine.weights.h5")
    backbone_of(source).save_weights(path)
    train = Train(backbone="MobileNetV2", weights=path, head_width=8, epochs=1, batch_size=4)
    model = models.build(train, image_size=32, channels=1, heads=HEADS)
    backbone = backbone_of(model)
    for one, other in zip(backbone_of(source).weights, backbone.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    statistics = [w for w in backbone.weights if w.path.endswith("moving_mean")]
    before = [np.array(weight) for weight in statistics]
    kernel = np.array(backbone.trainable_weights[0])
    step(model, train, channels=1)
    assert all(np.array_equal(b, w) for b, w in zip(before, statistics, strict=True))
    assert not np.array_equal(kernel, backbone.trainable_weights[0])


@pytest.mark.parametrize(
    ("steps", "momentum"), [(4, 0.5), (20, 0.75), (343, 0.985), (50_000, 0.999)]
)
def test_from_the_start_a_backbone_s_statistics_follow_within_an_epoch(
    steps: int, momentum: float
) -> None:
    model = build(backbone="MobileNetV3Small")
    setup: Any = SimpleNamespace(
        steps=lambda train: steps, devices=SimpleNamespace(replicas=1 + steps % 2)
    )
    training._settle_statistics(setup, model, Train(backbone="MobileNetV3Small"))
    found = list(freezing.normalizations(model))
    # The most is Keras's own, 0.999 there.
    assert {round(layer.momentum, 3) for layer in found} == {momentum}
    assert {layer.synchronized for layer in found} == {bool(steps % 2)}


@pytest.mark.parametrize(
    ("settings", "momentum"),
    [
        ({"backbone": "MobileNetV2", "weights": "imagenet"}, 0.999),
        ({"model": "networks:wide"}, 0.999),  # a network of one's own, whatever it is
        ({"preset": "fashion-cnn"}, 0.75),
    ],
)
def test_whose_statistics_keep_their_momentum(settings: dict[str, str], momentum: float) -> None:
    model = build(backbone="MobileNetV2")
    setup: Any = SimpleNamespace(steps=lambda train: 20, devices=SimpleNamespace(replicas=1))
    training._settle_statistics(setup, model, Train.model_validate(settings))
    assert {layer.momentum for layer in freezing.normalizations(model)} == {momentum}


def step(model: keras.Model, train: Train, side: int = 32, channels: int = 3) -> None:
    """Takes one step of training."""
    rows = (noise(side, channels), np.arange(4) % len(graphs.CLASSES))
    fed = tf.data.Dataset.from_tensor_slices(rows).batch(4)
    fitting.fit(model, lambda done: Batches(fed, fed, 4, 4), train, HEADS, state=State())


def test_vgg_s_weights_are_read_from_keras_s_older_format(tmp_path: Path) -> None:
    plain = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    path = str(tmp_path / "vgg16_notop.h5")
    plain.save(path)
    model = build(backbone="VGG16", weights=path)
    pixels = noise()
    expected = plain(keras.applications.vgg16.preprocess_input(pixels * 255))
    found = backbone_of(model)(pretrained.scale(keras.ops.convert_to_tensor(pixels), "mean_bgr"))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_small_backbone_goes_from_one_model_to_the_next(tmp_path: Path) -> None:
    train = Train(backbone="cifar10-fast", epochs=1, head_width=8)
    model = models.build(train, image_size=16, channels=3, heads=HEADS)
    source = data.Input(graphs.transform_graph(16, 3), 16, 3, HEADS)
    facts = export.model_facts(model, train=train, heads=HEADS, resize="stretch", normalize="unit")
    images = [graphs.encoded(graphs.CLASSES[0], 0, 16)]
    export.export(model, source, facts, images, tmp_path / "model")
    whole = str(tmp_path / "whole.keras")
    model.save(whole)
    for where in (str(tmp_path / "model"), whole):
        other = build(24, backbone="cifar10-fast", weights=where)
        pairs = zip(backbone_of(model).weights, backbone_of(other).weights, strict=True)
        assert all(np.array_equal(one, two) for one, two in pairs)
    with pytest.raises(ConfigError, match="not hold.*'MobileNetV2'.*expected.*It holds"):
        build(backbone="MobileNetV2", weights=whole)


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    def refused(name: str, match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            build(16, backbone="cifar10-fast", weights=str(tmp_path / name))

    small = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    small.save_weights(tmp_path / "other.weights.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    (tmp_path / "broken.keras").write_bytes(b"PK not a zip")
    (tmp_path / "model.pt").write_bytes(b"torch")
    expected = r"not hold the weights of train.backbone 'cifar10-fast'; expected.*\d+ arrays"
    refused("other.weights.h5", expected)
    refused("text.h5", expected)
    refused("broken.keras", "can't be read as a Keras model")
    refused("model.pt", "of no known kind; expected.*h5")
    refused("nowhere.h5", "does not exist")
    with pytest.raises(SafelightError, match="There is no model at"):
        build(16, backbone="cifar10-fast", weights=str(tmp_path))


def test_efficientnet_s_deviations_become_variances() -> None:
    inside = keras.Input((8, 8, 3))
    network = keras.Model(inside, keras.layers.Normalization(name="n")(inside))
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    given = [mean.astype(np.float32), deviation.astype(np.float32), np.array(0)]
    network.get_layer("n").set_weights(given)
    weights._square_deviations(network)
    weights.settle(network)
    pixels = noise(8)
    np.testing.assert_allclose(network(pixels), (pixels - mean) / deviation, rtol=1e-3, atol=1e-4)
    other = keras.models.clone_model(network)
    models.set_weights(other, network.get_weights())
    np.testing.assert_allclose(other(pixels), network(pixels), rtol=1e-6)


class Vector(tf.Module):
    """A feature vector as TF Hub has them: callable with `training`, a kernel and a statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(tf.random.stateless_normal([3, 5], [1, 2]), name="kernel")
        self.statistic = tf.Variable(tf.zeros([5]), trainable=False, name="statistic")

    @tf.function(autograph=False)
    def __call__(self, pixels: tf.Tensor, training: bool = False) -> tf.Tensor:
        if training:
            self.statistic.assign_add(tf.ones([5]))
        return tf.reduce_mean(pixels, [1, 2]) @ self.kernel + self.statistic


@pytest.fixture
def vector(tmp_path: Path) -> str:
    module = Vector()
    for learns in (True, False):
        module.__call__.get_concrete_function(
            tf.TensorSpec([None, 16, 16, 3], tf.float32), training=learns
        )
    tf.saved_model.save(module, str(tmp_path / "vector"))
    return str(tmp_path / "vector")


@pytest.mark.parametrize(("unfreeze", "moves"), [("none", False), ("all", True)])
def test_a_feature_vector_is_frozen_or_trained(vector: str, unfreeze: str, moves: bool) -> None:
    phases = [{"epochs": 1, "unfreeze": unfreeze}]
    train = Train.model_validate({"feature_vector": vector, "phases": phases, "epochs": 1})
    model = models.build(train, image_size=16, channels=1, heads=HEADS)
    kernel, statistic = backbone_of(model).weights
    before = np.array(kernel)
    step(model, train, 16, channels=1)
    assert (not np.array_equal(before, kernel)) == moves
    assert not np.any(statistic)


def test_a_feature_vector_goes_into_the_export_and_comes_back(vector: str, tmp_path: Path) -> None:
    train = Train(feature_vector=vector, epochs=1, head_width=4)
    model = models.build(train, image_size=16, channels=3, heads=HEADS)
    assert models.assets(model) == Path(vector)
    step(model, train, 16)
    source = data.Input(graphs.transform_graph(16, 3), 16, 3, HEADS)
    facts = export.model_facts(model, train=train, heads=HEADS, resize="stretch", normalize="unit")
    images = [graphs.encoded(name, 0, 16) for name in graphs.CLASSES]
    export.export(model, source, facts, images, tmp_path / "model")
    Path(vector).rename(tmp_path / "gone")
    served = tf.saved_model.load(str(tmp_path / "model")).signatures[features.SERVING_SIGNATURE]
    pixels, _ = source.transform(
        tf.constant([graphs.example(name, 0, 16) for name in graphs.CLASSES])
    )
    answers = served(image=tf.constant(images))["probabilities"]
    np.testing.assert_allclose(answers, model(pixels), rtol=1e-5, atol=1e-6)
    again = export.load_weights(tmp_path / "model")
    np.testing.assert_allclose(again(pixels), model(pixels), rtol=1e-5, atol=1e-6)


def test_a_keras_export_is_a_feature_vector_too(tmp_path: Path) -> None:
    inside = keras.Input((16, 16, 3))
    network = keras.Model(inside, keras.layers.Conv2D(4, 3)(inside))
    network.export(str(tmp_path / "exported"), verbose=False)
    model = build(16, feature_vector=str(tmp_path / "exported"), head_width=0)
    assert len(backbone_of(model).weights) == 2
    pooled = [layer for layer in model.layers if layer.name == "pooled"]
    assert pooled and model(noise(16)).shape == (4, len(graphs.CLASSES))


def test_a_feature_vector_has_its_weights_in_the_same_order_each_time(tmp_path: Path) -> None:
    """Checkpoints and exports keep them by their order: else they come back in others."""
    x = inside = keras.Input((16, 16, 3))
    for _ in range(3):
        x = keras.layers.BatchNormalization()(keras.layers.Conv2D(3, 3)(x))
    keras.Model(inside, x).export(str(tmp_path / "exported"), verbose=False)
    networks = [build(16, feature_vector=str(tmp_path / "exported")) for _ in range(4)]
    [order] = {tuple(weight.path for weight in backbone_of(one).weights) for one in networks}
    assert len(order) == 3 * (2 + 4)
    pixels = noise(16)
    networks[1].set_weights(networks[0].get_weights())
    np.testing.assert_array_equal(networks[1](pixels), networks[0](pixels))


def test_a_feature_vector_that_is_none_is_refused(vector: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no float32 images of the shape \(None, 24, 24, 3\)"):
        build(24, feature_vector=vector)
    with pytest.raises(ConfigError, match="is no directory here"):
        build(16, feature_vector="nowhere")
    with pytest.raises(ConfigError, match="can't be loaded.*Expected the directory"):
        build(16, feature_vector=str(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(3600)  # the largest have a thousand layers to trace, and may share their core
@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_each_backbone_builds_takes_a_step_exports_and_serves(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    side = backbones.get(name).min_side
    train = Train(backbone=name, epochs=1, batch_size=4, head_width=8, learning_rate=1e-5)
    model = models.build(train, image_size=side, channels=3, heads=HEADS)
    request.addfinalizer(keras.utils.clear_session)
    step(model, train, side)
    source = data.Input(graphs.transform_graph(side, 3), side, 3, HEADS)
    facts = export.model_facts(model, train=train, heads=HEADS, resize="stretch", normalize="unit")
    images = [graphs.encoded(name, 0, side) for name in graphs.CLASSES]
    export.export(model, source, facts, images, tmp_path / "model")
    served = tf.saved_model.load(str(tmp_path / "model")).signatures[features.SERVING_SIGNATURE]
    pixels, _ = source.transform(
        tf.constant([graphs.example(name, 0, side) for name in graphs.CLASSES])
    )
    answers = served(image=tf.constant(images))["probabilities"]
    np.testing.assert_allclose(answers, model(pixels), rtol=1e-3, atol=1e-4)
