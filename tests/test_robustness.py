"""Spoiled pictures: the corruptions on real images, the node on real exports, and its floors."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tfx.types.standard_artifacts import Examples, Model

from components import artifacts
from components.robustness import Robustness
from pipeline import config as configuration
from pipeline import graph, images
from pipeline.blessing import corruptions, verdict
from pipeline.blessing import robustness as spoiled
from pipeline.blessing.corruptions import KINDS, STRENGTHS
from pipeline.config import Config, Evaluate
from pipeline.config import Robustness as Options
from pipeline.errors import ConfigError, SafelightError
from tests import exports, made

COUNTS = {"blue": 12, "green": 12, "red": 12, "white": 12}


def pixels_of(
    number: int = 1, size: tuple[int, int] = (32, 32), grey: bool = False
) -> images.Pixels:
    return np.atleast_3d(np.asarray(made.picture("green", number, size, grey)))


def corrupted(pixels: images.Pixels, name: bytes, *largest_side: int) -> np.ndarray:
    """Returns the files of one image, bytes [kinds, strengths]."""
    return corruptions.corrupted([pixels], [name], *largest_side)[0]


def decoded(data: bytes) -> np.ndarray:
    """Returns float64 [height, width, channels], 0 to 255."""
    return np.atleast_3d(np.asarray(Image.open(io.BytesIO(data)))).astype(np.float64)


def of_kind(files: np.ndarray, kind: str) -> list[np.ndarray]:
    return [decoded(data) for data in files[KINDS.index(kind)]]


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (28, 20), (6, 5), (120, 90), (200, 9)])
def test_every_kind_keeps_the_size_and_spoils_more_with_its_strength(size, grey):
    pixels = pixels_of(3, size, grey)
    files = corrupted(pixels, b"name")
    assert files.shape == (len(KINDS), STRENGTHS)
    for kind in KINDS:
        versions = of_kind(files, kind)
        assert {version.shape for version in versions} == {pixels.shape}
        distances = [float(np.abs(version - pixels).mean()) for version in versions]
        assert distances[0] > 0
        # One block of a JPEG is too little to tell its qualities apart.
        assert distances == sorted(distances) or (kind == "jpeg" and min(size) < 8), kind


def test_what_the_kinds_do_to_a_picture():
    pixels = pixels_of(2)
    files = corrupted(pixels, b"name")
    before = images.facts(pixels)

    def facts(kind: str) -> list[images.Facts]:
        return [images.facts(version.astype(np.uint8)) for version in of_kind(files, kind)]

    noise = of_kind(files, "noise")[1] - pixels
    inside = (pixels > 60) & (pixels < 195)  # nothing is clipped there
    assert noise[inside].std() == pytest.approx(0.08 * 255, rel=0.1)
    assert abs(noise[inside].mean()) < 3
    for one in facts("blur"):
        assert one.sharpness < before.sharpness
        assert one.brightness == pytest.approx(before.brightness, abs=0.01)
    assert facts("blur")[2].sharpness < 0.1 * before.sharpness
    brighter = [one.brightness for one in facts("brightness")]
    assert before.brightness < brighter[0] < brighter[1] < brighter[2]
    for factor, one in zip((0.75, 0.4, 0.15), facts("contrast"), strict=True):
        assert one.contrast == pytest.approx(factor * before.contrast, rel=0.1)
    headers = {kind: {data[:4] for data in files[KINDS.index(kind)]} for kind in KINDS}
    assert headers.pop("jpeg") == {b"\xff\xd8\xff\xe0"}
    assert set().union(*headers.values()) == {b"\x89PNG"}
    sizes = [len(data) for data in files[KINDS.index("jpeg")]]
    assert sizes == sorted(sizes, reverse=True)


def test_a_black_picture_gets_brighter_and_a_flat_one_stays_flat():
    black = of_kind(corrupted(np.zeros((16, 16, 3), np.uint8), b"x"), "brightness")
    assert [float(version.mean()) for version in black] == [13, 38, 76]
    flat = corrupted(np.full((16, 16, 1), 99, np.uint8), b"x")
    for kind in ("blur", "contrast"):
        assert all((version == 99).all() for version in of_kind(flat, kind))


def test_the_same_image_is_spoiled_alike_every_time_and_another_otherwise():
    pixels = pixels_of()
    files = corrupted(pixels, b"one")
    assert (files == corrupted(pixels, b"one")).all()
    other = corrupted(pixels, b"two")
    assert (files[1:] == other[1:]).all() and (files[0] != other[0]).all()


def test_a_large_picture_is_shrunk_first():
    pixels = pixels_of(size=(600, 400))
    assert decoded(corrupted(pixels, b"x")[0, 0]).shape == (171, 256, 3)
    assert decoded(corrupted(pixels, b"x", 384)[2, 0]).shape == (256, 384, 3)


@pytest.mark.parametrize("grey", [False, True])
def test_images_that_are_spoiled_together_are_spoiled_as_each_alone(monkeypatch, grey):
    sizes = [(32, 32), (40, 24), (120, 90)] * 3 + [(32, 32)] * 3 + [(300, 200)]
    pictures = [pixels_of(number, size, grey) for number, size in enumerate(sizes)]
    names = [f"image {number}".encode() for number in range(len(sizes))]
    # Four of the smallest in one call, so that a size takes several.
    monkeypatch.setattr(corruptions, "_CALL_BYTES", 4 * pictures[0].nbytes)
    together = corruptions.corrupted(pictures, names)
    assert together.shape == (len(sizes), len(KINDS), STRENGTHS)
    for files, pixels, name in zip(together, pictures, names, strict=True):
        alone = corrupted(pixels, name)
        for one, other in zip(files.flat, alone.flat, strict=True):
            # Sums in another order may round a level up or down.
            assert np.abs(decoded(one) - decoded(other)).max() <= 1
        # What adds nothing up is the same to the bit; JPEG and noise would show a mix-up.
        for kind in ("noise", "jpeg", "brightness"):
            assert (files[KINDS.index(kind)] == alone[KINDS.index(kind)]).all()


def test_images_are_picked_evenly_and_always_the_same():
    labels = ["a"] * 90 + ["b"] * 5 + ["c"] * 60
    ids = [f"{label}{row}".encode() for row, label in enumerate(labels)]
    rows = spoiled.pick(ids, labels, 31)
    picked = [labels[row] for row in rows]
    assert rows == sorted(rows)
    assert {name: picked.count(name) for name in "abc"} == {"a": 13, "b": 5, "c": 13}
    assert spoiled.pick(ids, labels, 1000) == list(range(155))
    # The order of the records does not matter.
    back = spoiled.pick(ids[::-1], labels[::-1], 31)
    assert {ids[::-1][row] for row in back} == {ids[row] for row in rows}


class Made:
    """Examples and two exports below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.examples = exports.artifact(
            Examples, exports.write_examples(root / "examples", COUNTS), split_names='["test"]'
        )
        exports.save_model(root / "good" / "Format-Serving")
        exports.save_model(
            root / "bad" / "Format-Serving", answers={"red": "white", "white": "red"}
        )

    def ask(self, model: str, champion: str = "", count: int = 40) -> dict:
        target = exports.artifact(artifacts.Robustness, self.root / f"{model}-{champion}")
        Robustness.test_call(
            examples=self.examples,
            model=exports.artifact(Model, self.root / model),
            robustness=target,
            champion=str(self.root / champion / "Format-Serving") if champion else "",
            count=count,
            confidence=0.95,
            code="",
        )
        return json.loads((Path(target.uri) / spoiled.FILE).read_text())


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    made_models = Made(tmp_path_factory.mktemp("robustness"))
    return made_models.ask("good"), made_models.ask("bad", "good")


