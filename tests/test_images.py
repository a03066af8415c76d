"""The one conversion: what is kept, what is converted, what is refused; and TensorFlow's view."""

from __future__ import annotations

import io
import resource
import tracemalloc
import zlib

import numpy as np
import psutil
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline import decode, images
from pipeline.images import BadImage
from pipeline.ingest import headers, perceptual, plain
from tests import fuzz_images, pictures

KEPT = pictures.kept()
CONVERTED = pictures.converted()


@pytest.mark.parametrize("name", KEPT)
def test_kept_bytes_are_what_tensorflow_decodes(name):
    prepared = images.prepare(KEPT[name])
    assert prepared.converted is None
    assert prepared.encoded == KEPT[name]
    pixels = fuzz_images.as_trained(prepared.encoded, prepared.channels)
    np.testing.assert_array_equal(pixels, prepared.pixels)


@pytest.mark.parametrize("name", CONVERTED)
def test_converted_files_become_pngs_of_what_people_see(name):
    data, reason = CONVERTED[name]
    prepared = images.prepare(data)
    assert (prepared.converted, prepared.format) == (reason, "png")
    pixels = fuzz_images.as_trained(prepared.encoded, prepared.channels)
    np.testing.assert_array_equal(pixels, prepared.pixels)
    if name not in ("cmyk.tif", "sixteen.tif"):  # Pillow mixes inks and clips 16 bits otherwise
        seen = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        mode = "L" if prepared.channels == 1 else "RGB"
        np.testing.assert_array_equal(prepared.pixels.squeeze(), np.asarray(seen.convert(mode)))


def test_a_converted_image_is_kept_the_second_time():
    once = images.prepare(CONVERTED["turned-6.jpg"][0])
    again = images.prepare(once.encoded)
    assert again.converted is None
    assert images.digest(again.pixels) == images.digest(once.pixels)
    assert (once.height, once.width) == pictures.SIZE


def test_the_transform_graph_sees_the_same_pixels():
    """Through the graph's own entry point, at the size where it resizes nothing."""
    square = pictures.photograph().resize((32, 32))
    for form, options in (("JPEG", {}), ("PNG", {}), ("BMP", {}), ("GIF", {}), ("WEBP", {})):
        prepared = images.prepare(pictures.encoded(square, form, **options))
        graph = decode.decode_and_resize(tf.constant([prepared.encoded]), image_size=32, channels=3)
        np.testing.assert_array_equal(np.rint(graph[0] * 255), prepared.pixels)


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"", "empty", "0 bytes"),
        (b"just some words", "not_an_image", "text"),
        (b"<!DOCTYPE html><html>", "not_an_image", "an HTML page"),
        (b"BM is how this text begins, and it goes on.", "not_an_image", "text"),
        (bytes(100), "not_an_image", "zero bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not_an_image", "git lfs pull"),
        (b"\0\0\0\x1cftypheic" + bytes(40), "unsupported", "HEIC"),
        (b"8BPS" + bytes(40), "unsupported", "Photoshop"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported", "SVG"),
        (KEPT["rgb.png"][:-200], "truncated", "png"),
        (KEPT["baseline.jpg"][:-300], "truncated", "jpeg"),
        (KEPT["baseline.jpg"][:20], "truncated", "jpeg"),
        (KEPT["colour.bmp"][:-100], "truncated", "bmp"),
        (KEPT["plain.gif"][:100], "truncated", "gif"),
        (CONVERTED["lossy.webp"][0][:60], "truncated", "webp"),
        (CONVERTED["raw.tif"][0][:50], "truncated", "tiff"),
        (pictures.encoded(Image.new("RGB", (3, 200)), "PNG"), "too_small", "3 x 200"),
        (pictures.encoded(Image.new("F", (9, 9)), "TIFF"), "unsupported", "mode F"),
        (pictures.announcing(50_000, 50_000), "bomb", "pixels"),
        (pictures.announcing(8000, 8000), "bomb", "8000 x 8000"),
        (pictures.announcing(0, 20), "unreadable", "png"),
        (
            KEPT["rgb.png"].replace(b"IHDR", b"IHDX"),
            "unreadable",
            "png",
        ),
    ],
)
def test_what_cant_be_used_is_named(data, reason, detail):
    with pytest.raises(BadImage) as caught:
        images.prepare(data)
    assert caught.value.reason == reason
    assert caught.value.reason in images.REASONS
    assert detail.lower() in caught.value.detail.lower()


