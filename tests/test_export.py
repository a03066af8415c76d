"""The export: what each signature takes and gives, and what lies beside the SavedModel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from pipeline import export, features, heads, model_json, models, presets
from pipeline.blessing import calibration
from pipeline.config import Train
from pipeline.errors import SafelightError
from pipeline.records import Input
from tests import graphs

SIZE = 16
IMAGES = [graphs.encoded(name, number, SIZE) for name in graphs.CLASSES for number in range(2)]
EXAMPLES = [graphs.example(name, number, SIZE) for name in graphs.CLASSES for number in range(2)]


@pytest.fixture(scope="module")
def source() -> Input:
    return Input(graphs.transform_graph(SIZE, 3), SIZE, 3)


def exported(
    source: Input,
    path: Path,
    preset: str = "mnist-cnn-small",
    calibrated: calibration.Fitted = calibration.Fitted(),  # noqa: B008 - frozen
) -> tuple[keras.Model, Path]:
    keras.utils.set_random_seed(3)
    train = Train(preset=preset)
    answers = heads.of(train, graphs.CLASSES)
    model = models.build(train, image_size=SIZE, channels=3, heads=answers)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    facts = export.model_facts(
        model,
        train=train,
        heads=answers,
        resize="stretch",
        normalize="unit",
        calibrated=calibrated,
    )
    export.export(model, source, facts, IMAGES[:3], path)
    return model, path


@pytest.fixture(scope="module")
def made(source: Input, tmp_path_factory: pytest.TempPathFactory) -> tuple[keras.Model, Path]:
    return exported(source, tmp_path_factory.mktemp("export") / "model")


@pytest.fixture(scope="module")
def loaded(made: tuple[keras.Model, Path]) -> Any:
    return tf.saved_model.load(str(made[1]))


def call(loaded: Any, signature: str, **inputs: list[bytes]) -> dict[str, np.ndarray]:
    tensors = {name: tf.constant(value, tf.string) for name, value in inputs.items()}
    return {k: v.numpy() for k, v in loaded.signatures[signature](**tensors).items()}


def test_serving_default_answers_a_batch_of_images(
    made: tuple[keras.Model, Path], loaded: Any, source: Input
) -> None:
    answer = call(loaded, features.SERVING_SIGNATURE, image=IMAGES)
    assert set(answer) == {"label", "score", "classes", "probabilities"}
    assert {name: value.shape for name, value in answer.items()} == {
        "label": (8,),
        "score": (8,),
        "classes": (8, 4),
        "probabilities": (8, 4),
    }
    assert answer["probabilities"].dtype == answer["score"].dtype == np.float32
    names = np.array([name.encode() for name in graphs.CLASSES])
    assert (answer["classes"] == names).all()
    np.testing.assert_array_equal(answer["label"], names[answer["probabilities"].argmax(axis=1)])
    np.testing.assert_array_equal(answer["score"], answer["probabilities"].max(axis=1))
    pixels, _ = source.transform(tf.constant(EXAMPLES))
    np.testing.assert_allclose(answer["probabilities"], made[0](pixels), rtol=1e-5, atol=1e-7)


def test_each_output_has_the_batch_dimension_also_for_one_image(loaded: Any) -> None:
    answer = call(loaded, features.SERVING_SIGNATURE, image=IMAGES[:1])
    assert {name: value.shape for name, value in answer.items()} == {
        "label": (1,),
        "score": (1,),
        "classes": (1, 4),
        "probabilities": (1, 4),
    }


def test_examples_give_the_same_answers(loaded: Any) -> None:
    images = call(loaded, features.SERVING_SIGNATURE, image=IMAGES)
    examples = call(loaded, features.EXAMPLES_SIGNATURE, examples=EXAMPLES)
    assert set(examples) == set(images)
    for name, value in images.items():
        np.testing.assert_array_equal(examples[name], value)


def test_transform_features_gives_the_label_id(loaded: Any) -> None:
    unknown = graphs.example("white", 1, SIZE).replace(b"white", b"black")
    answer = call(loaded, features.TRANSFORM_SIGNATURE, examples=[*EXAMPLES, unknown])
    assert set(answer) == {"label_id"}
    assert answer["label_id"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, -1]


def test_the_signatures_inputs_have_their_documented_names(loaded: Any) -> None:
    for signature, name in (
        (features.SERVING_SIGNATURE, "image"),
        (features.EXAMPLES_SIGNATURE, "examples"),
        (features.TRANSFORM_SIGNATURE, "examples"),
    ):
        _, inputs = loaded.signatures[signature].structured_input_signature
        assert {key: (spec.dtype, spec.shape.rank) for key, spec in inputs.items()} == {
            name: (tf.string, 1)
        }


def test_the_weights_come_without_the_optimizers(made: tuple[keras.Model, Path]) -> None:
    model, path = made
    size = (path / "assets.extra" / features.WEIGHTS).stat().st_size
    assert 4 * model.count_params() < size < 2 * 4 * model.count_params()


def test_bytes_that_are_no_image_are_refused(loaded: Any) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="image 1 of the"):
        call(loaded, features.SERVING_SIGNATURE, image=[IMAGES[0], b"not an image"])


def test_model_json_has_the_facts(made: tuple[keras.Model, Path]) -> None:
    model, path = made
    facts = json.loads((path / "assets.extra" / "model.json").read_text())
    versions = facts.pop("versions")
    assert facts == {
        "format": 2,
        "classes": list(graphs.CLASSES),
        "image_size": SIZE,
        "channels": 3,
        "resize": "stretch",
        "normalize": "unit",
        "preset": "mnist-cnn-small",
        "parameters": model.count_params(),
        "fingerprint": export.weights_fingerprint(model),
        "architecture": models.architecture(Train(preset="mnist-cnn-small")),
        "heads": [],
        "temperature": None,
        "threshold": None,
    }
    assert set(versions) == {"tfx", "tensorflow", "keras", "safelight"}
    assert versions["keras"] == keras.__version__


def test_the_fingerprint_follows_the_weights(made: tuple[keras.Model, Path]) -> None:
    model = keras.models.clone_model(made[0])
    model.set_weights(made[0].get_weights())
    same = export.weights_fingerprint(model)
    assert same == export.weights_fingerprint(made[0])
    changed = model.get_weights()
    changed[0][0] += 1e-6
    model.set_weights(changed)
    assert export.weights_fingerprint(model) != same


def test_warm_up_requests_can_be_replayed(made: tuple[keras.Model, Path], loaded: Any) -> None:
    path = made[1] / "assets.extra" / "tf_serving_warmup_requests"
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    sizes = []
    for record in records:
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        assert request.model_spec.signature_name == "serving_default"
        images = tf.make_ndarray(request.inputs["image"]).tolist()
        assert set(images) <= set(IMAGES)
        sizes.append(len(images))
        call(loaded, features.SERVING_SIGNATURE, image=images)
    assert sizes == [1, 8]


@pytest.mark.parametrize("preset", sorted(set(presets.PRESETS) - {"mnist-cnn-small"}))
def test_every_preset_exports_and_comes_back_with_its_weights(
    preset: str, source: Input, tmp_path: Path
) -> None:
    model, path = exported(source, tmp_path / "model", preset)
    answer = call(tf.saved_model.load(str(path)), features.SERVING_SIGNATURE, image=IMAGES)
    again = export.load_weights(path)
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    pixels, _ = source.transform(tf.constant(EXAMPLES))
    np.testing.assert_allclose(answer["probabilities"], again(pixels), rtol=1e-5, atol=1e-7)


def test_what_is_no_export_is_said(source: Input, tmp_path: Path) -> None:
    with pytest.raises(SafelightError, match=r"no model at .*model\.json is missing"):
        export.load_weights(tmp_path)
    _, path = exported(source, tmp_path / "model")
    facts = path / "assets.extra" / "model.json"
    text = facts.read_text()
    facts.write_text(text.replace('"mnist-cnn-small"', '"cifar10-cnn"'))
    with pytest.raises(SafelightError, match="does not hold the weights of 'cifar10-cnn'"):
        export.load_weights(path)
    facts.write_text(text.replace('"format": 2', '"format": 3'))
    with pytest.raises(SafelightError, match="format 3; this version reads 1 and 2"):
        export.load_weights(path)
    facts.write_text(text[:50])
    with pytest.raises(SafelightError, match="damaged"):
        export.load_weights(path)


def test_an_export_of_the_first_format_comes_back(source: Input, tmp_path: Path) -> None:
    model, path = exported(source, tmp_path / "model")
    file = path / "assets.extra" / "model.json"
    facts = json.loads(file.read_text())
    # As it was written when presets were all that there was.
    del facts["architecture"], facts["heads"]
    file.write_text(json.dumps({**facts, "format": 1}))
    again = export.load_weights(path)
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_empty_batch_gets_empty_answers(loaded: Any) -> None:
    answer = call(loaded, features.SERVING_SIGNATURE, image=[])
    assert {name: value.shape for name, value in answer.items()} == {
        "label": (0,),
        "score": (0,),
        "classes": (0, 4),
        "probabilities": (0, 4),
    }


def test_a_threshold_answers_unknown(source: Input, tmp_path: Path) -> None:
    """Temperature and threshold are in the served graph alone, and of the label's head alone."""
    plain, path = exported(source, tmp_path / "plain")
    pixels, _ = source.transform(tf.constant(EXAMPLES))
    said = plain(pixels).numpy()
    tempered = calibration.tempered(said, 0.5)
    # Half of the images lie below it.
    limit = float(np.float32(np.median(tempered.max(axis=1))))
    _, path = exported(
        source,
        tmp_path / "calibrated",
        calibrated=calibration.Fitted(temperature=0.5, threshold=limit),
    )
    loaded = tf.saved_model.load(str(path))
    answer = call(loaded, features.SERVING_SIGNATURE, image=IMAGES)
    np.testing.assert_allclose(answer["probabilities"], tempered, atol=1e-5)
    np.testing.assert_array_equal(answer["score"], answer["probabilities"].max(axis=1))
    names = np.array([name.encode() for name in graphs.CLASSES])
    best = names[answer["probabilities"].argmax(axis=1)]
    expected = np.where(answer["score"] >= limit, best, b"unknown")
    np.testing.assert_array_equal(answer["label"], expected)
    assert 0 < (expected == b"unknown").sum() < len(IMAGES)
    examples = call(loaded, features.EXAMPLES_SIGNATURE, examples=EXAMPLES)
    np.testing.assert_array_equal(examples["label"], expected)
    # The network is as it was: a warm start begins with it.
    for one, other in zip(
        plain.get_weights(), export.load_weights(path).get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    facts = model_json.read(path)
    assert (facts["temperature"], facts["threshold"]) == (0.5, limit)
    assert facts["fingerprint"] != export.weights_fingerprint(plain)
