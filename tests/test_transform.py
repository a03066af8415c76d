"""The transform graph: an image's pixels equal along all the ways; labels that keep their ids."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform as tft
from PIL import Image
from tfx.types.channel import Channel
from tfx.types.standard_artifacts import Examples, Schema, TransformGraph
from tfx_bsl.tfxio.tf_example_record import TFExampleRecord

from components import image_transform
from pipeline import images, transform
from pipeline.decode import decode_and_resize
from pipeline.features import IMAGE, LABEL, LABEL_ID, PIXELS
from schemas import image_schema
from tests import examples, made
from tests.examples import artifact, encoded, execute

SIDE = 32
CLASSES = ("red", "a b, c", "猫", "blue")


def turned_photo() -> bytes:
    """Returns a JPEG as a phone writes it: the pixels lie on their side, and EXIF says so."""
    image = made.picture("red", 5, (64, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    return encoded(image, "JPEG", quality=95, exif=exif)


FILES = {
    "png": encoded(made.picture("red", 1)),
    "jpeg": encoded(made.picture("blue", 2), "JPEG", quality=92),
    "jpeg of another size": encoded(made.picture("green", 3, (50, 41)), "JPEG"),
    "small png": encoded(made.picture("green", 4, (20, 30))),
    "grey": encoded(made.picture("white", 4, grey=True)),
    "cmyk": encoded(made.picture("blue", 6).convert("CMYK"), "JPEG"),
    "palette": encoded(made.picture("red", 7).quantize(32)),
    "gif": encoded(made.picture("red", 8).quantize(32), "GIF"),
    "bmp": encoded(made.picture("red", 9), "BMP"),
    "webp": encoded(made.picture("red", 9), "WEBP", lossless=True),
    "turned photo": turned_photo(),
}


def rows(number: int = 8) -> list[tf.train.Example]:
    return [
        examples.example(data, CLASSES[index % len(CLASSES)], name)
        for index, (name, data) in enumerate(list(FILES.items())[:number] or FILES.items())
    ]


def transformed(root, split_rows, classes=CLASSES, **options) -> tft.TFTransformOutput:
    """Runs the node's executor, and returns what it wrote."""
    examples.write_split(root / "examples", "train", split_rows)
    schema = artifact(Schema, root / "schema")
    (root / "schema" / "schema.pbtxt").write_text(image_schema.completed(classes), encoding="utf-8")
    execute(
        image_transform.Executor,
        {"examples": artifact(Examples, root / "examples", ["train"]), "schema": schema},
        {"transform_graph": artifact(TransformGraph, root / "graph")},
        preprocessing_fn=image_transform.PREPROCESSING_FN,
        splits_config=json.dumps({"analyze": ["train"]}),
        custom_config=json.dumps({"transform": {"image_size": SIDE, "channels": 3, **options}}),
        disable_statistics=1,
    )
    return tft.TFTransformOutput(str(root / "graph"))


@pytest.fixture(scope="module")
def unit(tmp_path_factory):
    return transformed(tmp_path_factory.mktemp("unit"), rows())


class Serving(tf.Module):
    """What an export is made of, but for the network: the layer as an attribute, signatures."""

    def __init__(self, output: tft.TFTransformOutput) -> None:
        super().__init__()
        self.layer = output.transform_features_layer()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=IMAGE)])
    def serve(self, image):
        return {PIXELS: transform.serving_pixels(self.layer, image)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=LABEL)])
    def label_ids(self, label):
        """Labels alone, as TFMA needs them: the graph leaves out what only pixels need."""
        return {LABEL_ID: self.layer({LABEL: label})[LABEL_ID]}


@pytest.fixture(scope="module")
def saved(unit, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("saved"))
    module = Serving(unit)
    signatures = {"serving_default": module.serve, "labels": module.label_ids}
    tf.saved_model.save(module, folder, signatures=signatures)
    return tf.saved_model.load(folder)


@pytest.fixture(scope="module")
def served(saved):
    return saved.signatures["serving_default"]


