"""TFRecords of other pipelines: their framing, their wire format, and damage."""

from __future__ import annotations

import contextlib
import gzip
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Ingest
from pipeline.ingest import records, wire
from pipeline.ingest.child import Bad, Good, work
from pipeline.ingest.pool import settings_for
from pipeline.ingest.scan import scan
from tests.framing import framed, record
from tests.listed import look, problems, put


def test_records_are_indexed_by_their_framing(tmp_path):
    first, second = framed(record("red", 1)), framed(record("blue", 2))
    put(tmp_path / "train-00000-of-00002", first + second)
    put(tmp_path / "validation-00000-of-00001.gz", gzip.compress(first))
    put(tmp_path / "notes.txt", b"stray")
    found = look(tmp_path)
    assert found.form == "tfrecords"
    assert [(entry.path, entry.offset, entry.split) for entry in found.entries] == [
        (b"train-00000-of-00002", 0, "train"),
        (b"train-00000-of-00002", len(first), "train"),
        (b"validation-00000-of-00001.gz", 0, "eval"),
    ]
    assert found.ignored.names == ["notes.txt"]
    assert scan(str(tmp_path), Ingest()).classes is None


def test_damaged_record_files_keep_what_is_whole(tmp_path):
    whole = framed(record("red", 1))
    put(tmp_path / "cut.tfrecord", whole + whole[:-7])
    put(tmp_path / "garbage.tfrecord", whole + b"x" * 100)
    put(tmp_path / "packed.tfrecord.gz", gzip.compress(whole)[:-20])
    put(tmp_path / "good.tfrecords", whole)
    found = look(tmp_path)
    assert sorted(entry.path for entry in found.entries) == [
        b"cut.tfrecord",
        b"garbage.tfrecord",
        b"good.tfrecords",
    ]
    assert problems(found) == {
        "cut.tfrecord": "truncated",
        "garbage.tfrecord": "unreadable",
        "packed.tfrecord.gz": "truncated",
    }


def test_links_out_of_the_folder_are_followed_if_asked_for(tmp_path):
    put(tmp_path / "elsewhere" / "a.tfrecord", framed(record("red", 1)))
    root = tmp_path / "data"
    put(root / "b.tfrecord", framed(record("blue", 1)))
    (root / "linked.tfrecord").symlink_to(tmp_path / "elsewhere" / "a.tfrecord")
    (root / "more").symlink_to(tmp_path / "elsewhere")
    assert problems(look(root)) == {"linked.tfrecord": "outside", "more": "outside"}
    followed = look(root, follow_links=True)
    assert problems(followed) == {}
    assert [entry.path for entry in followed.entries] == [
        b"b.tfrecord",
        b"linked.tfrecord",
        b"more/a.tfrecord",
    ]


def read(tmp_path, *examples, **options):
    """Returns what a child makes of the records of a file."""
    put(tmp_path / "a.tfrecord", b"".join(map(framed, examples)))
    found = look(tmp_path, **options)
    return work(found.entries, settings_for(found, Ingest(**options)))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-7, "-7"),
        (10000001, "10000001"),
        (2**63 - 1, "9223372036854775807"),
        (3.0, "3"),
        (10000001.0, "10000001"),
        (0.1, "0.1"),
        (1234.5678, "1234.5677"),  # as a float32
        (float("nan"), "nan"),
    ],
)
def test_a_number_names_its_class_and_its_group(tmp_path, value, text):
    (one,) = read(tmp_path, record("red", 1, label=[value], who=[value]), record_group="who")
    assert isinstance(one, Good)
    assert (one.label, one.group) == (text, text)


def test_class_names_of_records_are_those_of_folders(tmp_path):
    names = [unicodedata.normalize(form, "café").encode() for form in ("NFC", "NFD")]
    kept = read(tmp_path, *(record("red", 1, label=[name]) for name in (*names, b" a\xff ")))
    assert [one.label for one in kept] == ["café", "café", "a\\xff"]
    (bad,) = read(tmp_path, record("red", 1, label=[b"two\nlines"]))
    assert isinstance(bad, Bad)
    assert bad.reason == "line_break" and "'two\\nlines' has a line break in it" in bad.detail


def test_checksums_are_those_of_tensorflow():
    assert records.crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert records.fast_crc32c(b"123456789") in (None, 0xE3069283)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_parse_as_an_example_or_are_refused(data):
    with contextlib.suppress(wire.WireError):
        wire.unpack(data)


def test_the_wire_format_is_tensorflows():
    import tensorflow as tf

    features = {
        "b": [b"", b"\xff" * 300],
        "i": [0, 1, -1, 2**63 - 1, -(2**63)],
        "f": [0.5, -1.25],
        "none": [],
    }
    data = wire.pack(features)
    example = tf.train.Example.FromString(data)
    assert list(example.features.feature["b"].bytes_list.value) == features["b"]
    assert list(example.features.feature["i"].int64_list.value) == features["i"]
    assert list(example.features.feature["f"].float_list.value) == features["f"]
    assert wire.unpack(data) == features
    assert wire.unpack(example.SerializeToString()) == features