def test_the_node_asks_the_export(asked):
    found, _ = asked
    assert (found["images"], found["clean"], found["versions"]) == (40, 1.0, 15)
    assert list(found["kinds"]) == list(KINDS)
    for rows in found["kinds"].values():
        assert [row["strength"] for row in rows] == [1, 2, 3]
        assert all(row["lower"] <= row["accuracy"] <= row["upper"] for row in rows)
        assert all(row["champion"] is None for row in rows)
    # The mean colour stays under noise, blur and JPEG compression, and so do the answers.
    assert found["kinds"]["noise"][2]["accuracy"] == 1.0
    assert found["kinds"]["blur"][2]["accuracy"] == 1.0
    assert found["champion_right"] is None and len(found["right"]) == 40


def test_the_champion_sees_the_very_same_pictures(asked):
    alone, both = asked
    for kind, rows in both["kinds"].items():
        assert [row["champion"] for row in rows] == [
            row["accuracy"] for row in alone["kinds"][kind]
        ]
    assert both["champion_right"] == alone["right"]
    assert both["clean"] == 0.5


def test_the_floor(asked):
    found, _ = asked
    assert spoiled.judge(None, Options(), 0.95) == ([], {})
    checks, told = spoiled.judge(found, Options(), 0.95)
    assert checks == [] and set(told["robustness"]) == {"images", "clean", "kinds"}
    mean = np.mean([row["accuracy"] for rows in found["kinds"].values() for row in rows])
    [check], _ = spoiled.judge(found, Options(images=40, min_accuracy=0.5), 0.95)
    assert check.passed and check.value == pytest.approx(mean)
    [check], _ = spoiled.judge(found, Options(images=40, min_accuracy=0.999), 0.95)
    assert check.passed == (check.bound >= 0.999)
    perfect = {**found, "right": [found["versions"]] * 2}
    [check], _ = spoiled.judge(perfect, Options(images=40, min_accuracy=0.9), 0.95)
    assert not check.passed and 0 <= check.bound < 0.5  # two images show little
    worse = {**found, "right": [max(0, right - 5) for right in found["right"]]}
    [check], _ = spoiled.judge(worse, Options(images=40, min_accuracy=0.9), 0.95)
    assert not check.passed and "robustness.min_accuracy" in check.message


