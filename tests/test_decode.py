"""Decoding in the graph: against Pillow, through every format, and against hostile bytes."""

from __future__ import annotations

import resource
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline import headers, images
from pipeline.decode import decode_and_resize
from tests.examples import encoded

SIDE = 24


def noise(mode: str = "RGB", size: tuple[int, int] = (SIDE, SIDE), seed: int = 0) -> Image.Image:
    """Returns smooth noise: every pixel different, and yet no stress for a JPEG."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC).convert(mode)


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
def to_rgb(batch):
    return decode_and_resize(batch, image_size=SIDE, channels=3)


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
def to_grey(batch):
    return decode_and_resize(batch, image_size=SIDE, channels=1)


def levels(data: bytes, function=to_rgb) -> np.ndarray:
    """Returns what the graph makes of one file, in levels of 0 to 255."""
    return function(tf.constant([data])).numpy()[0] * 255


def palette_with_alpha() -> bytes:
    image = noise().quantize(16)
    return encoded(image, "PNG", transparency=3)


def sixteen_bits() -> bytes:
    grey = np.asarray(noise("L")).astype(np.uint16) * 257 + 100
    return encoded(Image.fromarray(np.minimum(grey, 65535).astype(np.uint16)), "PNG")


FILES = {
    "jpeg": encoded(noise(), "JPEG", quality=90),
    "jpeg 4:4:4": encoded(noise(), "JPEG", quality=95, subsampling=0),
    "jpeg progressive": encoded(noise(), "JPEG", progressive=True),
    "jpeg grey": encoded(noise("L"), "JPEG"),
    "jpeg cmyk": encoded(noise("CMYK"), "JPEG"),
    "jpeg with segments": encoded(noise(), "JPEG", comment=b"c" * 999, icc_profile=b"i" * 99_000),
    "png": encoded(noise()),
    "png grey": encoded(noise("L")),
    "png grey and alpha": encoded(noise("LA")),
    "png alpha": encoded(noise("RGBA")),
    "png palette": encoded(noise().quantize(16)),
    "png palette and alpha": palette_with_alpha(),
    "png one bit": encoded(noise("1")),
    "png 16 bits": sixteen_bits(),
    "gif": encoded(noise().quantize(64), "GIF"),
    "bmp": encoded(noise(), "BMP"),
    "bmp grey": encoded(noise("L"), "BMP"),
    "bmp alpha": encoded(noise("RGBA"), "BMP"),
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_that_ingest_saw(name):
    ready = images.prepare(FILES[name])
    expected = ready.pixels if ready.channels == 3 else ready.pixels.repeat(3, axis=2)
    # The stored bytes, and the file as a client may send it, where the graph takes it.
    for data in {ready.encoded, FILES[name]}:
        assert np.array_equal(np.rint(levels(data)), expected)
        assert np.abs(levels(data) - expected).max() < 1e-4


@pytest.mark.parametrize("name", FILES)
def test_grey_is_pillows_luma(name):
    ready = images.prepare(FILES[name])
    pixels = ready.pixels[..., 0] if ready.channels == 1 else ready.pixels
    expected = np.asarray(Image.fromarray(pixels).convert("L"))
    assert np.array_equal(np.rint(levels(FILES[name], to_grey))[..., 0], expected)


def test_a_mixed_batch_keeps_its_order():
    batch = tf.constant(
        [*FILES.values(), encoded(noise(size=(50, 40))), encoded(noise(size=(9, 7)))]
    )
    together = to_rgb(batch).numpy()
    alone = np.concatenate([to_rgb(batch[i : i + 1]).numpy() for i in range(len(batch))])
    assert together.shape == (len(FILES) + 2, SIDE, SIDE, 3)
    assert np.array_equal(together, alone)


def test_an_empty_batch_is_an_empty_batch():
    assert to_rgb(tf.constant([], tf.string)).shape == (0, SIDE, SIDE, 3)
    assert to_grey(tf.constant([], tf.string)).shape == (0, SIDE, SIDE, 1)


@pytest.mark.parametrize("size", [(97, 61), (61, 97), (20, 11), (200, 10)])
def test_stretching_is_pillows_bilinear(size):
    image = noise(size=size)
    expected = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)).astype(int)
    # Pillow rounds to whole levels after each of its two passes.
    assert np.abs(levels(encoded(image)) - expected).max() <= 1.01


def test_shrinking_does_not_alias():
    lines = np.zeros((240, 240, 3), np.uint8)
    lines[:, np.arange(240) % 4 < 2] = 255
    result = levels(encoded(Image.fromarray(lines)))
    assert np.abs(result - 127.5).max() < 15
    naive = tf.image.resize(lines, (SIDE, SIDE)).numpy()
    assert np.abs(naive - 127.5).max() > 100


def test_padding_keeps_the_shape_and_adds_black():
    image = Image.new("RGB", (48, 24), (255, 255, 255))
    result = decode_and_resize(
        tf.constant([encoded(image)]), image_size=SIDE, channels=3, resize="pad"
    ).numpy()[0]
    assert np.all(result[6:18] > 0.999)
    assert not result[:6].any()
    assert not result[18:].any()


def test_cropping_takes_the_middle():
    wide = np.zeros((24, 72, 3), np.uint8)
    wide[:, 24:48] = 200
    data = encoded(Image.fromarray(wide))
    result = decode_and_resize(tf.constant([data]), image_size=SIDE, channels=3, resize="crop")
    assert np.allclose(result.numpy() * 255, 200, atol=1e-3)


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
def test_a_line_of_pixels_survives(resize):
    data = encoded(Image.new("RGB", (300, 1), (10, 20, 30)))
    result = decode_and_resize(tf.constant([data]), image_size=8, channels=3, resize=resize)
    assert result.shape == (1, 8, 8, 3)


def test_only_an_animations_first_frame_is_decoded():
    frames = [noise(seed=seed).quantize(32) for seed in range(5)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    expected = np.asarray(frames[0].convert("RGB"))
    assert np.array_equal(np.rint(levels(data)), expected)
    # What stands behind the first frame may be anything: it is never looked at.
    assert np.array_equal(np.rint(levels(data[: len(data) // 2])), expected)


def png_announcing(width: int, height: int) -> bytes:
    """Returns a PNG of zeros that is what it announces, compressed about a thousandfold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    packed = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(packed.compress(row) for _ in range(height)) + packed.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return headers_png(chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def headers_png(body: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg_announcing(width: int, height: int) -> bytes:
    """Returns a JPEG whose frame says this size; what follows belongs to a smaller one."""
    data = bytearray(encoded(noise(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_announcing(width: int, height: int, frame_too: bool) -> bytes:
    data = bytearray(encoded(noise().quantize(8), "GIF"))
    if frame_too:
        at = data.index(b"\x2c\x00\x00\x00\x00", 13)
        data[at + 5 : at + 9] = struct.pack("<HH", width, height)
    else:
        data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def bmp_announcing(width: int, height: int) -> bytes:
    data = bytearray(encoded(noise(), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


TOO_LARGE = {
    "png": png_announcing(20_000, 20_000),
    "png that overflows": headers_png(
        b"\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 2**32 - 1, 2**32 - 1, 8, 2, 0, 0, 0)
    ),
    "jpeg": jpeg_announcing(20_000, 20_000),
    "jpeg behind fill bytes": jpeg_announcing(20_000, 20_000).replace(
        b"\xff\xc0", b"\xff\xff\xff\xc0"
    ),
    "gif's screen": gif_announcing(20_000, 20_000, frame_too=False),
    "gif's frame": gif_announcing(20_000, 20_000, frame_too=True),
    "bmp": bmp_announcing(20_000, 20_000),
    "bmp from the top": bmp_announcing(20_000, -20_000),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_announces_too_much_is_refused(name):
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="too large; expected at most 50000000"
    ):
        to_rgb(tf.constant([FILES["png"], TOO_LARGE[name]]))


def test_refusing_costs_no_memory():
    bomb = TOO_LARGE["png"]
    assert len(bomb) < 60_000
    to_rgb(tf.constant([FILES["png"]]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(tf.errors.InvalidArgumentError, match="Received width and height.*20000"):
        to_rgb(tf.constant([bomb] * 16))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024  # KiB


def test_the_bound_is_inclusive():
    data = tf.constant([encoded(noise(size=(40, 30)))])
    assert decode_and_resize(data, image_size=8, channels=3, max_pixels=1200).shape == (1, 8, 8, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="at most 1199 pixels"):
        decode_and_resize(data, image_size=8, channels=3, max_pixels=1199)


REFUSED = {
    "nothing": (b"", "not a JPEG, PNG, GIF or BMP"),
    "text": (b"<html>404</html>", "not a JPEG, PNG, GIF or BMP"),
    "webp": (encoded(noise(), "WEBP"), "not a JPEG, PNG, GIF or BMP"),
    "tiff": (encoded(noise(), "TIFF"), "not a JPEG, PNG, GIF or BMP"),
    "a cut jpeg": (FILES["jpeg"][:-200], "Invalid JPEG data"),
    "a jpeg's first bytes": (FILES["jpeg"][:100], "JPEG"),
    "a signature alone": (b"\xff\xd8\xff", "JPEG"),
    "a cut png": (FILES["png"][:-300], "PNG"),
    "a png without a header": (FILES["png"][:8] + b"\0\0\0\rJUNK" + bytes(40), "damaged header"),
    "a png of no size": (headers_png(b"\0\0\0\rIHDR" + bytes(20)), "damaged header"),
    "a cut gif": (FILES["gif"][:-60], "no whole frame"),
    "a gif's first bytes": (FILES["gif"][:12], "no whole frame"),
    "a cut bmp": (FILES["bmp"][:-500], "BMP|bmp"),
    "a palette bmp": (encoded(noise().quantize(16), "BMP"), "with compression or a palette"),
    "a one-bit bmp": (encoded(noise("1"), "BMP"), "with compression or a palette"),
    "a wide bmp header": (bmp_announcing(-5, 5), "damaged header"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_bytes_are_an_invalid_argument(name):
    data, message = REFUSED[name]
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        to_rgb(tf.constant([data]))


def test_an_error_names_the_image():
    with pytest.raises(tf.errors.InvalidArgumentError, match="image 2 of the batch is not a JPEG"):
        to_rgb(tf.constant([FILES["png"], FILES["jpeg"], b"x", b"y"]))


def test_mutated_files_are_decoded_or_refused():
    rng = np.random.default_rng(3)
    names = sorted(FILES)
    refused = 0
    for number in range(300):
        data = bytearray(FILES[names[number % len(names)]])
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            data[at] = rng.integers(0, 256)
        if number % 5 == 0:
            data = data[: rng.integers(1, len(data))]
        try:
            assert to_rgb(tf.constant([bytes(data)])).shape == (1, SIDE, SIDE, 3)
        except tf.errors.InvalidArgumentError:
            refused += 1
    assert 0 < refused < 300


def test_headers_are_read_as_the_decoder_reads_them():
    batch = tf.constant([FILES["jpeg"], FILES["jpeg cmyk"], FILES["jpeg grey"], FILES["png alpha"]])
    read = headers.checked(batch, 10**6)
    assert read.width.numpy().tolist() == [SIDE] * 4
    assert read.height.numpy().tolist() == [SIDE] * 4
    assert read.color.numpy().tolist() == [True, True, False, True]
    assert read.kind.numpy().tolist() == [headers.JPEG] * 3 + [headers.PNG]
