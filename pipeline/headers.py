"""What encoded images announce, read in a TensorFlow graph for a whole batch at once.

A PNG of 47 KB can announce 20,000 x 20,000 pixels, for which TensorFlow's decoder takes 1.2 GB.
Here a batch is refused by its headers, before a single pixel is decoded. All of it works on the
batch, never image by image: a loop over the images would cost as much as decoding small ones.

Formats: PNG (RFC 2083, section 4.1.1), JPEG (ITU-T T.81, annex B), GIF89a and BMP
(BITMAPINFOHEADER and later).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import tensorflow as tf

# What a file is, by its first bytes.
OTHER: Final = 0
JPEG: Final = 1
PNG: Final = 2
GIF: Final = 3
BMP: Final = 4

_SIGNATURES: Final = (
    (JPEG, b"\xff\xd8\xff"),
    (PNG, b"\x89PNG\r\n\x1a\n"),
    (GIF, b"GIF8"),
    (BMP, b"BM"),
)
_HEAD_BYTES: Final = 50  # as far as BMP's number of palette entries
_BMP_HEADER: Final = 14  # bytes before the header whose size varies

# Start of frame (SOF0 to SOF15); C4, C8 and CC in between are other segments.
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Segments with a length that may stand before the frame: DHT, DAC, DQT, DNL, DRI, ..., APPn, COM.
_SEGMENTS: Final = frozenset({0xC4, 0xCC, *range(0xDB, 0xF0), 0xFE})
_MARKERS: Final = [2 if m in _FRAMES else 1 if m in _SEGMENTS else 0 for m in range(256)]
# Photographs have 5 to 30 segments before the frame. What has more goes to libjpeg's own parser.
_MAX_SEGMENTS: Final = 100


class Headers(NamedTuple):
    """What each image of a batch announces; every tensor has the shape [batch]."""

    kind: tf.Tensor  # int32: JPEG, PNG, GIF or BMP
    width: tf.Tensor  # int64, pixels
    height: tf.Tensor  # int64, pixels
    color: tf.Tensor  # bool; GIF and BMP, whose palettes can hold anything, count as colour


def checked(images: tf.Tensor, max_pixels: int) -> Headers:
    """Reads every header, and refuses the batch for one that isn't as it should be.

    Args:
      images: string [batch], encoded files.
      max_pixels: the largest width x height allowed.

    Raises:
      tf.errors.InvalidArgumentError: an unknown format, a damaged header, too many pixels, or a
        BMP that TensorFlow would decode wrongly.
    """
    head = _bytes_at(images, tf.zeros_like(images, tf.int64), _HEAD_BYTES)
    kind = _kinds(head)
    kind += zero_unless(
        _trouble(
            tf.equal(kind, OTHER),
            "is not a JPEG, PNG, GIF or BMP file. Expected one of these: convert it first.",
        )
    )
    header = _read(images, head, kind)
    kind += zero_unless(_size_trouble(header, max_pixels))
    kind += zero_unless(
        _trouble(
            _odd_bmp(images, head, kind),
            "is a BMP with compression or a palette; expected 24 or 32 bits a pixel, or grey: "
            "convert it to PNG. Received bits a pixel and compression",
            tf.stack([_little(head, 28, 2), _little(head, 30, 4)], axis=1),
        )
    )
    return header._replace(kind=kind)


def _size_trouble(header: Headers, max_pixels: int) -> tf.Tensor:
    size = tf.stack([header.width, header.height], axis=1)
    damaged = _trouble(
        (header.width < 1) | (header.height < 1),
        "has a damaged header; expected a width and a height of at least 1, received",
        size,
    )
    too_large = _trouble(
        # Not width * height, which a forged header could make overflow.
        header.width > max_pixels // tf.maximum(header.height, 1),
        f"is too large; expected at most {max_pixels} pixels (transform.max_pixels), "
        "send a smaller one. Received width and height",
        size,
    )
    return tf.where(tf.equal(damaged, ""), too_large, damaged)


def _kinds(head: tf.Tensor) -> tf.Tensor:
    """Returns int32 [batch]: which signature each head (int64 [batch, bytes]) starts with."""
    kind = tf.fill(tf.shape(head)[:1], OTHER)
    for number, signature in _SIGNATURES:
        kind = tf.where(_equals(head, 0, signature), number, kind)
    return kind


def _read(images: tf.Tensor, head: tf.Tensor, kind: tf.Tensor) -> Headers:
    is_png, is_bmp = tf.equal(kind, PNG), tf.equal(kind, BMP)
    # PNG: the first chunk has to be IHDR, whose byte 25 is the colour type; 0 and 4 are grey.
    whole = is_png & _equals(head, 12, b"IHDR")
    zero = tf.zeros_like(kind, tf.int64)
    width = tf.where(whole, _big(head, 16, 4), zero)
    height = tf.where(whole, _big(head, 20, 4), zero)
    color = ~(is_png & (tf.equal(head[:, 25], 0) | tf.equal(head[:, 25], 4)))
    width = tf.where(tf.equal(kind, GIF), _little(head, 6, 2), width)
    height = tf.where(tf.equal(kind, GIF), _little(head, 8, 2), height)
    # BMP: signed numbers; a negative height means rows from the top.
    width = tf.where(is_bmp, _signed(_little(head, 18, 4)), width)
    height = tf.where(is_bmp, tf.abs(_signed(_little(head, 22, 4))), height)
    return _with_jpegs(images, Headers(kind, width, height, color))


def _with_jpegs(images: tf.Tensor, header: Headers) -> Headers:
    """Fills in the JPEGs, whose size stands behind segments of any length."""
    where = tf.where(tf.equal(header.kind, JPEG))
    shapes = _jpeg_shapes(tf.gather(images, where[:, 0]))
    update = tf.tensor_scatter_nd_update
    return Headers(
        header.kind,
        update(header.width, where, shapes[:, 1]),
        update(header.height, where, shapes[:, 0]),
        update(header.color, where, shapes[:, 2] > 1),
    )


def _jpeg_shapes(images: tf.Tensor) -> tf.Tensor:
    """Returns int64 [batch, 3]: height, width and components of JPEGs (string [batch]).

    Hops from segment to segment, all images together. A file that isn't a clean chain of segments
    up to its frame goes to the op that runs libjpeg's parser: so a forger can't have this function
    and the decoder read two different headers.
    """
    lengths = tf.cast(tf.strings.length(images), tf.int64)
    start = tf.minimum(tf.fill(tf.shape(lengths), tf.constant(2, tf.int64)), lengths)
    shapes = tf.zeros((tf.shape(images)[0], 3), tf.int64)
    going = tf.ones_like(lengths, tf.bool)

    def hop(
        at: tf.Tensor, going: tf.Tensor, shapes: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        segment = _bytes_at(images, at, 10)
        opens = going & tf.equal(segment[:, 0], 0xFF)
        marker = tf.gather(_MARKERS, segment[:, 1])
        frame = opens & tf.equal(marker, 2)
        found = tf.stack([_big(segment, 5, 2), _big(segment, 7, 2), segment[:, 9]], axis=1)
        shapes = tf.where(frame[:, tf.newaxis], found, shapes)
        size = _big(segment, 2, 2)
        going = opens & tf.equal(marker, 1) & (size >= 2)
        return tf.minimum(at + 2 + size, lengths), going, shapes

    _, _, shapes = tf.while_loop(
        lambda at, going, shapes: tf.reduce_any(going),
        hop,
        (start, going, shapes),
        shape_invariants=(
            tf.TensorShape([None]),
            tf.TensorShape([None]),
            tf.TensorShape([None, 3]),
        ),
        maximum_iterations=_MAX_SEGMENTS,
        parallel_iterations=1,
    )
    return _with_odd_jpegs(images, shapes)


def _with_odd_jpegs(images: tf.Tensor, shapes: tf.Tensor) -> tf.Tensor:
    where = tf.where(tf.equal(tf.reduce_min(shapes, axis=1), 0))
    odd = tf.map_fn(
        tf.io.extract_jpeg_shape,
        tf.gather(images, where[:, 0]),
        fn_output_signature=tf.TensorSpec((3,), tf.int32),
    )
    return tf.tensor_scatter_nd_update(shapes, where, tf.cast(odd, tf.int64))


def _odd_bmp(images: tf.Tensor, head: tf.Tensor, kind: tf.Tensor) -> tf.Tensor:
    """Returns bool [batch]: a BMP that TensorFlow's decoder would get wrong.

    It takes a palette's indices for grey values, which is right for a palette of greys in order,
    and knows neither compression nor OS/2's header.
    """
    where = tf.where(tf.equal(kind, BMP))
    files, head = tf.gather(images, where[:, 0]), tf.gather(head, where[:, 0])
    bits, size = _little(head, 28, 2), _little(head, 14, 4)
    plain = (size >= 40) & tf.equal(_little(head, 30, 4), 0)
    grey = tf.equal(bits, 8) & _grey_palette(files, _BMP_HEADER + size, _little(head, 46, 4))
    right = plain & (tf.equal(bits, 24) | tf.equal(bits, 32) | grey)
    return tf.scatter_nd(where, ~right, tf.shape(kind, tf.int64))


def _grey_palette(images: tf.Tensor, start: tf.Tensor, used: tf.Tensor) -> tf.Tensor:
    """Returns bool [batch]: the palette at `start`, of `used` entries (0: all), is 0, 1, 2, ..."""
    palette = tf.reshape(_bytes_at(images, start, 4 * 256), (-1, 256, 4))[:, :, :3]
    index = tf.range(256, dtype=tf.int64)
    unused = (index >= used[:, tf.newaxis]) & (used > 0)[:, tf.newaxis]
    right = tf.equal(palette, index[:, tf.newaxis]) | unused[:, :, tf.newaxis]
    return tf.reduce_all(right, axis=(1, 2))


def _trouble(bad: tf.Tensor, message: str, received: tf.Tensor | None = None) -> tf.Tensor:
    """Returns string []: empty, or of the first image for which `bad` (bool [batch]) holds."""
    # An empty batch has no first row: hence one more.
    first = tf.argmax(tf.pad(tf.cast(bad, tf.int32), [[0, 1]]))
    text = tf.strings.format("image {} of the batch " + message, first)
    if received is not None:
        shown = tf.strings.format("{}", tf.pad(received, [[0, 1], [0, 0]])[first])
        text = tf.strings.join([text, shown], separator=" ")
    return tf.where(tf.reduce_any(bad), text, "")


def zero_unless(trouble: tf.Tensor) -> tf.Tensor:
    """Returns int32 [] 0, or fails with the message `trouble` (string []) if that isn't empty.

    Add it to what must not be computed otherwise. tf.debugging.Assert would say it more nicely,
    but it has a side effect: TensorFlow Transform runs whatever has one when it analyzes, and
    would decode all the images to find the mean of a few recorded numbers.

    Raises:
      tf.errors.InvalidArgumentError: "... could not correctly convert string: " and the message.
    """
    return tf.strings.to_number(tf.where(tf.equal(trouble, ""), "0", trouble), tf.int32)


def _bytes_at(images: tf.Tensor, start: tf.Tensor, count: int) -> tf.Tensor:
    """Returns int64 [batch, count]: bytes from `start` (int64 [batch]); zeros behind the end."""
    start = tf.minimum(start, tf.cast(tf.strings.length(images), tf.int64))
    piece = tf.strings.substr(images, start, tf.fill(tf.shape(start), tf.constant(count, tf.int64)))
    return tf.cast(tf.io.decode_raw(piece, tf.uint8, fixed_length=count), tf.int64)


def _equals(head: tf.Tensor, start: int, expected: bytes) -> tf.Tensor:
    piece = head[:, start : start + len(expected)]
    return tf.reduce_all(tf.equal(piece, tf.constant(list(expected), tf.int64)), axis=1)


def _big(head: tf.Tensor, start: int, size: int) -> tf.Tensor:
    """Returns int64 [batch]: the unsigned big-endian number in `size` bytes from `start`."""
    weights = tf.constant([1 << (8 * index) for index in reversed(range(size))], tf.int64)
    return tf.reduce_sum(head[:, start : start + size] * weights, axis=1)


def _little(head: tf.Tensor, start: int, size: int) -> tf.Tensor:
    """Returns int64 [batch]: the unsigned little-endian number in `size` bytes from `start`."""
    weights = tf.constant([1 << (8 * index) for index in range(size)], tf.int64)
    return tf.reduce_sum(head[:, start : start + size] * weights, axis=1)


def _signed(value: tf.Tensor) -> tf.Tensor:
    return tf.where(value >= 1 << 31, value - (1 << 32), value)