def test_a_loss_against_the_champion(asked):
    _, found = asked
    options = Options(images=40, max_regression=0.02)
    [check], _ = spoiled.judge(found, options, 0.95)
    assert check.name == "robustness_champion" and not check.passed
    assert check.value < -0.3 and check.message.endswith("worse.")
    alike = {**found, "right": found["champion_right"]}
    [check], _ = spoiled.judge(alike, options, 0.95)
    # Forty answers that agree show no more than that a loss is small.
    assert check.passed and check.bound == check.value == 0
    assert check.message.endswith("so the estimate decides: within the margin.")
    many = {key: found[key] * 100 for key in ("right", "champion_right")}
    [check], _ = spoiled.judge({**alike, **many, "right": many["champion_right"]}, options, 0.95)
    assert check.passed and check.message.endswith("no worse.")


def test_the_verdict_holds_what_was_found(asked):
    from tests.test_blessing_gate import GOOD, evidence

    _, found = asked
    told = verdict.judge(
        evidence(GOOD, robustness=found), Evaluate(), Options(images=40, max_regression=0.02)
    )
    assert not told["blessed"] and len(told["reasons"]) == 1
    assert told["robustness"]["kinds"] == found["kinds"]
    json.dumps(told, allow_nan=False)
    assert verdict.judge(evidence(GOOD, robustness=found), Evaluate())["blessed"]


def test_an_empty_split_is_refused(tmp_path):
    made_models = exports.write_examples(tmp_path / "examples", {"red": 0})
    exports.save_model(tmp_path / "model" / "Format-Serving")
    with pytest.raises(SafelightError, match="holds no images"):
        Robustness.test_call(
            examples=exports.artifact(Examples, made_models, split_names='["test"]'),
            model=exports.artifact(Model, tmp_path / "model"),
            robustness=exports.artifact(artifacts.Robustness, tmp_path / "out"),
            champion="",
            count=40,
            confidence=0.95,
            code="",
        )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("robustness.images=10", "expected 0 (off) or at least 30"),
        ("robustness.min_accuracy=0.5", "robustness.images is 0"),
        ("robustness.max_regression=0.5", "robustness.images is 0"),
        ("robustness.min_accuracy=2", "robustness.min_accuracy"),
    ],
)
def test_thresholds_that_could_not_hold_are_refused(override, words):
    with pytest.raises(ConfigError) as refused:
        configuration.load(overrides=[override])
    assert words in str(refused.value)


def test_the_node_is_in_the_graph_where_it_was_asked_for():
    def built(**sections) -> dict:
        given = graph.Given(
            data="d",
            known_classes=(),
            champion_uri="c",
            lineage={"data": "", "config": "", "code": ""},
            artifacts="a",
            checkpoints="k",
            serving_dir="s",
        )
        nodes = graph.build(Config(**sections), given).components
        return {node.id: node for node in nodes}

    off = built()
    assert "Robustness" not in off and "robustness" not in off["BlessingGate"].inputs
    on = built(robustness={"images": 50, "min_accuracy": 0.5})
    assert on["Robustness"].exec_properties["count"] == 50
    assert on["BlessingGate"].inputs["robustness"].producer_component_id == "Robustness"
    floors = json.loads(on["BlessingGate"].exec_properties["robustness_options"])
    assert floors["min_accuracy"] == 0.5
