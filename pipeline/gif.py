"""Cuts a GIF down to its first frame, inside a TensorFlow graph.

TensorFlow's decoder unpacks every frame of an animation, and each frame announces a size of its
own, so that a small file can take any amount of memory and time. Only the first frame is a picture
to classify: the rest is cut off before decoding, and the first frame is held to the bound.

Format: GIF89a (CompuServe, 1990), sections 18 to 27.
"""

from __future__ import annotations

from typing import Final

import tensorflow as tf

from pipeline.headers import zero_unless

# Data stands in blocks of at most 255 bytes. A frame of 50 megapixels that can't be compressed has
# 250,000 of them; a file of one-byte blocks mustn't hold a server up for longer than that.
_MAX_BLOCKS: Final = 300_000

_EXTENSION: Final = 0x21
_IMAGE: Final = 0x2C
_TRAILER: Final = b";"

# What the walk over the blocks expects next.
_BLOCK: Final = 0
_EXTENSION_DATA: Final = 1
_FRAME_DATA: Final = 2
_DONE: Final = 3
_DAMAGED: Final = 4


def first_frame(image: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """Returns the file (string []) with its first frame only.

    Raises:
      tf.errors.InvalidArgumentError: no whole frame, or one larger than `max_pixels`.
    """
    # What is read past the end reads as zeros.
    data = tf.pad(tf.cast(tf.io.decode_raw(image, tf.uint8), tf.int32), [[0, 16]])
    end = tf.strings.length(image)
    first_block = 13 + _color_table(data[10])

    def walk(
        state: tf.Tensor, at: tf.Tensor, pixels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        byte = data[at]
        opens = tf.equal(state, _BLOCK)
        is_image = opens & tf.equal(byte, _IMAGE)
        is_extension = opens & tf.equal(byte, _EXTENSION)
        # A frame: position, size and flags (9 bytes), perhaps colours, the code size (1 byte).
        width, height = (data[at + low] + 256 * data[at + low + 1] for low in (5, 7))
        frame_start = at + 11 + _color_table(data[at + 9])
        ends = ~opens & tf.equal(byte, 0)
        after_data = tf.where(ends, tf.where(tf.equal(state, _FRAME_DATA), _DONE, _BLOCK), state)
        after_opening = tf.where(
            is_image, _FRAME_DATA, tf.where(is_extension, _EXTENSION_DATA, _DAMAGED)
        )
        step = tf.where(is_image, frame_start, tf.where(is_extension, at + 2, at + 1 + byte))
        next_state = tf.where(opens, after_opening, after_data)
        beyond = (step >= end) & tf.not_equal(next_state, _DONE)
        return (
            tf.where(beyond, _DAMAGED, next_state),
            tf.minimum(step, end),
            tf.where(is_image, tf.cast(width, tf.int64) * tf.cast(height, tf.int64), pixels),
        )

    start = (
        tf.where(first_block < end, _BLOCK, _DAMAGED),
        tf.minimum(first_block, end),
        tf.constant(0, tf.int64),
    )
    state, at, pixels = tf.while_loop(
        lambda state, at, pixels: state < _DONE,
        walk,
        start,
        maximum_iterations=_MAX_BLOCKS,
        parallel_iterations=1,
    )
    whole = tf.equal(state, _DONE)
    too_large = tf.strings.format(
        f"a GIF's frame is too large; expected at most {max_pixels} pixels "
        "(transform.max_pixels), send a smaller one. Received {}",
        pixels,
    )
    trouble = tf.where(pixels > max_pixels, too_large, "")
    trouble = tf.where(whole, trouble, "a GIF holds no whole frame: it is damaged, send it whole.")
    size = at + zero_unless(trouble)
    return tf.strings.join([tf.strings.substr(image, 0, size), tf.constant(_TRAILER)])


def _color_table(flags: tf.Tensor) -> tf.Tensor:
    """Returns the bytes of the colour table that a descriptor's flags (int32 []) announce."""
    size = 3 * tf.bitwise.left_shift(2, tf.bitwise.bitwise_and(flags, 7))
    return tf.where(tf.equal(tf.bitwise.bitwise_and(flags, 0x80), 0), 0, size)
