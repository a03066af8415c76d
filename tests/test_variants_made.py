"""Variants of real models: converted, tried, and asked by the client of docs/variants.md."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import config, export
from pipeline.evaluator import predictions
from pipeline.variants import convert, judge, lite, make, pixels
from pipeline.variants.bench import Bench
from tests import graphs, two_heads
from tests.variants_made import Trained

ALL = ("tflite-float32", "tflite-float16", "tflite-int8-dynamic", "tflite-int8", "pruned")
LITE = ALL[:4]
DOCS = Path(__file__).parent.parent / "docs" / "variants.md"

OWN = """
import os
from pathlib import Path

import keras
from keras import layers


def network(pixels):
    x = pixels
    for filters in (8, 16):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.5)(x)
        x = layers.Activation("relu")(x)
        x = layers.MaxPooling2D()(x)
    return layers.Dropout(0.1)(layers.GlobalAveragePooling2D()(x))


class Odd(layers.Layer):
    def call(self, x):
        return keras.ops.erfinv(keras.ops.tanh(x) * 0.5)


def odd(pixels):
    return Odd()(layers.Flatten()(layers.MaxPooling2D(4)(pixels)))


def dying(pixels):
    once = Path(__file__).with_name("once")
    if once.exists():
        once.unlink()
        os.abort()
    return network(pixels)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Trains a network of this file's own, by the name of its function."""
    name = f"variants_own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return lambda function, **settings: Trained(
        tmp_path / "own", preset=None, model=f"{name}:{function}", **settings
    )


def by_name(entries: dict, key: str) -> dict:
    return {name: entry[key] for name, entry in entries.items()}


def test_floats_answer_as_the_savedmodel_and_wrong_integers_are_blocked(trained, tmp_path):
    bench = Bench(trained.make_job(tmp_path))
    found = bench.converted("tflite-float32")
    said = np.load(bench.job.answers("tflite-float32"))
    # The test images have the network's size: their pixels are bytes already.
    np.testing.assert_allclose(said, trained.answered.probabilities, atol=1e-4)
    assert 0 < found["size_ratio"] < 1 and found["p50_ms"] > 0 and found["ratio"] > 0
    # A quantization gone wrong: its ranges come from a black image alone.
    bench.__dict__["representative"] = np.zeros((2, *bench.source.shape), np.uint8)
    wrong = bench.converted("tflite-int8")
    truth = np.array([trained.answered.classes.index(name) for name in trained.answered.labels])
    entry = judge.judge(
        wrong,
        np.load(bench.job.answers("tflite-int8")),
        trained.answered.probabilities.argmax(axis=1),
        truth,
        judge.limits(config.Variants(), "tflite-int8", 0.95),
    )
    assert not entry["blessed"] and entry["accuracy"] < 0.6 < trained.answered.correct().mean()
    assert "drop" in [check["name"] for check in entry["checks"] if not check["passed"]]


def test_images_of_one_name_are_told_apart(trained, tmp_path):
    import tensorflow as tf

    # A folder of the newest span may be called like another span, before whose images its name is.
    job = trained.make_job(tmp_path)
    records = tf.data.TFRecordDataset(list(job.test_files)).as_numpy_iterator()
    renamed = tmp_path / "renamed"
    with tf.io.TFRecordWriter(str(renamed)) as writer:
        for record in records:
            example = tf.train.Example.FromString(record)
            example.features.feature["id"].bytes_list.value[0] = b"golden/1.png"
            writer.write(example.SerializeToString())
    names = [b"golden/1.png"] * len(trained.answered.ids)
    job.wanted.write_text(json.dumps([name.hex() for name in names]))
    bench = Bench(job.model_copy(update={"test_files": (str(renamed),)}))
    untouched = Bench(trained.make_job(tmp_path / "untouched"))
    np.testing.assert_array_equal(bench.pixels, untouched.pixels)
    said = bench._asked(predictions.Export(job.export))
    np.testing.assert_allclose(said, trained.answered.probabilities, atol=1e-5)


def test_pixels_are_bytes_again():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    unit = levels.astype(np.float32) / 255
    np.testing.assert_array_equal(pixels.as_bytes(unit, None), levels)
    mean, deviation = np.float32([0.4, 0.5, 0.6]), np.float32([0.2, 0.3, 0.1])
    ends = ((0 - mean) / deviation, (1 - mean) / deviation)
    np.testing.assert_array_equal(pixels.as_bytes((unit - mean) / deviation, ends), levels)
    scale, offset = pixels.scaling(ends)
    again = levels * np.float32(scale) + np.float32(offset)
    np.testing.assert_allclose(again, (unit - mean) / deviation, atol=1e-5)


