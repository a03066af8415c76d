"""What the first bytes of an image file say, read without decoding a pixel.

Which format is it, what is it if it is none of ours, and was it cut short? The formats are
described by ITU T.81 (JPEG), the W3C PNG specification, GIF89a, Microsoft's DIB documentation, the
TIFF 6.0 specification and Google's WebP container specification.
"""

from __future__ import annotations

import struct

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

# Formats that ingest reads, and how many of their first bytes `sniff` needs.
READ = ("jpeg", "png", "gif", "bmp", "webp", "tiff")
SNIFF_BYTES = 64

_FOREIGN = (
    (b"8BPS", "a Photoshop document"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "a JPEG 2000 file"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 codestream"),
    (b"\xff\x0a", "a JPEG XL codestream"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL file"),
    (b"II+\x00", "a BigTIFF file"),
    (b"MM\x00+", "a BigTIFF file"),
    (b"v/1\x01", "an OpenEXR file"),
    (b"qoif", "a QOI file"),
)
_BRANDS = {b"avif": "an AVIF file", b"avis": "an AVIF file"}
_HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")

# TIFF: bytes of each field type, and the tags of where strips and tiles are and how long.
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_TIFF_EXTENTS = (273, 279, 324, 325)


def sniff(head: bytes) -> str | None:
    """Returns the format (one of READ) that the first SNIFF_BYTES bytes announce, or None."""
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(PNG_MAGIC):
        return "png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith((b"II*\x00", b"MM\x00*")):
        return "tiff"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    # "BM" alone could begin a text: a bitmap also names a known header size.
    if head.startswith(b"BM") and len(head) >= 18 and head[14:18] in _DIB_SIZES:
        return "bmp"
    return None


_DIB_SIZES = tuple(struct.pack("<I", size) for size in (12, 16, 40, 52, 56, 64, 108, 124))


def foreign(head: bytes) -> str | None:
    """Returns the name of an image format that ingest does not read, or None."""
    for magic, name in _FOREIGN:
        if head.startswith(magic):
            return name
    if head[4:8] == b"ftyp":
        if head[8:12] in _HEIF:
            return "a HEIC file"
        return _BRANDS.get(head[8:12])
    if head[:1] == b"P" and head[1:2] in b"1234567" and head[2:3].isspace():
        return "a Netpbm file"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<svg"):
        return "an SVG drawing"
    return None


def describe(head: bytes) -> str:
    """Returns what a file that is no image seems to be, for the quarantine's detail."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if text.startswith((b"<?xml", b"<")):
        return "XML or HTML text"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: fetch the file itself with `git lfs pull`"
    if head.startswith(b"%PDF"):
        return "a PDF document"
    if head.startswith((b"PK\x03\x04", b"\x1f\x8b", b"Rar!", b"7z\xbc\xaf")):
        return "an archive"
    if not any(head):
        return "zero bytes"
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)
    return "text" if printable == len(head) else f"unknown data that begins {head[:8].hex(' ')}"


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Returns a WebP file's (width, height), or None if its first chunk is damaged.

    Pillow allocates the whole canvas when it opens a WebP file; this asks before.
    """
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if kind == b"VP8X":
        return (
            int.from_bytes(body[4:7], "little") + 1,
            int.from_bytes(body[7:10], "little") + 1,
        )
    if kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", body[6:10])
        return width & 0x3FFF, height & 0x3FFF
    return None


def cut_short(data: bytes, form: str) -> bool:
    """Says whether a file that could not be decoded ends before its format says it should."""
    if form == "jpeg":
        return b"\xff\xd9" not in data[-65_536:]
    if form == "png":
        return b"IEND" not in data[-65_536:]
    if form == "gif":
        return b"\x3b" not in data[-16:]
    if form == "bmp":
        declared = int.from_bytes(data[2:6], "little")
        return len(data) < max(declared, 26)
    if form == "webp":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    return _cut_short_tiff(data)


def _cut_short_tiff(data: bytes) -> bool:
    """Says whether the first directory, or anything that it points to, lies behind the end."""
    order = "<" if data[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        extents: dict[int, tuple[int, ...]] = {}
        for number in range(count):
            tag, kind, values = struct.unpack_from(order + "HHI", data, start + 2 + 12 * number)
            size = _TIFF_SIZES.get(kind, 1) * values
            place = start + 10 + 12 * number
            if size > 4:
                (place,) = struct.unpack_from(order + "I", data, place)
            if place + size > len(data):
                return True
            if tag in _TIFF_EXTENTS and kind in (3, 4):
                letter = "H" if kind == 3 else "I"
                extents[tag] = struct.unpack_from(f"{order}{values}{letter}", data, place)
    except struct.error:
        return True
    return any(
        offset + length > len(data)
        for offsets, lengths in ((273, 279), (324, 325))
        for offset, length in zip(extents.get(offsets, ()), extents.get(lengths, ()), strict=False)
    )
