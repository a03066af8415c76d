"""Whether TensorFlow's decoders may be given a file's own bytes, and read what Pillow reads.

The answer is strict: whatever is unusual is not plain, and `pipeline.images` then stores a lossless
PNG instead. Each rule stands for files on which the two were seen to disagree; the mutation run
(`python -m tests.fuzz_images`) looks for more.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

from pipeline.ingest.headers import PNG_MAGIC

# Start-of-frame markers that TensorFlow's libjpeg decodes: baseline, extended and progressive.
_SOF_DECODED = (0xC0, 0xC1, 0xC2)
_SOF_OTHERS = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Adam7: where each pass begins and how far its pixels are apart, as (x, y, dx, dy).
_PNG_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL)
# libpng gives up on wider or taller images, and on larger ancillary chunks.
_PNG_MAX_SIDE = 1_000_000
_PNG_MAX_ANCILLARY = 8_000_000


def is_plain(data: bytes, form: str) -> bool:
    """Says whether TensorFlow may be given these bytes as they are.

    Args:
      data: a whole file that Pillow has decoded.
      form: its format, as `sniff` gave it.
    """
    if form == "jpeg":
        return _plain_jpeg(data)
    if form == "png":
        return _plain_png(data)
    if form == "gif":
        return _plain_gif(data)
    return form == "bmp" and _plain_bmp(data)


def _plain_jpeg(data: bytes) -> bool:
    """Walks all segments and scans up to the end of the image, on which TensorFlow insists."""
    frame = b""
    progressive = adobe = False
    scans: list[bytes] = []
    for segment in _jpeg_segments(data):
        if segment is None:
            return False
        marker, body = segment
        if marker in _SOF_DECODED:
            if frame or len(body) < 6 or body[0] != 8 or body[5] not in (1, 3, 4):
                return False
            frame, progressive = body, marker == 0xC2
        elif marker == 0xDA:
            scans.append(body)
        elif marker == 0xEE:
            adobe = adobe or body[:5] == b"Adobe"
    if not frame or (progressive and not _every_bit_sent(frame, scans)):
        return False
    # Without Adobe's marker the decoders differ on whether the inks are inverted.
    return frame[5] < 4 or adobe


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes] | None]:
    """Yields (marker, body) of each segment up to the end of the image, None for a wrong one."""
    position = 2
    while position + 2 <= len(data):
        marker = data[position + 1]
        if data[position] != 0xFF or marker in _SOF_OTHERS:
            break
        if marker == 0xD9:
            return
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        body = data[position + 4 : position + 2 + length]
        if length < 2 or len(body) != length - 2:
            break
        yield marker, body
        position += 2 + length
        if marker == 0xDA:
            # Within a scan only stuffed zeros and restarts are at home.
            following = _IN_SCAN.search(data, position)
            if following is None:
                break
            position = following.start()
    yield None


def _every_bit_sent(frame: bytes, scans: list[bytes]) -> bool:
    """Says whether a progressive JPEG's scans send every coefficient to its last bit.

    Where they don't, libjpeg smooths between blocks, and its versions do that differently.
    """
    components = {frame[place] for place in range(6, len(frame), 3)}
    missing = {(component, index) for component in components for index in range(64)}
    for scan in scans:
        count = scan[0] if scan else 0
        if len(scan) != 4 + 2 * count:
            return False
        first, last, bits = scan[-3:]
        if bits & 15 == 0:
            named = scan[1 : 1 + 2 * count : 2]
            missing -= {(component, i) for component in named for i in range(first, last + 1)}
    return not missing


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview] | None]:
    """Yields (type, body) of each chunk up to IEND, and None for the first damaged one."""
    view = memoryview(data)
    position = len(PNG_MAGIC)
    while position + 12 <= len(data):
        length = int.from_bytes(view[position : position + 4], "big")
        end = position + 12 + length
        if end > len(data):
            break
        kind = bytes(view[position + 4 : position + 8])
        if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            break
        yield kind, view[position + 8 : end - 4]
        if kind == b"IEND":
            return
        position = end
    yield None


def _plain_png(data: bytes) -> bool:
    seen: list[bytes] = []
    packed: list[memoryview] = []
    depth = colour = size = 0
    for chunk in _png_chunks(data):
        if chunk is None:
            return False
        kind, body = chunk
        if not seen:
            header = _png_header(kind, body)
            if header is None:
                return False
            depth, colour, size = header
        elif kind == b"IDAT":
            if b"IDAT" in seen and seen[-1] != b"IDAT":
                return False
            packed.append(body)
        elif not _fitting_chunk(kind, body, depth, colour, seen):
            return False
        seen.append(kind)
    return (colour != 3 or b"PLTE" in seen) and _inflates_to(packed, size)


def _png_header(kind: bytes, body: memoryview) -> tuple[int, int, int] | None:
    """Returns (bit depth, colour type, bytes of the rows unpacked), or None if it isn't right."""
    if kind != b"IHDR" or len(body) != 13:
        return None
    width, height, depth, colour, packing, filtering, lacing = struct.unpack(">IIBBBBB", body)
    if not (0 < width <= _PNG_MAX_SIDE and 0 < height <= _PNG_MAX_SIDE):
        return None
    if depth not in _PNG_DEPTHS.get(colour, ()) or packing or filtering or lacing > 1:
        return None
    bits = depth * _PNG_SAMPLES[colour]
    size = 0
    for x, y, dx, dy in _PNG_PASSES if lacing else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // dx), -(-(height - y) // dy)
        if columns > 0 and rows > 0:
            size += rows * (1 + (columns * bits + 7) // 8)
    return depth, colour, size


def _inflates_to(packed: list[memoryview], size: int) -> bool:
    """Says whether the stream is whole, with the right checksum and the right length.

    Pillow stops reading when it has its rows, and never sees what libpng stumbles over.
    """
    stream = zlib.decompressobj()
    total = 0
    try:
        for body in packed:
            waiting: bytes | memoryview = body
            while waiting and not stream.eof and total <= size:
                total += len(stream.decompress(waiting, 1 << 20))
                waiting = stream.unconsumed_tail
        while not stream.eof and total <= size and (more := stream.decompress(b"", 1 << 20)):
            total += len(more)
    except zlib.error:
        return False
    return stream.eof and total == size


def _fitting_chunk(
    kind: bytes, body: memoryview, depth: int, colour: int, seen: list[bytes]
) -> bool:
    """Says whether a chunk other than IHDR and IDAT is in its place."""
    if kind != b"PLTE":
        known = kind == b"IEND" or not kind[:1].isupper()
        return known and len(body) <= _PNG_MAX_ANCILLARY
    if b"IDAT" in seen or b"PLTE" in seen or colour in (0, 4):
        return False
    limit = 1 << depth if colour == 3 else 256
    return len(body) > 0 and len(body) % 3 == 0 and len(body) // 3 <= limit


def _plain_gif(data: bytes) -> bool:
    """Looks as far as the first frame ends; the transform graph cuts off what follows."""
    width, height = struct.unpack("<HH", data[6:10])
    position = 13 + _table_bytes(data[10])
    while position + 10 < len(data):
        if data[position] == 0x2C:
            box = struct.unpack("<HHHH", data[position + 1 : position + 9])
            end = _behind_blocks(data, position + 11 + _table_bytes(data[position + 9]))
            return box == (0, 0, width, height) and end <= len(data)
        if data[position] != 0x21:
            return False
        # A transparent colour: TensorFlow leaves black where Pillow shows the palette's colour.
        if data[position + 1 : position + 3] == b"\xf9\x04" and data[position + 3] & 1:
            return False
        position = _behind_blocks(data, position + 2)
    return False


def gif_colours(data: bytes) -> int:
    """Returns how many colours the first frame of a plain GIF can choose from."""
    table = data[10]
    position = 13 + _table_bytes(table)
    while position + 10 < len(data) and data[position] == 0x21:
        position = _behind_blocks(data, position + 2)
    local = data[position + 9] if position + 10 < len(data) else 0
    active = local if local & 0x80 else table
    return 2 ** ((active & 7) + 1) if active & 0x80 else 0


def _table_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _behind_blocks(data: bytes, position: int) -> int:
    while position < len(data) and data[position]:
        position += 1 + data[position]
    return position + 1


def _plain_bmp(data: bytes) -> bool:
    """24 bits a pixel without compression: the one kind that TensorFlow reads as Pillow does."""
    if len(data) < 54:
        return False
    offset, header = struct.unpack("<II", data[10:18])
    width, height, planes, bits, compression = struct.unpack("<iiHHI", data[18:34])
    row = (3 * width + 3) // 4 * 4
    return (
        header in (40, 108, 124)
        and (planes, bits, compression) == (1, 24, 0)
        and width > 0
        and offset >= 14 + header
        and len(data) == offset + row * abs(height)
    )
