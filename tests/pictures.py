"""One real file of every kind that ingest reads, made with Pillow; and ways to damage them."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image

from tests.made import picture

SIZE = (40, 28)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """Returns `image` as a file of Pillow's format `form`."""
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def exif(orientation: int) -> bytes:
    """Returns an EXIF block that says how the camera was held."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def photograph(number: int = 0) -> Image.Image:
    """Returns an RGB picture of SIZE with structure of every frequency."""
    return picture("red", number, SIZE)


def sixteen_bits() -> Image.Image:
    """Returns a grey picture of SIZE with 16 bits a pixel, mode I;16."""
    rng = np.random.default_rng(5)
    return Image.fromarray(rng.integers(0, 1 << 16, SIZE[::-1]).astype(np.uint16))


def kept() -> dict[str, bytes]:
    """Returns files whose bytes ingest keeps, by name."""
    colour, grey = photograph(), photograph(1).convert("L")
    palette = colour.quantize(64)
    alpha = colour.copy()
    alpha.putalpha(grey)
    return {
        "baseline.jpg": encoded(colour, "JPEG", quality=90),
        "progressive.jpg": encoded(colour, "JPEG", progressive=True),
        "unsampled.jpg": encoded(colour, "JPEG", subsampling=0, quality=97),
        "grey.jpg": encoded(grey, "JPEG"),
        "cmyk.jpg": encoded(colour.convert("CMYK"), "JPEG"),
        "upright.jpg": encoded(colour, "JPEG", exif=exif(1)),
        "rgb.png": encoded(colour, "PNG"),
        "grey.png": encoded(grey, "PNG"),
        "black-and-white.png": encoded(grey.convert("1"), "PNG"),
        "palette.png": encoded(palette, "PNG"),
        "palette-4.png": encoded(colour.quantize(16), "PNG", bits=4),
        "palette-transparent.png": encoded(palette, "PNG", transparency=3),
        "alpha.png": encoded(alpha, "PNG"),
        "grey-alpha.png": encoded(alpha.convert("LA"), "PNG"),
        "grey-transparent.png": encoded(grey, "PNG", transparency=100),
        "sixteen.png": encoded(sixteen_bits(), "PNG"),
        "plain.gif": encoded(palette, "GIF"),
        "animated.gif": encoded(
            palette, "GIF", save_all=True, append_images=[photograph(2).quantize(64)], loop=0
        ),
        "colour.bmp": encoded(colour, "BMP"),
    }


def converted() -> dict[str, tuple[bytes, str]]:
    """Returns files that ingest converts, by name, each with the reason it gives."""
    colour, grey = photograph(), photograph(1).convert("L")
    palette = colour.quantize(64)
    files: dict[str, tuple[bytes, str]] = {
        f"turned-{turn}.jpg": (encoded(colour, "JPEG", exif=exif(turn)), "orientation")
        for turn in range(2, 9)
    }
    files |= {
        "turned.png": (encoded(colour, "PNG", exif=exif(6)), "orientation"),
        "lossy.webp": (encoded(colour, "WEBP", quality=80), "webp"),
        "lossless.webp": (encoded(colour, "WEBP", lossless=True), "webp"),
        "alpha.webp": (encoded(colour.convert("RGBA"), "WEBP"), "webp"),
        "animated.webp": (
            encoded(colour, "WEBP", save_all=True, append_images=[photograph(2)]),
            "webp",
        ),
        "raw.tif": (encoded(colour, "TIFF"), "tiff"),
        "grey.tif": (encoded(grey, "TIFF", compression="tiff_deflate"), "tiff"),
        "lzw.tif": (encoded(colour, "TIFF", compression="tiff_lzw"), "tiff"),
        "jpeg.tif": (encoded(colour, "TIFF", compression="jpeg"), "tiff"),
        "packbits.tif": (encoded(palette, "TIFF", compression="packbits"), "tiff"),
        "fax.tif": (encoded(grey.convert("1"), "TIFF", compression="group4"), "tiff"),
        "cmyk.tif": (encoded(colour.convert("CMYK"), "TIFF"), "tiff"),
        "sixteen.tif": (encoded(sixteen_bits(), "TIFF"), "tiff"),
        "palette.bmp": (encoded(palette, "BMP"), "bmp"),
        "grey.bmp": (encoded(grey, "BMP"), "bmp"),
        "black-and-white.bmp": (encoded(grey.convert("1"), "BMP"), "bmp"),
        "alpha.bmp": (encoded(colour.convert("RGBA"), "BMP"), "bmp"),
        "transparent.gif": (encoded(palette, "GIF", transparency=3), "gif"),
    }
    return files


def announcing(width: int, height: int) -> bytes:
    """Returns a small PNG whose header announces width x height pixels of RGB."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1 << 20), 9))
        + chunk(b"IEND", b"")
    )


def chunk(kind: bytes, body: bytes) -> bytes:
    """Returns a PNG chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_true_checksums(data: bytes) -> bytes:
    """Returns a damaged PNG with every chunk's checksum made right again, as a forger would."""
    out, position = bytearray(data[:8]), 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if position + 12 + length > len(data):
            break
        kind = data[position + 4 : position + 8]
        out += chunk(kind, data[position + 8 : position + 8 + length])
        position += 12 + length
    return bytes(out) + data[position:]


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Returns `data` with one to four injuries of the kinds that files suffer, or forgers inflict.

    Args:
      data: a file.
      other: another file, to be spliced in.
      rng: decides.
    """
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if len(out) < 4:
            break
        at = rng.randrange(len(out))
        # Half of the injuries hit the header, which is small and where the decisions are made.
        at = min(at, rng.randrange(64)) if rng.random() < 0.5 else at
        length = rng.choice((1, 2, 4, 16, 200))
        kind = rng.randrange(9)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + length]
        elif kind == 4:
            out[at:at] = out[at : at + length]
        elif kind == 5:
            out[at : at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"))
        elif kind == 6:
            start = rng.randrange(len(other))
            out[at:at] = other[start : start + 10 * length]
        elif kind == 7:
            out[at:] = other[min(at, len(other) - 1) :]
        else:
            out[at : at + length] = bytes(length)
    if out.startswith(b"\x89PNG\r\n\x1a\n") and rng.random() < 0.5:
        return with_true_checksums(bytes(out))
    return bytes(out)