def test_a_share_of_each_kernel_goes_and_stays_gone():
    import keras

    from pipeline.variants import prune

    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3), keras.layers.Flatten()]
    )
    model.add(keras.layers.Dense(3))
    share = prune.hold(model, 0.75)
    kernels = [v for v in model.trainable_variables if len(v.shape) > 1]
    zeros = [np.asarray(kernel) == 0 for kernel in kernels]
    assert [float(one.mean()) for one in zeros] == [0.75, 0.75]
    assert 0.7 < share < 0.75  # biases are weights too
    model.compile("adam", "mse")
    data = np.random.default_rng(0).normal(size=(32, 8, 8, 1))
    model.fit(data, np.ones((32, 3)), epochs=2, verbose=0)
    for kernel, before in zip(kernels, zeros, strict=True):
        np.testing.assert_array_equal(np.asarray(kernel) == 0, before)
    assert all(np.asarray(v).any() for v in model.trainable_variables if len(v.shape) == 1)
    with_ties = prune.mask(np.zeros((2, 5), np.float32), 0.5)
    assert with_ties.sum() == 5


@pytest.fixture(scope="module")
def everything(trained, tmp_path_factory):
    """All variants of one model, made in their processes."""
    target = tmp_path_factory.mktemp("everything")
    loose = {"max_drop": 0.05, "max_latency_ratio": 100, "representative_images": 40}
    return target, make.make(trained.work(target, names=ALL, prune_epochs=1, **loose))


@pytest.mark.slow
def test_all_variants_of_a_model(everything, trained):
    target, found = everything
    entries = found["variants"]
    assert found["images"] == len(trained.answered.ids) and list(entries) == list(ALL)
    assert by_name(entries, "blessed") == dict.fromkeys(ALL, True), entries
    sizes = by_name(entries, "bytes")
    assert sizes["tflite-int8"] < sizes["tflite-float16"] < sizes["tflite-float32"]
    assert entries["pruned"]["size_ratio"] < 0.95
    for name in LITE:
        assert (target / entries[name]["file"]).stat().st_size == sizes[name]
        assert abs(entries[name]["drop"]) < 0.05


@pytest.mark.slow
def test_labels_and_facts_are_inside_and_beside(everything, trained):
    target, _ = everything
    for name in LITE:
        folder = target / name
        with zipfile.ZipFile(folder / "model.tflite") as archive:
            inside = {one: archive.read(one).decode() for one in archive.namelist()}
        assert set(inside) == {"labels.txt", "model.json"}
        assert inside["labels.txt"].splitlines() == list(graphs.CLASSES)
        for file, text in inside.items():
            assert (folder / file).read_text() == text
        facts = json.loads(inside["model.json"])
        assert facts["variant"] == name and facts["classes"] == list(graphs.CLASSES)
        assert facts["fingerprint"] == trained.answered.model
        assert facts["input"]["type"] == "uint8" and facts["input"]["name"] == "pixels"
        [output] = facts["outputs"]
        assert output["name"] == "probabilities"
        if name == "tflite-int8":
            assert facts["input"]["scale"] == pytest.approx(1, abs=1e-6)
            assert facts["input"]["zero_point"] == 0
            assert (output["type"], output["scale"]) == ("uint8", 1 / 256)
        else:
            assert output["type"] == "float32"


@pytest.mark.slow
def test_the_pruned_model_is_one_of_ours(everything, trained, tmp_path):
    target, _ = everything
    served = predictions.Export(target / "pruned")
    assert served.classes == trained.answered.classes
    assert served.fingerprint != trained.answered.model
    image = graphs.encoded("red", 900, 16)
    assert served.serve([image]).labels == ["red"]
    kernels = [w for w in export.load_weights(target / "pruned").get_weights() if w.ndim > 1]
    for kernel in kernels:
        assert (kernel == 0).mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", LITE)
