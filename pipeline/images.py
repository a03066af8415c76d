"""The one way from an image file to what is stored, hashed, sent and seen: Pillow and NumPy alone.

Ingest, `safelight predict`, the serving check and the client all call `prepare`. It keeps the
bytes of a file that TensorFlow decodes rightly (with `dct_method="INTEGER_ACCURATE"`), and turns
every other readable image into a PNG of the very pixels that a person sees: the EXIF orientation
baked in, the first frame or page, alpha dropped.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from pipeline.ingest import headers, plain

Pixels = npt.NDArray[np.uint8]

MIN_SIDE = 4
MAX_PIXELS = 50_000_000
MOST_PIXELS = 178_000_000  # as far as ingest.max_pixels may be raised: Pillow's own limit
MAX_BYTES = 256 * 1024 * 1024

# Named here so that Pillow need not import its forty other plugins to find these.
PLUGINS = {
    "jpeg": (JpegImagePlugin.JpegImageFile.format, MpoImagePlugin.MpoImageFile.format),
    "png": (PngImagePlugin.PngImageFile.format,),
    "gif": (GifImagePlugin.GifImageFile.format,),
    "bmp": (BmpImagePlugin.BmpImageFile.format,),
    "webp": (WebPImagePlugin.WebPImageFile.format,),
    "tiff": (TiffImagePlugin.TiffImageFile.format,),
}
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_ORIENTATION = 0x0112
# zlib's level 6 takes three times as long for a tenth less.
_PNG_LEVEL = 3


class BadImage(Exception):
    """A file that can't be used: `reason` is one of REASONS, `detail` a sentence's worth of why."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


REASONS = (
    "empty",
    "truncated",
    "not_an_image",
    "unsupported",
    "too_small",
    "bomb",
    "unreadable",
)


@dataclass(frozen=True)
class Prepared:
    """An image ready to be stored or sent.

    Attributes:
      encoded: the file's own bytes, or those of the PNG it was converted to.
      format: of `encoded`: jpeg, png, gif or bmp.
      height: in pixels, upright.
      width: in pixels, upright.
      channels: 1 (grey) or 3 (RGB); alpha is not counted.
      converted: None if the bytes were kept, else why not: webp, tiff, bmp, gif, orientation or
        repaired (damage that Pillow reads over and TensorFlow may not).
      pixels: uint8 [height, width, channels], what TensorFlow decodes from `encoded`.
    """

    encoded: bytes
    format: str
    height: int
    width: int
    channels: int
    converted: str | None
    pixels: Pixels


def prepare(data: bytes, *, min_side: int = MIN_SIDE, max_pixels: int = MAX_PIXELS) -> Prepared:
    """Decodes an image file once and returns what is to be stored or sent in its place.

    Args:
      data: a whole file.
      min_side: pixels; a shorter side is refused.
      max_pixels: width x height; more is refused from the header, before anything is decoded.

    Raises:
      BadImage: the file can't be used; `reason` is one of REASONS.
    """
    form = _known_format(data)
    image = _open(io.BytesIO(data), form, min_side, max_pixels)
    try:
        image.load()
        pixels = _to_pixels(image)
        orientation = _orientation(image)
    except BadImage:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise whatever they like
        raise _undecodable(data, form, error) from None
    pixels = np.ascontiguousarray(_upright(pixels, orientation))
    converted = _why_converted(data, form, orientation, image)
    height, width, channels = pixels.shape
    return Prepared(
        encoded=data if converted is None else to_png(pixels),
        format=form if converted is None else "png",
        height=height,
        width=width,
        channels=channels,
        converted=converted,
        pixels=pixels,
    )


def size_of(file: BinaryIO) -> tuple[int, int, int]:
    """Returns (width, height, channels) from a file's header, wherever in the file it stands.

    They are the upright picture's, but for WebP: what turns it stands behind its pixels.

    Raises:
      BadImage: the header can't be read.
    """
    head = file.read(headers.SNIFF_BYTES)
    file.seek(0)
    form = _known_format(head)
    if form == "webp" and (size := headers.webp_size(head)) is not None:
        return *size, 3  # Pillow would read all of it
    image = _open(file, form, 1, 1 << 62)
    channels = 1 if image.mode in ("1", "L", "LA", "I", "F", *_SIXTEEN_BITS) else 3
    # Pillow gives a TIFF's size upright itself.
    turned = form != "tiff" and _orientation(image) >= 5
    return *(image.size[::-1] if turned else image.size), channels