def through_tf_data(output, split_rows) -> dict[str, np.ndarray]:
    """Applies the graph to batches of serialized Examples, as training does."""
    spec = output.raw_feature_spec()
    layer = output.transform_features_layer()
    batches = (
        tf.data.Dataset.from_tensor_slices([row.SerializeToString() for row in split_rows])
        .batch(3)
        .map(lambda batch: layer(tf.io.parse_example(batch, spec)))
    )
    parts = list(batches.as_numpy_iterator())
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def label_ids(output, names) -> tf.Tensor:
    """Applies the graph to labels alone."""
    layer = output.transform_features_layer()
    return tf.function(lambda label: layer({LABEL: label})[LABEL_ID])(tf.constant(names))


def pillow(data: bytes) -> np.ndarray:
    """Returns RGB in [0, 1] through Pillow alone, with its own bilinear filter."""
    pixels = images.prepare(data).pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) / 255


def test_an_images_pixels_are_equal_along_all_the_ways(unit, served):
    everything = rows(0)
    stored = tf.constant([row.features.feature[IMAGE].bytes_list.value[0] for row in everything])
    trained = through_tf_data(unit, everything)[PIXELS]
    answered = served(image=stored)[PIXELS].numpy()
    eager = decode_and_resize(stored, image_size=SIDE, channels=3).numpy()
    assert trained.shape == (len(FILES), SIDE, SIDE, 3)
    assert trained.dtype == np.float32
    assert np.array_equal(trained, answered)
    assert np.array_equal(trained, eager)
    one_by_one = [served(image=stored[i : i + 1])[PIXELS].numpy()[0] for i in range(len(FILES))]
    assert np.array_equal(trained, np.stack(one_by_one))
    for pixels, (name, data) in zip(trained, FILES.items(), strict=True):
        # Exact without resizing; Pillow rounds to whole levels after each pass of a resize.
        resized = name in ("jpeg of another size", "small png", "turned photo")
        assert np.abs(pixels - pillow(data)).max() * 255 < (1.01 if resized else 1e-4), name


def test_a_turned_photo_stands_upright(served):
    ready = images.prepare(FILES["turned photo"])
    assert ready.converted == "orientation"
    as_seen = Image.open(io.BytesIO(FILES["turned photo"]))
    upright = as_seen.transpose(Image.Transpose.ROTATE_270).convert("RGB")
    expected = np.asarray(upright.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) / 255
    answered = served(image=tf.constant([ready.encoded]))[PIXELS].numpy()[0]
    assert np.abs(answered - expected).max() * 255 < 1.01
    # The bytes as the phone wrote them would be served on their side: TensorFlow ignores EXIF.
    raw = served(image=tf.constant([FILES["turned photo"]]))[PIXELS].numpy()[0]
    assert np.abs(raw - expected).max() > 0.1


def test_the_signature_refuses_bad_bytes(served):
    for data, message in ((b"<html>", "not a JPEG, PNG"), (FILES["jpeg"][:300], "JPEG")):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            served(image=tf.constant([FILES["png"], data]))
    huge = bytearray(FILES["png"])
    huge[16:24] = (20_000).to_bytes(4, "big") * 2
    with pytest.raises(tf.errors.InvalidArgumentError, match="image 1 of the batch is too large"):
        served(image=tf.constant([FILES["png"], bytes(huge)]))


def test_labels_become_their_positions(unit, saved):
    names = [*CLASSES, "unknown", "a b"]
    for ids in (
        label_ids(unit, names),
        saved.signatures["labels"](label=tf.constant(names))[LABEL_ID],
    ):
        assert ids.dtype == tf.int64
        assert ids.numpy().tolist() == [0, 1, 2, 3, -1, -1]


def test_more_classes_and_other_frequencies_keep_the_ids(tmp_path):
    classes = [*CLASSES, "ant", "zebra, striped"]
    many = [examples.example(FILES["png"], "zebra, striped") for _ in range(20)]
    output = transformed(tmp_path, [*rows(), *many], classes)
    assert label_ids(output, classes).numpy().tolist() == list(range(6))


