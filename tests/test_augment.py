"""Augmentation: what may be written, what each step does to pixels and labels, and its seeds."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from pipeline import config
from pipeline.config import Train, augmentation
from pipeline.errors import ConfigError
from pipeline.trainer import augment, augment_drawn
from pipeline.trainer.augment_layers import Seeds
from tests import made

SIDE, BATCH = 24, 8
NAMES = list(augmentation.STEPS)


def pictures(channels: int = 3, count: int = BATCH) -> np.ndarray:
    """Returns float32 [count, SIDE, SIDE, channels], 0 to 1."""
    labels = sorted(made.HUES)
    images = [
        made.picture(labels[number % 4], number, (SIDE, SIDE), grey=channels == 1)
        for number in range(count)
    ]
    pixels = np.stack([np.asarray(image) for image in images]).astype(np.float32) / 255
    return pixels.reshape(count, SIDE, SIDE, channels)


def policy_of(*steps: Any, classes: int = 4, **options: Any) -> augment.Policy:
    made_steps = [augmentation.read(step) for step in steps]
    return augment.Policy(made_steps, {"label": classes}, **options)


@functools.cache
def _traced(policy: augment.Policy) -> Any:
    return tf.function(policy, autograph=False)


def applied(
    policy: augment.Policy, pixels: np.ndarray, key: tuple[int, int, int] = (1, 0, 0)
) -> tuple[np.ndarray, np.ndarray]:
    ids = tf.range(len(pixels), dtype=tf.int64) % 4
    out, targets = _traced(policy)(tf.constant(pixels), {"label": ids}, augment.key(*key))
    return out.numpy(), targets["label"].numpy()


def only(step: Any, pixels: np.ndarray, seed: int = 0) -> np.ndarray:
    return augment.preview([augmentation.read(step)], pixels, seed)


# What may be written.


def test_a_policy_in_toml_and_on_the_command_line() -> None:
    train = config.load(
        None, ['train.augment=["flip", {name="rotation", factor=0.1, fill_mode="wrap"}]']
    ).config.train
    flip, rotation = train.augment
    assert isinstance(flip, augmentation.Flip)
    assert isinstance(rotation, augmentation.Rotation)
    assert (rotation.factor, rotation.fill_mode) == (0.1, "wrap")
    assert not train.mixes_labels
    assert Train(augment=["cut_mix"]).mixes_labels
    # As it reaches a worker, and comes back.
    assert Train.model_validate(train.model_dump(mode="json")) == train


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("rotaton", "no augmentation 'rotaton'.*mean 'rotation'"),
        ({"name": "zoom", "facto": 0.1}, "'zoom' has no option 'facto'.*mean 'factor'"),
        ({"name": "rotation", "factor": 1}, "'rotation': factor = 1: .*less than or equal to 0.5"),
        ({"name": "flip", "mode": "up"}, "'flip': mode = 'up': .*'horizontal'"),
        ({"name": "crop", "padding": 0}, "cuts nothing"),
        ({"name": "erasing", "smallest": 0.5}, "smallest 0.5 is above largest 0.33"),
        ({"factor": 1}, "expected the name of an augmentation"),
        (3, "expected the name of an augmentation"),
    ],
)
def test_what_can_t_be_is_refused_by_name(step: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"train.augment.*{message}"):
        config.validated({"train": {"augment": [step]}})


def test_mixed_labels_and_a_number_don_t_go_together() -> None:
    heads = [{"name": "severity", "kind": "regression"}]
    with pytest.raises(ConfigError, match="train.augment.*'cut_mix'.*train.heads.*'severity'"):
        config.validated({"train": {"augment": ["flip", "cut_mix"], "heads": heads}})
    config.validated({"train": {"augment": ["flip", "erasing"], "heads": heads}})


# What the steps do.


@pytest.mark.parametrize("channels", [1, 3])
def test_each_step_alone_and_in_tf_data(channels: int) -> None:
    pixels = pictures(channels)
    for name in NAMES:
        policy = policy_of(name, channels=channels)
        alone, alone_labels = applied(policy, pixels)
        assert alone.shape == pixels.shape
        assert alone.dtype == np.float32
        assert np.isfinite(alone).all()
        # Resampling rounds; nothing leaves the range by more than that.
        assert -1e-5 < alone.min() <= alone.max() < 1 + 1e-5
        assert not np.array_equal(alone, pixels), name
        rows = tf.data.Dataset.from_tensors((pixels, tf.range(BATCH, dtype=tf.int64) % 4))
        key = augment.key(1, 0, 0)
        step = functools.partial(_one, policy, key)
        [(mapped, labels)] = rows.map(tf.autograph.experimental.do_not_convert(step))
        np.testing.assert_allclose(mapped.numpy(), alone, atol=2e-5, err_msg=name)
        np.testing.assert_allclose(labels["label"].numpy(), alone_labels, atol=1e-6)


def _one(policy: augment.Policy, key: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> Any:
    return policy(x, {"label": y}, key)


def test_the_key_decides() -> None:
    steps = ("flip", "rand_augment", "mixup")
    pixels, policy = pictures(), policy_of(*steps)
    first, shares = applied(policy, pixels, (1, 2, 3))
    # Another policy, asked in another order: nothing is counted in between.
    fresh = policy_of(*steps)
    applied(fresh, pixels, (1, 2, 4))
    again, same = applied(fresh, pixels, (1, 2, 3))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(shares, same)
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not np.array_equal(applied(policy, pixels, other)[0], first)
    assert not np.array_equal(augment.key(1, 0, 0), augment.key(1, 0, 0, worker=1))


def test_images_of_a_batch_are_treated_apart() -> None:
    pixels = np.repeat(pictures(count=1), 16, axis=0)
    for name in ("rotation", "shear", "crop", "color_jitter", "erasing", "rand_augment"):
        out = only(name, pixels)
        assert len({image.tobytes() for image in out}) > 1, name


def test_flip_mirrors_half() -> None:
    pixels = pictures(count=64)
    out = only("flip", pixels)
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(out, pixels, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(out, pixels, strict=True)]
    assert sum(mirrored) + sum(same) == 64
    assert 16 <= sum(mirrored) <= 48


@pytest.mark.parametrize(
    ("fill_mode", "numpy_mode"),
    [("constant", "constant"), ("nearest", "edge"), ("reflect", "symmetric"), ("wrap", "wrap")],
)
def test_crop_shifts_by_whole_pixels(fill_mode: str, numpy_mode: Any) -> None:
    pixels = pictures(count=32)
    out = only({"name": "crop", "padding": 2 / SIDE, "fill_mode": fill_mode}, pixels)
    padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)), numpy_mode)
    found = set()
    for image, source in zip(out, padded, strict=True):
        places = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.allclose(image, source[y : y + SIDE, x : x + SIDE], atol=1e-6)
        ]
        assert len(places) == 1
        found.add(places[0])
    assert len(found) > 10


def test_crop_enlarges_what_it_cuts() -> None:
    ramp = np.broadcast_to(np.linspace(0, 1, SIDE, dtype=np.float32)[:, None], (SIDE, SIDE))
    pixels = np.repeat(ramp[None, :, :, None], 32, axis=0)
    out = only({"name": "crop", "padding": 0, "smallest": 0.5}, pixels)
    slopes = np.diff(out[:, 4:-4, 4, 0], axis=1).mean(1) * (SIDE - 1)
    assert 0.5 - 1e-3 <= slopes.min() < slopes.max() <= 1 + 1e-3


def test_fill_values_and_modes() -> None:
    white = np.ones((8, SIDE, SIDE, 3), np.float32)
    step = {"name": "translation", "height": 0.5, "width": 0.5}
    assert only({**step, "fill_mode": "constant"}, white).min() == 0
    assert only({**step, "fill_mode": "constant", "fill_value": 1.0}, white).min() == 1
    for mode in ("reflect", "nearest", "wrap"):
        assert only({**step, "fill_mode": mode}, white).min() > 0.999


def test_contrast_goes_both_ways() -> None:
    pixels = pictures(count=32) * 0.2 + 0.4  # far from the ends, where values are cut
    ratio = only({"name": "contrast", "factor": 0.5}, pixels).std((1, 2, 3)) / pixels.std((1, 2, 3))
    assert ratio.min() < 0.85
    assert ratio.max() > 1.15


def test_erasing_takes_its_share_of_the_images() -> None:
    pixels = pictures(count=64)
    step = {"name": "erasing", "probability": 0.25, "fill_value": 0.5, "largest": 0.1}
    changed = (only(step, pixels) != pixels).any(axis=-1).mean((1, 2))
    assert 6 <= (changed > 0).sum() <= 28
    assert changed.max() < 0.15


def test_equalization_is_pillow_s() -> None:
    pixels = np.round(pictures() * 255)
    seeds = Seeds(augment.key(17, 0, 0))
    out = augment_drawn.equalized(tf.constant(pixels / 255, tf.float32), seeds).numpy()
    for image, source in zip(out, pixels.astype(np.uint8), strict=True):
        wanted = np.asarray(ImageOps.equalize(Image.fromarray(source)))
        np.testing.assert_array_equal(np.round(image * 255).astype(np.uint8), wanted)
    even = np.full((1, SIDE, SIDE, 1), 0.4, np.float32)
    np.testing.assert_allclose(augment_drawn.equalized(tf.constant(even), seeds), even, atol=1e-6)


def test_grey_stays_grey_under_colour_jitter() -> None:
    grey = pictures(1)
    three = np.repeat(grey, 3, axis=-1)
    step = {"name": "color_jitter", "brightness": 0, "contrast": 0}
    np.testing.assert_allclose(only(step, three), three, atol=1e-5)
    np.testing.assert_array_equal(only(step, grey), grey)


# Labels.


def test_mixup_mixes_labels_as_it_mixes_pixels() -> None:
    # Each image is its class all over, so that pixels tell the shares.
    pixels = np.broadcast_to(np.eye(4, dtype=np.float32)[:, None, None], (4, SIDE, SIDE, 4))
    out, shares = applied(policy_of({"name": "mixup", "alpha": 1.0}), pixels)
    np.testing.assert_allclose(shares, out.mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    assert ((shares > 0.01) & (shares < 0.99)).any()


def test_cut_mix_s_shares_are_the_areas() -> None:
    pixels = np.broadcast_to(np.eye(4, dtype=np.float32)[:, None, None], (4, SIDE, SIDE, 4))
    for seed in range(5):
        out, shares = applied(policy_of("cut_mix"), pixels, (seed, 0, 0))
        assert set(np.unique(out)) <= {0.0, 1.0}
        np.testing.assert_allclose(shares, out.mean((1, 2)), atol=1e-5)


@pytest.mark.parametrize("name", ["mixup", "cut_mix"])
def test_a_probability_leaves_the_others_alone(name: str) -> None:
    pixels = pictures(count=64)
    out, shares = applied(policy_of({"name": name, "probability": 0.25, "alpha": 1.0}), pixels)
    alone = (shares.max(1) == 1).sum()
    same = sum(np.array_equal(a, b) for a, b in zip(out, pixels, strict=True))
    assert 28 <= same <= 62
    assert alone >= same


def test_several_heads_are_mixed_alike() -> None:
    policy = augment.Policy([augmentation.read("mixup")], {"label": 4, "shape": 4})
    ids = tf.range(4, dtype=tf.int64)
    both = {"label": ids, "shape": ids}
    _, targets = policy(tf.constant(pictures(count=4)), both, augment.key(1, 0, 0))
    np.testing.assert_array_equal(targets["label"], targets["shape"])


# Standardized images.


def test_standardized_images_are_treated_as_others() -> None:
    pixels = pictures()
    mean = np.array([0.5, 0.4, 0.3], np.float32)
    deviation = np.array([0.2, 0.25, 0.3], np.float32)
    value_range = ((0 - mean) / deviation, (1 - mean) / deviation)
    steps = ["flip", "color_jitter", {"name": "translation", "fill_mode": "constant"}]
    plain, _ = applied(policy_of(*steps), pixels)
    standard, _ = applied(policy_of(*steps, value_range=value_range), (pixels - mean) / deviation)
    np.testing.assert_allclose(standard * deviation + mean, plain, atol=1e-5)


def test_a_preview_is_what_training_does() -> None:
    pixels = pictures()
    steps = [augmentation.read(name) for name in ("flip", "crop", "cut_mix")]
    wanted, _ = applied(augment.Policy(steps, {"label": 4}), pixels, (5, 0, 0))
    np.testing.assert_array_equal(augment.preview(steps, pixels, 5), wanted)
    assert augment.preview([], pixels, 5).dtype == np.float32