def digest(pixels: Pixels) -> bytes:
    """Returns the SHA-256 (32 bytes) of the shape and of the pixels [height, width, channels]."""
    total = hashlib.sha256(struct.pack("<3I", *pixels.shape))
    total.update(pixels.data)
    return total.digest()


def to_png(pixels: Pixels) -> bytes:
    """Returns uint8 pixels [height, width, 1 or 3] as a PNG."""
    out = io.BytesIO()
    to_image(pixels).save(out, "PNG", compress_level=_PNG_LEVEL)
    return out.getvalue()


@dataclass(frozen=True)
class Facts:
    """Scalars about an image's pixels; values of pixels count from 0 (black) to 1.

    Attributes:
      aspect_ratio: width / height.
      brightness: mean of the luma (ITU-R 601).
      contrast: standard deviation of the luma.
      sharpness: variance of the luma's 4-neighbour Laplacian, 0 (flat) to 16; the usual measure
        of focus (Pech-Pacheco et al., 2000).
      channel_mean: one a channel.
      channel_std: one a channel.
    """

    aspect_ratio: float
    brightness: float
    contrast: float
    sharpness: float
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]


def facts(pixels: Pixels) -> Facts:
    """Returns the facts of uint8 pixels [height, width, channels]."""
    return facts_of(pixels[np.newaxis])[0]


def facts_of(batch: Pixels) -> list[Facts]:
    """Returns the facts of each of several images of one size.

    They are worked out from sums of whole numbers, so that they are the same on every machine, and
    whatever images stand beside.

    Args:
      batch: uint8 [images, height, width, channels].
    """
    count, height, width, channels = batch.shape
    luma = batch[..., 0]
    if channels > 1:  # Pillow's luma; one tall picture costs one call
        tall = to_image(batch.reshape(count * height, width, channels))
        luma = np.asarray(tall.convert("L")).reshape(count, height, width)
    means, deviations = _moments(batch.reshape(count, height * width, channels))
    brightness, contrast = (
        (means, deviations) if channels == 1 else _moments(luma.reshape(count, -1, 1))
    )
    columns = zip(
        brightness[:, 0].tolist(),
        contrast[:, 0].tolist(),
        _sharpness(luma).tolist(),
        means.tolist(),
        deviations.tolist(),
        strict=True,
    )
    return [
        Facts(width / height, light, spread, sharp, tuple(mean), tuple(deviation))
        for light, spread, sharp, mean, deviation in columns
    ]


def to_image(pixels: Pixels) -> Image.Image:
    """Returns pixels [height, width, 1 or 3] as Pillow's image, mode L or RGB."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _known_format(data: bytes) -> str:
    if not data:
        raise BadImage("empty", "the file has 0 bytes")
    head = data[: headers.SNIFF_BYTES]
    form = headers.sniff(head)
    if form is not None:
        return form
    foreign = headers.foreign(head)
    if foreign is not None:
        raise BadImage(
            "unsupported", f"{foreign}; expected JPEG, PNG, GIF, BMP, WebP or TIFF: convert it"
        )
    raise BadImage("not_an_image", f"the content is {headers.describe(head)}")


def _open(file: BinaryIO, form: str, min_side: int, max_pixels: int) -> Image.Image:
    if form == "webp":
        size = headers.webp_size(file.read(headers.SNIFF_BYTES)) or (min_side, min_side)
        file.seek(0)
        _check_size(size, min_side, max_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(file, formats=PLUGINS[form])
    except Image.DecompressionBombError as error:
        raise BadImage("bomb", str(error).split(",")[0]) from None
    except Exception as error:  # noqa: BLE001 - a damaged header raises whatever it likes
        file.seek(0)
        raise _undecodable(file.read(), form, error) from None
    _check_size(image.size, min_side, max_pixels)
    return image


def _check_size(size: tuple[int, int], min_side: int, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise BadImage("bomb", f"{width} x {height} pixels; at most {max_pixels} are decoded")
    if min(width, height) < min_side:
        raise BadImage("too_small", f"{width} x {height} pixels; a side needs {min_side}")


def _undecodable(data: bytes, form: str, error: Exception) -> BadImage:
    cut = "truncated" in str(error).lower() or headers.cut_short(data, form)
    text = f"{form}: {str(error) or type(error).__name__}"
    if isinstance(error, Image.UnidentifiedImageError):
        text = f"{form}: the header is damaged"
    return BadImage("truncated" if cut else "unreadable", text[:300])


def _to_pixels(image: Image.Image) -> Pixels:
    """Returns uint8 [height, width, 1 or 3], as TensorFlow's decoders give them."""
    mode = image.mode
    if mode == "I" and image.format == "PNG":
        grey = np.asarray(image) >> 8
    elif mode in _SIXTEEN_BITS:
        grey = np.asarray(image) >> 8  # the high byte, as libpng does for TensorFlow
    elif mode in ("1", "L"):
        grey = np.asarray(image.convert("L"))
    elif mode == "LA":
        grey = np.asarray(image.getchannel(0))
    elif mode == "CMYK":
        return _from_cmyk(np.asarray(image))
    elif mode in ("RGB", "RGBA", "RGBX"):
        return np.asarray(image)[..., :3]
    elif mode in ("P", "PA", "RGBa", "La", "YCbCr"):
        through = image.convert("RGBA") if mode in ("RGBa", "La") else image
        return np.asarray(through.convert("RGB"))
    else:
        raise BadImage("unsupported", f"pixels of mode {mode}; expected 8 or 16 bits a channel")
    return grey.astype(np.uint8, copy=False)[..., np.newaxis]