@pytest.mark.parametrize(
    ("normalize", "read"), [("unit", set()), ("standard", {"channel_mean", "channel_std"})]
)
def test_analysis_reads_no_more_than_it_needs(normalize, read):
    """Images decoded to find a mean of recorded facts would cost as much as an epoch."""
    schema = image_schema.parse(image_schema.completed(CLASSES))
    source = TFExampleRecord("none", telemetry_descriptors=["test"], schema=schema)
    columns = tft.get_analyze_input_columns(
        lambda inputs: transform.preprocessing_fn(
            inputs,
            {"transform": {"image_size": SIDE, "channels": 3, "normalize": normalize}},
            CLASSES,
        ),
        source.TensorAdapter().OriginalTypeSpecs(),
    )
    assert set(columns) == read


def same_size(grey: bool = False) -> list[tf.train.Example]:
    labels = ("red", "blue", "green", "white")
    files = [encoded(made.picture(label, 40 + i, grey=grey)) for i in range(4) for label in labels]
    return [examples.example(data, "red") for data in files]


@pytest.mark.parametrize(
    ("channels", "grey"),
    [
        (3, False),
        pytest.param(1, False, marks=pytest.mark.slow),
        pytest.param(3, True, marks=pytest.mark.slow),
    ],
)
def test_standard_gives_zero_mean_and_unit_variance(tmp_path, channels, grey):
    train = same_size(grey)
    output = transformed(tmp_path, train, channels=channels, normalize="standard")
    pixels = through_tf_data(output, train)[PIXELS]
    assert pixels.shape == (len(train), SIDE, SIDE, channels)
    assert np.abs(pixels.mean((0, 1, 2))).max() < 1e-3
    assert np.abs(pixels.std((0, 1, 2)) - 1).max() < 2e-3


@pytest.mark.slow
def test_each_image_counts_once_whatever_its_size(tmp_path):
    large = encoded(Image.new("RGB", (200, 200), (255, 255, 255)))
    small = encoded(Image.new("RGB", (8, 8), (0, 0, 0)))
    train = [examples.example(data, "red") for data in (large, small)]
    pixels = through_tf_data(transformed(tmp_path, train, normalize="standard"), train)[PIXELS]
    assert np.allclose(pixels[0], 1, atol=1e-3)
    assert np.allclose(pixels[1], -1, atol=1e-3)


@pytest.mark.slow
def test_even_data_is_not_divided_by_zero(tmp_path):
    train = [examples.example(encoded(Image.new("RGB", (40, 40), (9, 9, 9))), "red")] * 3
    pixels = through_tf_data(transformed(tmp_path, train, normalize="standard"), train)[PIXELS]
    assert np.abs(pixels).max() < 1e-3


@pytest.mark.parametrize("normalize", ["unit", pytest.param("standard", marks=pytest.mark.slow)])
def test_two_runs_transform_alike_to_the_bit(tmp_path, normalize):
    train = [*same_size(), *rows(0)]
    results = [
        through_tf_data(transformed(tmp_path / run, train, normalize=normalize), train)
        for run in ("one", "two")
    ]
    for key in (PIXELS, LABEL_ID):
        assert np.array_equal(results[0][key], results[1][key])


def test_a_configuration_that_is_not_resolved_is_named():
    with pytest.raises(ValueError, match="must be resolved"):
        transform.preprocessing_fn({}, {"transform": {"image_size": None}}, CLASSES)


def test_the_node_reads_train_and_writes_the_graph_alone():
    node = image_transform.image_transform(
        Channel(type=Examples), Channel(type=Schema), {"transform": {}, "code": "abc"}
    )
    assert node.id == "Transform"
    assert set(node.outputs) == {"transform_graph"}
    properties = node.exec_properties
    assert json.loads(properties["splits_config"]) == {"analyze": ["train"]}
    assert json.loads(properties["custom_config"])["code"] == "abc"
    assert properties["disable_statistics"] == 1
    module, _, name = properties["preprocessing_fn"].rpartition(".")
    assert (module, name) == (transform.__name__, transform.preprocessing_fn.__name__)
