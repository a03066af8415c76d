"""`tf.Example` on the wire, written and read without TensorFlow.

The decoding children pack and unpack Examples themselves: importing TensorFlow would cost each of
them seconds and hundreds of megabytes. Features are written sorted by name, so that the same
facts give the same bytes whatever Protobuf is installed. The messages are those of TensorFlow's
`example.proto` and `feature.proto`; the encoding is that of protobuf.dev.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

Value = bytes | int | float
Values = Sequence[bytes] | Sequence[int] | Sequence[float]

_BYTES, _FLOAT, _INT64 = 1, 2, 3  # the fields of Feature's `kind`
_ALL_BITS = (1 << 64) - 1
_SMALL = [bytes((value,)) for value in range(0x80)]


class WireError(ValueError):
    """The bytes are no serialized `tf.Example`."""


def pack(features: Mapping[str, Values]) -> bytes:
    """Serializes a `tf.Example`; each value is a list of bytes, int (int64) or float (float32)."""
    entries: list[bytes] = []
    for name in sorted(features):
        entries += _entry(name, features[name])
    return _field(1, b"".join(entries))


def _entry(name: str, values: Values) -> tuple[bytes, bytes]:
    """Returns an entry of Features' map (field 1), but for its end, and its end."""
    if not values:
        return _head(name, 0, -1), b""
    first = values[0]
    if isinstance(first, bytes):
        if len(values) == 1:
            return _head(name, _BYTES, len(first)), first
        several = b"".join([_field(1, value) for value in values])  # type: ignore[arg-type]
        return _map_entry(name, _field(_BYTES, several)), b""
    if isinstance(first, int):
        packed = b"".join([_varint(value & _ALL_BITS) for value in values])  # type: ignore[operator]
        return _head(name, _INT64, len(packed)), packed
    packed = struct.pack(f"<{len(values)}f", *values)
    return _head(name, _FLOAT, len(packed)), packed


@lru_cache(4096)
def _head(name: str, kind: int, size: int) -> bytes:
    """Returns what stands before the `size` bytes of a feature's only value or packed list.

    All images have the same few names, and most values the same sizes: it is worked out once.
    """
    if size < 0:
        return _map_entry(name, b"")
    value = b"\x0a" + _varint(size)
    feature = bytes((kind << 3 | 2,)) + _varint(len(value) + size) + value
    return _map_entry(name, feature, size)


def _map_entry(name: str, feature: bytes, more: int = 0) -> bytes:
    """Returns an entry of Features' map: key (1) and value (2), of which `more` bytes follow."""
    body = _field(1, name.encode()) + b"\x12" + _varint(len(feature) + more) + feature
    return b"\x0a" + _varint(len(body) + more) + body


def unpack(data: bytes) -> dict[str, list[bytes] | list[int] | list[float]]:
    """Parses a serialized `tf.Example`.

    Raises:
      WireError: the bytes are something else.
    """
    found: dict[str, list[bytes] | list[int] | list[float]] = {}
    try:
        for number, features in _fields(data):
            if number != 1:
                continue
            for _, entry in _fields(_as_bytes(features)):
                parts = dict(_fields(_as_bytes(entry)))
                name = _as_bytes(parts.get(1, b"")).decode()
                found[name] = _unpack_feature(_as_bytes(parts.get(2, b"")))
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise WireError(f"not a serialized tf.Example ({error})") from None
    return found


def _varint(value: int) -> bytes:
    if value < 0x80:
        return _SMALL[value]
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, body: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + _varint(len(body)) + body


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise WireError("not a serialized tf.Example (an endless number)")


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yields (field number, body) of a message; a varint's body is the number."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        kind = tag & 7
        if kind == 0:
            value, position = _read_varint(data, position)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, position = _read_varint(data, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise WireError(f"not a serialized tf.Example (wire type {kind})")
        if position + length > len(data):
            raise WireError("not a serialized tf.Example (it ends too early)")
        yield tag >> 3, data[position : position + length]
        position += length


def _as_bytes(body: bytes | int) -> bytes:
    if isinstance(body, int):
        raise WireError("not a serialized tf.Example (a number where a message belongs)")
    return body


def _unpack_feature(data: bytes) -> list[bytes] | list[int] | list[float]:
    for kind, body in _fields(data):
        values = _as_bytes(body)
        if kind == _BYTES:
            return [_as_bytes(value) for _, value in _fields(values)]
        if kind == _FLOAT:
            return _unpack_floats(values)
        if kind == _INT64:
            return _unpack_ints(values)
    return []


def _unpack_floats(data: bytes) -> list[float]:
    floats: list[float] = []
    for _, body in _fields(data):  # packed, or one a field
        packed = _as_bytes(body)
        floats += struct.unpack(f"<{len(packed) // 4}f", packed)
    return floats


def _unpack_ints(data: bytes) -> list[int]:
    ints: list[int] = []
    for _, body in _fields(data):
        if isinstance(body, int):
            ints.append(_signed(body))
            continue
        position = 0
        while position < len(body):
            value, position = _read_varint(body, position)
            ints.append(_signed(value))
    return ints


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
