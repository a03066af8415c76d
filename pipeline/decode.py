"""From encoded bytes to pixels inside a TensorFlow graph: bounded, the same in every place.

The functions here are traced into the transform graph, and so run in training, in evaluation and in
the serving signature. Serving takes bytes from strangers: `pipeline.headers` refuses what is too
large before anything is decoded.

Everything wrong with an image raises tf.errors.InvalidArgumentError, which a server answers with
INVALID_ARGUMENT (HTTP 400).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal

import tensorflow as tf

from pipeline import gif, headers

Resize = Literal["stretch", "pad", "crop"]

# Images of one batch decoded at a time: serving's peak memory grows with it.
_PARALLEL_IMAGES: Final = 4

# ITU-R BT.601 luma in 16-bit fixed point: equal to Pillow's convert("L") to the bit.
_LUMA: Final = (19595, 38470, 7471)


@tf.autograph.experimental.do_not_convert
def decode_and_resize(
    images: tf.Tensor,
    *,
    image_size: int,
    channels: int,
    resize: Resize = "stretch",
    max_pixels: int = 50_000_000,
) -> tf.Tensor:
    """Decodes a batch of JPEG, PNG, GIF (its first frame) or BMP files into square pictures.

    Args:
      images: string [batch], encoded files.
      image_size: the side of the result in pixels.
      channels: 1 (luma) or 3 (RGB); alpha is dropped.
      resize: `stretch` ignores the aspect ratio, `pad` keeps it with black bars, `crop` cuts out
        the middle square.
      max_pixels: width x height above which an image is refused unread.

    Returns:
      float32 [batch, image_size, image_size, channels], values in [0, 1].

    Raises:
      tf.errors.InvalidArgumentError: an image is of another format, damaged, or too large. It
        fails the whole batch.
    """
    header = headers.checked(images, max_pixels)
    shape = (image_size, image_size, channels)

    def square(pixels: tf.Tensor, shrink: bool = True) -> tf.Tensor:
        return _square(pixels, image_size, channels, resize, shrink)

    def as_it_is(image: tf.Tensor, kind: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.ensure_shape(_decode_file(image, channels), shape), tf.float32)

    def shrunk(image: tf.Tensor, kind: tf.Tensor) -> tf.Tensor:
        return square(_decode_file(image, channels))

    def enlarged(image: tf.Tensor, kind: tf.Tensor) -> tf.Tensor:
        return square(_decode_file(image, channels), shrink=False)

    def greyed(image: tf.Tensor, kind: tf.Tensor) -> tf.Tensor:
        return square(_luma(_decode_file(image, 3)))

    def rare(image: tf.Tensor, kind: tf.Tensor) -> tf.Tensor:
        return square(_decode_rare(image, kind, channels, max_pixels))

    common = header.kind <= headers.PNG
    sized = tf.equal(header.width, image_size) & tf.equal(header.height, image_size)
    small = (header.width <= image_size) & (header.height <= image_size) & ~sized
    # The decoders' own ways from colour to grey differ by format, and fail for CMYK.
    to_grey = common & header.color if channels == 1 else tf.zeros_like(common)
    as_stored = common & ~to_grey
    groups = [
        (as_stored & sized, as_it_is),
        (as_stored & small, enlarged),
        (as_stored & ~sized & ~small, shrunk),
        (~common, rare),
    ]
    if channels == 1:
        groups.append((to_grey, greyed))
    pixels = _by_group(images, header.kind, groups, shape)
    # Weights that add up to 1 but for a rounding error may have made a little more than white.
    # A product, because the optimizer makes one of a division by a constant: so that a graph gives
    # what eager execution gives, to the bit.
    return tf.minimum(pixels * (1 / 255), 1.0)


def _by_group(
    images: tf.Tensor,
    kind: tf.Tensor,
    groups: Sequence[tuple[tf.Tensor, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]]],
    shape: tuple[int, int, int],
) -> tf.Tensor:
    """Puts each group of images (bool [batch], disjoint, all together everything) through its
    function of (image, kind), and the results back into the batch's order.

    A tf.cond for each image would cost as much as decoding a small one; a loop over a group has no
    branches, and one over an empty group costs nothing.
    """
    rows = [tf.where(chosen)[:, 0] for chosen, _ in groups]
    parts = [
        _each(function, (tf.gather(images, row), tf.gather(kind, row)), shape)
        for row, (_, function) in zip(rows, groups, strict=True)
    ]
    rows = [tf.cast(row, tf.int32) for row in rows]
    return tf.ensure_shape(tf.dynamic_stitch(rows, parts), (None, *shape))


def _each(
    function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    elements: tuple[tf.Tensor, tf.Tensor],
    shape: tuple[int, int, int],
) -> tf.Tensor:
    return tf.map_fn(
        lambda pair: function(*pair),
        elements,
        fn_output_signature=tf.TensorSpec(shape, tf.float32),
        parallel_iterations=_PARALLEL_IMAGES,
    )


def _decode_rare(image: tf.Tensor, kind: tf.Tensor, channels: int, max_pixels: int) -> tf.Tensor:
    """Decodes a GIF or a BMP (string []): uint8 [height, width, channels]."""
    pixels = tf.cond(
        tf.equal(kind, headers.GIF),
        lambda: _decode_file(gif.first_frame(image, max_pixels), 3),
        lambda: _decode_bmp(image),
    )
    return pixels if channels == 3 else _luma(pixels)


def _decode_file(image: tf.Tensor, channels: int) -> tf.Tensor:
    """Decodes a JPEG, PNG or GIF of one frame: this op's kernel takes all three."""
    # Faster transforms differ from other decoders by up to 6 levels of 255.
    return tf.io.decode_jpeg(image, channels=channels, dct_method="INTEGER_ACCURATE")


