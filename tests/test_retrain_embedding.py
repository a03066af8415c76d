"""What a trained network sees in new images: other content, wrong labels, and neither."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from pipeline import export, heads, images, models
from pipeline.commands import demo
from pipeline.config import Retrain, Train
from pipeline.records import Input
from pipeline.retrain import embedding, policy
from pipeline.retrain.labels import Contradicted
from pipeline.retrain.policy import SpanEvidence
from tests import examples, graphs

SIDE = 28
# Four handwritten digits, under the names that the tests' transform graph knows.
DIGITS = dict(zip(graphs.CLASSES, (0, 1, 3, 4), strict=True))
TRAIN = Train(preset="mnist-cnn-small")
Change = Callable[[np.ndarray], np.ndarray]


def pictures(first: int, count: int) -> Iterable[tuple[str, np.ndarray]]:
    """Yields (class, uint8 [28, 28]) of real digits, from the `first` of each class on."""
    pixels, labels = demo.read_digits()
    for name, digit in DIGITS.items():
        for picture in pixels[labels == digit][first : first + count]:
            yield name, picture


def same(picture: np.ndarray) -> np.ndarray:
    return picture


def write(root: Path, first: int, count: int, change: Change = same, wrong: float = 0.0) -> str:
    """Writes an Examples artifact of so many of each class; returns its path."""
    draw = np.random.default_rng(0)
    names = list(DIGITS)
    rows = []
    for number, (name, picture) in enumerate(pictures(first, count)):
        label = name
        if draw.random() < wrong:
            label = names[(names.index(name) + int(draw.integers(1, 4))) % 4]
        encoded = examples.encoded(Image.fromarray(change(picture)))
        rows.append(examples.example(encoded, label, f"{number}"))
    cut = len(rows) // 3
    order = np.random.default_rng(1).permutation(len(rows))
    shuffled = [rows[index] for index in order]
    for split, part in zip(
        ("train", "eval", "test"),
        (shuffled[:cut], shuffled[cut : 2 * cut], shuffled[2 * cut :]),
        strict=True,
    ):
        examples.write_split(root, split, part)
    return str(root)


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An export of a network trained on digits, and where its run's artifacts are."""
    root = tmp_path_factory.mktemp("champion")
    keras.utils.set_random_seed(5)
    answers = heads.of(TRAIN, graphs.CLASSES)
    model = models.build(TRAIN, image_size=SIDE, channels=1, heads=answers)
    pixels = np.stack([picture for _, picture in pictures(0, 150)])[..., None] / np.float32(255)
    numbers = np.array([list(DIGITS).index(name) for name, _ in pictures(0, 150)])
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    model.fit(pixels, numbers, epochs=4, batch_size=32, verbose=0)
    graph = graphs.transform_graph(SIDE, 1)
    facts = export.model_facts(model, train=TRAIN, heads=answers, resize="pad", normalize="unit")
    some = [examples.encoded(Image.fromarray(picture)) for _, picture in pictures(0, 1)]
    export.export(model, Input(graph, SIDE, 1), facts, some, root / "3")
    made = {
        "Transform": {"transform_graph": str(graph)},
        "ImageExampleGen": {"examples": write(root / "own", 150, 90)},
    }
    return root / "3", made


def seen(champion: tuple[Path, dict[str, Any]], root: Path, **span: Any) -> dict[str, Any]:
    where, made = champion
    return embedding.compare(where, made, write(root / "span", 260, 60, **span), root / "cache")


def evidence(found: dict[str, Any]) -> SpanEvidence:
    labels = Contradicted(**found["labels"])
    return SpanEvidence(7, 240, moved=found["moved"], chance=found["chance"], labels=labels)


def fires(found: dict[str, Any]) -> bool:
    options = Retrain(new_spans=0, embedding_drift=1.5)
    situation = policy.Situation(
        now=0.0, champion=policy.Champion(3, 0.0), new=[evidence(found)], usable=2
    )
    return policy.decide(situation, options).due


@pytest.mark.slow
def test_images_like_its_own_are_near_and_their_labels_stand(champion, tmp_path):
    found = seen(champion, tmp_path)
    assert found["moved"] <= 1.2 * found["chance"]
    assert not fires(found)
    assert policy.doubts(evidence(found), Retrain()) == ""
    # What it sees in its own images is kept, and gives the same again.
    [kept] = (tmp_path / "cache" / "features").iterdir()
    where, made = champion
    assert embedding.compare(where, made, str(tmp_path / "span"), tmp_path / "cache") == found
    kept.write_bytes(kept.read_bytes()[:100])
    assert embedding.compare(where, made, str(tmp_path / "span"), tmp_path / "cache") == found


def test_turned_images_are_far_though_as_bright(champion, tmp_path):
    def turned(picture: np.ndarray) -> np.ndarray:
        return np.rot90(picture).copy()

    before, after = (
        images.facts(change(picture)[..., None])
        for change in (same, turned)
        for _, picture in list(pictures(260, 1))[:1]
    )
    assert before.brightness == pytest.approx(after.brightness)
    assert before.contrast == pytest.approx(after.contrast)
    found = seen(champion, tmp_path, change=turned)
    assert found["moved"] > 2 * found["chance"]
    assert fires(found)
    # The champion errs on these: that is no fault of the labels.
    assert policy.doubts(evidence(found), Retrain()) == ""


@pytest.mark.slow
def test_a_bad_labellers_images_are_near_and_their_labels_doubted(champion, tmp_path):
    found = seen(champion, tmp_path, wrong=0.6)
    assert found["moved"] <= 1.2 * found["chance"]
    assert found["labels"]["contradicted"] > 80
    doubt = policy.doubts(evidence(found), Retrain())
    assert "labels look wrong" in doubt and "--release-span 7" in doubt
    assert policy.doubts(evidence(found), Retrain(label_noise=0)) == ""


@pytest.mark.slow
def test_a_run_whose_graph_is_gone_is_no_error(champion, tmp_path):
    where, made = champion
    gone = {**made, "Transform": {"transform_graph": str(tmp_path / "gone")}}
    assert embedding.compare(where, gone, made["ImageExampleGen"]["examples"], tmp_path) == {}
    assert embedding.compare(where, {}, made["ImageExampleGen"]["examples"], tmp_path) == {}


def test_wide_features_keep_their_distances():
    draw = np.random.default_rng(0)
    wide = draw.standard_normal((40, 3000)).astype(np.float32)
    narrow = embedding._narrow(wide)
    assert narrow.shape == (40, 512)
    apart = [float(np.linalg.norm(one[0] - one[1:], axis=1).mean()) for one in (wide, narrow)]
    assert apart[1] == pytest.approx(apart[0], rel=0.05)