@pytest.mark.parametrize("side", [50_000, 8000])
def test_a_bomb_costs_no_memory(side):
    data = pictures.announcing(side, side)
    assert len(data) < 1200
    before = resource.getrlimit(resource.RLIMIT_AS)
    # Its pixels would be 192 MB and more, which libraries in C ask for behind Python's back.
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (1 << 26), -1))
    tracemalloc.start()
    try:
        with pytest.raises(BadImage):
            images.prepare(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert peak < 1_000_000


def test_a_webp_bomb_is_refused_before_pillow_allocates_its_canvas():
    data = bytearray(CONVERTED["animated.webp"][0])
    assert headers.webp_size(bytes(data)) == pictures.SIZE
    data[24:30] = (16_000).to_bytes(3, "little") * 2
    with pytest.raises(BadImage, match="bomb: 16001 x 16001"):
        images.prepare(bytes(data))


def test_damage_that_pillow_reads_over_is_repaired():
    whole = KEPT["rgb.png"]
    cut = whole[:-12]  # without its end TensorFlow refuses it
    with pytest.raises(tf.errors.InvalidArgumentError):
        fuzz_images.as_trained(cut, 3)
    prepared = images.prepare(cut)
    assert prepared.converted == "repaired"
    np.testing.assert_array_equal(prepared.pixels, images.prepare(whole).pixels)
    np.testing.assert_array_equal(fuzz_images.as_trained(prepared.encoded, 3), prepared.pixels)


def test_a_progressive_jpeg_without_its_last_scans_is_repaired():
    """What is missing is smoothed over, and each version of libjpeg has its own way."""
    whole = KEPT["progressive.jpg"]
    scans = [place for place in range(len(whole)) if whole.startswith(b"\xff\xda", place)]
    tables = whole.rindex(b"\xff\xc4", 0, scans[-1])
    prepared = images.prepare(whole[:tables] + b"\xff\xd9")
    assert prepared.converted == "repaired"
    np.testing.assert_array_equal(fuzz_images.as_trained(prepared.encoded, 3), prepared.pixels)


def test_inks_without_adobes_marker_are_stored_as_pillow_reads_them():
    prepared = images.prepare(KEPT["cmyk.jpg"].replace(b"Adobe", b"Other"))
    assert prepared.converted == "repaired"
    np.testing.assert_array_equal(fuzz_images.as_trained(prepared.encoded, 3), prepared.pixels)


def test_interlaced_and_padded_files_are_plain():
    rows = [bytes((0, 1, 2, 3)), bytes((0, 4, 5, 6))]  # filter byte and three grey pixels
    assert not plain.is_plain(KEPT["rgb.png"][:-12], "png")
    assert plain.is_plain(KEPT["baseline.jpg"] + bytes(500), "jpeg")
    # Adam7 of 3 x 2: pass 1 has one pixel, 6 has one (x=1), 4 one (x=2), 7 the last row.
    passes = bytes((0, 1)) + bytes((0, 3)) + bytes((0, 2)) + rows[1]
    header = bytes.fromhex("0000000300000002") + bytes((8, 0, 0, 0, 1))
    data = headers.PNG_MAGIC + b"".join(
        pictures.chunk(kind, body)
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(passes)), (b"IEND", b""))
    )
    prepared = images.prepare(data, min_side=1)
    assert prepared.converted is None
    assert prepared.pixels[..., 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    np.testing.assert_array_equal(fuzz_images.as_trained(data, 1), prepared.pixels)


def test_size_from_the_header_is_upright():
    width, height = pictures.SIZE
    turned = pictures.encoded(pictures.photograph(), "TIFF", exif=pictures.exif(6))
    for data, expected in (
        (KEPT["grey.jpg"], (width, height, 1)),
        (KEPT["palette.png"], (width, height, 3)),
        (CONVERTED["turned-6.jpg"][0], (height, width, 3)),
        (turned, (height, width, 3)),
        (CONVERTED["lossless.webp"][0], (width, height, 3)),
    ):
        assert images.size_of(io.BytesIO(data)) == expected
    with pytest.raises(BadImage):
        images.size_of(io.BytesIO(b"no image"))


def test_facts_are_those_of_the_definition():
    pixels = images.prepare(KEPT["rgb.png"]).pixels
    facts = images.facts(pixels)
    scaled = pixels.astype(np.float64) / 255
    np.testing.assert_allclose(facts.channel_mean, scaled.mean((0, 1)))
    np.testing.assert_allclose(facts.channel_std, scaled.std((0, 1)))
    luma = np.asarray(Image.fromarray(pixels).convert("L")).astype(np.float64) / 255
    np.testing.assert_allclose(facts.brightness, luma.mean())
    np.testing.assert_allclose(facts.contrast, luma.std())
    edges = 4 * luma[1:-1, 1:-1] - luma[:-2, 1:-1] - luma[2:, 1:-1]
    edges -= luma[1:-1, :-2] + luma[1:-1, 2:]
    np.testing.assert_allclose(facts.sharpness, edges.var())
    assert facts.aspect_ratio == 40 / 28


def test_facts_of_a_large_image_need_no_large_temporaries(monkeypatch):
    pixels = np.random.default_rng(1).integers(0, 256, (300, 170, 3)).astype(np.uint8)
    whole = images.facts(pixels)
    monkeypatch.setattr(images, "_STRIP", 1000)
    assert images.facts(pixels) == whole


def test_facts_of_the_smallest_and_the_flattest():
    flat = images.facts(np.full((2, 5, 1), 51, np.uint8))
    assert (flat.brightness, flat.contrast, flat.sharpness) == (0.2, 0.0, 0.0)
    assert flat.channel_mean == (0.2,)


def test_the_digest_knows_the_shape():
    row = np.zeros((2, 8, 1), np.uint8)
    assert images.digest(row) != images.digest(row.reshape(8, 2, 1))
    assert images.digest(row) == images.digest(row.copy())


def test_perceptual_hashes_are_near_for_the_same_picture():
    picture = pictures.photograph()
    first, thumb = _described(picture)
    again, small = _described(picture.resize((120, 84)))
    other, _ = _described(pictures.photograph(7))
    assert bin(first ^ again).count("1") <= 4
    assert bin(first ^ other).count("1") > 10
    assert len(thumb) == perceptual.THUMB_BYTES
    assert np.abs(np.frombuffer(thumb, np.uint8).astype(int) - list(small)).mean() < 5


def _described(image: Image.Image) -> tuple[int, bytes]:
    pixels = images.prepare(pictures.encoded(image, "PNG")).pixels
    return perceptual.describe(pixels[np.newaxis])[0]


_MAGICS = (
    b"\xff\xd8\xff",
    headers.PNG_MAGIC,
    headers.PNG_MAGIC + b"\0\0\0\rIHDR",
    b"GIF89a",
    b"BM\x99\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0",
    b"RIFF\x40\0\0\0WEBPVP8 ",
    b"RIFF\x40\0\0\0WEBPVP8L",
    b"RIFF\x40\0\0\0WEBPVP8X",
    b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08",
    b"",
)


@settings(max_examples=500, deadline=None)
@given(magic=st.sampled_from(_MAGICS), rest=st.binary(max_size=120))
def test_any_header_gives_an_image_or_a_reason(magic, rest):
    data = magic + rest
    assert headers.describe(data[:64]) and headers.sniff(data[:64]) in (None, *headers.READ)
    for read in (images.prepare, lambda data: images.size_of(io.BytesIO(data))):
        try:
            read(data)
        except BadImage as bad:
            assert bad.reason in images.REASONS and bad.detail


def test_three_hundred_mutants_do_no_harm():
    """The suite's share of `python -m tests.fuzz_images`."""
    outcomes, broken = fuzz_images.run(300, seed=3)
    assert broken == []
    assert sum(count for name, count in outcomes.items() if "child" not in name) == 300