def _decode_bmp(image: tf.Tensor) -> tf.Tensor:
    pixels = tf.io.decode_bmp(image, channels=0)  # this op converts nothing
    color = tf.cond(
        tf.equal(tf.shape(pixels)[2], 1),
        lambda: tf.tile(pixels, [1, 1, 3]),
        lambda: pixels[:, :, :3],
    )
    return tf.ensure_shape(color, (None, None, 3))


def _luma(pixels: tf.Tensor) -> tf.Tensor:
    """Returns the grey uint8 [height, width, 1] of RGB uint8 [height, width, 3]."""
    weighted = tf.cast(pixels, tf.int32) * tf.constant(_LUMA)
    grey = tf.reduce_sum(weighted, axis=2, keepdims=True) + 0x8000
    return tf.cast(tf.bitwise.right_shift(grey, 16), tf.uint8)


def _square(pixels: tf.Tensor, size: int, channels: int, resize: Resize, shrink: bool) -> tf.Tensor:
    """Resizes uint8 [height, width, channels] to float32 [size, size, channels], 0 to 255.

    Bilinear, antialiased where it shrinks: without that, each output pixel would be made of at most
    four of the photograph's, and fine texture would turn into patterns that aren't there. It is
    what Pillow does, too. An image that is certain to be enlarged (shrink=False) takes the op that
    doesn't antialias: it gives the same in a third of the time.
    """
    shape = tf.shape(pixels)
    height, width = shape[0], shape[1]
    if resize == "crop":
        side = tf.minimum(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    if resize == "pad":
        square = _padded(pixels, height, width, size, shrink)
    else:
        square = tf.image.resize(pixels, (size, size), antialias=shrink)
    return tf.ensure_shape(square, (size, size, channels))


def _padded(
    pixels: tf.Tensor, height: tf.Tensor, width: tf.Tensor, size: int, shrink: bool
) -> tf.Tensor:
    """Resizes to fit into size x size, in the middle of black."""
    longest = tf.cast(tf.maximum(height, width), tf.float64)

    def fitted(side: tf.Tensor) -> tf.Tensor:
        exact = tf.round(tf.cast(side, tf.float64) * size / longest)
        return tf.maximum(1, tf.cast(exact, tf.int32))

    new_height, new_width = fitted(height), fitted(width)
    small = tf.image.resize(pixels, tf.stack([new_height, new_width]), antialias=shrink)
    return tf.image.pad_to_bounding_box(
        small, (size - new_height) // 2, (size - new_width) // 2, size, size
    )