def test_the_client_of_the_documentation(name, everything, tmp_path):
    [script] = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "classify.py").write_text(script)
    target, _ = everything
    photos = []
    for label in graphs.CLASSES:
        photos.append(tmp_path / f"{label}.png")
        photos[-1].write_bytes(graphs.encoded(label, 901, 40))
    model = target / name / "model.tflite"
    done = subprocess.run(
        [sys.executable, tmp_path / "classify.py", model, *photos],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[1] for row in rows] == list(graphs.CLASSES)
    assert all(float(row[2]) > 0.4 for row in rows)


@pytest.mark.slow
def test_batch_normalization_dropout_and_augmentation(own, tmp_path):
    trained = own("network", epochs=6, augment=("flip",))
    accuracy = trained.answered.correct().mean()
    target = tmp_path / "target"
    target.mkdir()
    options = {"max_drop": 0.1, "max_latency_ratio": 100, "representative_images": 40}
    found = make.make(trained.work(target, names=("tflite-float32", "tflite-int8"), **options))
    entries = found["variants"]
    assert entries["tflite-float32"]["accuracy"] == pytest.approx(accuracy)
    assert entries["tflite-float32"]["blessed"], entries
    assert entries["tflite-int8"]["accuracy"] > accuracy - 0.1


@pytest.mark.slow
def test_every_head_answers_and_the_temperature_is_inside(tmp_path):
    import keras

    from pipeline import models, records
    from pipeline.blessing.calibration import Fitted

    keras.utils.set_random_seed(11)
    model = models.build(
        two_heads.TRAIN, image_size=two_heads.SIZE, channels=3, heads=two_heads.HEADS
    )
    source = records.Input(two_heads.transform_graph(), two_heads.SIZE, 3, two_heads.HEADS)
    facts = export.model_facts(
        model,
        train=two_heads.TRAIN,
        heads=two_heads.HEADS,
        resize="stretch",
        normalize="unit",
        calibrated=Fitted(temperature=2.5, threshold=0.9),
    )
    images = [two_heads.shown(number).data for number in range(6)]
    export.export(model, source, facts, images, tmp_path / "export")
    served = predictions.Export(tmp_path / "export").serve(images)
    rebuilt = convert.load(tmp_path / "export", facts.temperature)
    scaling = pixels.scaling(source.value_range())
    network = convert.network(rebuilt, two_heads.HEADS, scaling, "uint8", tmp_path / "network")
    path = tmp_path / "model.tflite"
    path.write_bytes(convert.converted("tflite-float32", network, None))
    asked = lite.Lite(path)
    shown = [np.asarray(Image.open(io.BytesIO(data)), np.uint8)[None] for data in images]
    grade, severity = (served.heads[name] for name in ("grade", "severity"))
    for row, one in enumerate(shown):
        asked.answer(one)
        for output, expected in (
            ("probabilities", served.probabilities[row]),
            ("grade_probabilities", grade.probabilities[row]),
            ("severity", severity.predicted[row]),
        ):
            np.testing.assert_allclose(asked.output(output)[0], expected, atol=1e-4)


@pytest.mark.slow
def test_what_tensorflow_lite_lacks_is_named(own, tmp_path, event_log):
    trained = own("odd", epochs=1)
    target = tmp_path / "target"
    target.mkdir()
    found = make.make(trained.work(target, names=("tflite-float32", "tflite-int8-dynamic")))
    for entry in found["variants"].values():
        assert not entry["blessed"] and entry["file"] is None
        [check] = entry["checks"]
        assert "TensorFlow Lite has no Erfinv" in check["message"]
    assert "is not blessed" in event_log.read_text()


@pytest.mark.slow
def test_a_converter_that_dies_takes_one_variant_along(own, tmp_path):
    trained = own("dying", epochs=1)
    (tmp_path / "once").touch()
    target = tmp_path / "target"
    target.mkdir()
    options = {"max_drop": 1, "max_latency_ratio": 100}
    found = make.make(trained.work(target, names=LITE[:2], **options))
    first, second = found["variants"].values()
    assert "SIGABRT" in first["checks"][0]["message"] and not first["blessed"]
    assert second["blessed"], second
    assert lite.Lite(target / second["file"])


@pytest.mark.slow
def test_a_damaged_export_is_an_error(trained, tmp_path):
    from pipeline.errors import SafelightError

    work = trained.work(tmp_path, names=("tflite-float32",))
    broken = tmp_path / "broken"
    broken.mkdir()
    with pytest.raises(SafelightError, match="no model"):
        make.make(make.Work(**{**vars(work), "export": broken}))