def _from_cmyk(inks: Pixels) -> Pixels:
    """Mixes inks [height, width, 4] into RGB with the rounding of TensorFlow's decoder."""
    rest = 255 - inks.astype(np.uint16)
    return (rest[..., :3] * rest[..., 3:] // 255).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 (upright) to 8; a damaged EXIF block counts as upright."""
    said = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"} & image.info.keys()
    if not said and image.format not in ("MPO", "TIFF"):
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - it is metadata alone that is damaged
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _why_converted(data: bytes, form: str, orientation: int, image: Image.Image) -> str | None:
    if form in ("webp", "tiff"):
        return form
    if orientation != 1:
        return "orientation"
    if plain.is_plain(data, form) and not _beyond_palette(data, form, image):
        return None
    return form if form in ("bmp", "gif") else "repaired"


def _beyond_palette(data: bytes, form: str, image: Image.Image) -> bool:
    """Says whether a GIF uses a colour that it doesn't define; TensorFlow refuses that."""
    if form != "gif":
        return False
    if image.mode not in ("P", "L"):
        return True
    return int(np.asarray(image).max()) >= plain.gif_colours(data)


_STRIP = 1_000_000  # values at once: a large image needs no large temporaries
Floats = npt.NDArray[np.float64]


def _moments(values: Pixels) -> tuple[Floats, Floats]:
    """Returns mean and standard deviation, [images, channels] each as of 0-1.

    Args:
      values: uint8 [images, pixels, channels].
    """
    count, number, channels = values.shape
    total, squares = np.zeros((2, count, channels))
    rows = max(1, _STRIP // (count * channels))
    for top in range(0, number, rows):
        # Whole numbers below 2^53: float64 is exact, and has the faster sums.
        strip = values[:, top : top + rows].astype(np.float64)
        total += strip.sum(axis=1)
        squares += np.einsum("ipc,ipc->ic", strip, strip)
    # number x squares may pass 2^53; Python's whole numbers don't mind.
    spread = [
        number * int(square) - int(one) ** 2
        for square, one in zip(squares.flat, total.flat, strict=True)
    ]
    deviation = np.array([value**0.5 for value in spread]).reshape(count, channels)
    return total / number / 255, deviation / number / 255


def _sharpness(luma: Pixels) -> Floats:
    """Returns float64 [images] of uint8 [images, height, width]."""
    count, height, width = luma.shape
    total, squares = np.zeros((2, count))
    if height < 3 or width < 3:
        return total
    rows = max(1, _STRIP // (width * count))
    for top in range(0, height - 2, rows):
        strip = luma[:, top : min(top + rows, height - 2) + 2].astype(np.int16)
        edges = strip[:, 1:-1, 1:-1] * 4
        edges -= strip[:, :-2, 1:-1]
        edges -= strip[:, 2:, 1:-1]
        edges -= strip[:, 1:-1, :-2]
        edges -= strip[:, 1:-1, 2:]
        flat = edges.reshape(count, -1).astype(np.float64)
        total += flat.sum(axis=1)
        squares += np.einsum("ip,ip->i", flat, flat)
    number = (height - 2) * (width - 2)
    spread = [
        number * int(square) - int(one) ** 2 for square, one in zip(squares, total, strict=True)
    ]
    return np.array([value / (number * number) / (255 * 255) for value in spread])
