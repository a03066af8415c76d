"""DATA in a bucket, from a real S3 server: copied, kept up to date, and read as any folder is."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from pipeline.commands import inspect
from pipeline.config import Ingest
from pipeline.errors import DataRefused, SafelightError
from pipeline.ingest import buckets, listing
from pipeline.ingest.scan import scan
from tests import s3_server
from tests.framing import framed, record
from tests.ingested import ingest
from tests.made import class_folders
from tests.s3_server import BUCKET, Store


@pytest.fixture(scope="module")
def server():
    with s3_server.serving() as store:
        yield store


@pytest.fixture
def store(server, tmp_path, monkeypatch):
    """The server, with the copies in a folder of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return server


@pytest.fixture
def photos(store, tmp_path, request) -> str:
    """Two classes of twenty pictures in the bucket; their address."""
    folder = class_folders(tmp_path / "photos", {"red": 20, "blue": 20})
    store.put_folder(folder, request.node.name)
    return f"s3://{BUCKET}/{request.node.name}"


def key_of(address: str, name: str) -> str:
    return f"{address.removeprefix(f's3://{BUCKET}/')}/{name}"


def test_class_folders_are_read_by_address(photos, tmp_path):
    found = scan(photos, Ingest())
    assert (found.data, found.form, found.files) == (photos, "folders", 40)
    assert found.per_class == {"blue": 20, "red": 20}
    assert found.majority == (32, 32, 3)
    here = scan(str(tmp_path / "photos"), Ingest())
    assert (found.bytes, found.splits) == (here.bytes, here.splits)
    seen = inspect.inspect(photos, Ingest())
    assert seen.looked_at == 40 and not seen.problems


def test_unchanged_data_is_neither_copied_again_nor_new(photos, tmp_path):
    said: list[tuple[int, int]] = []
    first = scan(photos, Ingest(), on_progress=lambda *told: said.append(told))
    assert said[0][0] == 0 and said[-1][0] == said[-1][1] == first.bytes
    copies = {path: path.stat().st_ctime_ns for path in (tmp_path / "cache").rglob("*.png")}
    assert len(copies) == 40
    assert scan(photos, Ingest()).fingerprint == first.fingerprint
    assert {path: path.stat().st_ctime_ns for path in copies} == copies
    # Another machine, with no copy yet, finds the same fingerprint.
    assert scan(photos, Ingest(copies=str(tmp_path / "other"))).fingerprint == first.fingerprint


def test_what_changes_in_the_bucket_changes_here(store, photos):
    first = scan(photos, Ingest())
    name = key_of(photos, "red/00001.png")
    copy = Path(buckets.fetch(photos, "")) / "red" / "00001.png"
    changed = copy.read_bytes()[:-1] + b"!"  # as long as before, within the same second
    store.put(name, changed)
    second = scan(photos, Ingest())
    assert copy.read_bytes() == changed and second.fingerprint != first.fingerprint
    store.delete(name)
    assert scan(photos, Ingest()).per_class == {"blue": 20, "red": 19}
    assert not copy.exists()


def test_a_download_that_broke_is_made_good(photos):
    copy = Path(buckets.fetch(photos, "")) / "red" / "00001.png"
    whole, before = copy.read_bytes(), scan(photos, Ingest()).fingerprint
    copy.write_bytes(whole[:50])
    copy.with_name("00002.png").unlink()
    assert scan(photos, Ingest()).fingerprint == before
    assert copy.read_bytes() == whole


def test_a_manifest_brings_its_folder_along(photos, store):
    text = "path,label\n" + "".join(
        f"{name}/{number:05d}.png,{name}\n" for name in ("red", "blue") for number in range(20)
    )
    store.put(key_of(photos, "list.csv"), (text + "red/99999.png,red\n").encode())
    found = listing.read(f"{photos}/list.csv", Ingest())
    assert (found.form, len(found.entries)) == ("manifest", 40)
    assert [(problem.path, problem.reason) for problem in found.problems] == [
        (b"red/99999.png", "missing")
    ]


def test_split_folders_and_records_are_read_by_address(store, tmp_path):
    for split in ("train", "test"):
        class_folders(tmp_path / "splits" / split, {"red": 3, "blue": 3})
    store.put_folder(tmp_path / "splits", "splits")
    found = listing.read(f"s3://{BUCKET}/splits/", Ingest())
    assert found.form == "splits" and found.given == {"train", "test"}
    data = b"".join(framed(record(label, 1)) for label in ("red", "blue"))
    store.put("records/a.tfrecord", data)
    store.put("records/b.tfrecord", data)
    assert len(listing.read(f"s3://{BUCKET}/records", Ingest()).entries) == 4
    assert len(listing.read(f"s3://{BUCKET}/records/a.tfrecord", Ingest()).entries) == 2


def test_any_name_of_an_object_has_a_place_and_none_outside(store, tmp_path):
    long = "n" * 300 + ".png"
    names = ["red/../../out.png", "red//twice.png", "red/ä b.png", f"red/{long}", "red/x"]
    names += ["red/x/below.png", "red/marker/"]
    for name in names:
        store.put(f"odd/{name}", b"" if name.endswith("/") else name.encode())
    copy = buckets.fetch(f"s3://{BUCKET}/odd", "")
    held = sorted(path.read_bytes() for path in copy.rglob("*") if path.is_file())
    assert held == sorted(name.encode() for name in names if not name.endswith("/"))
    assert all(copy in path.parents for path in tmp_path.rglob("out.png"))


def test_what_is_not_there_or_closed_is_one_clear_error(photos, monkeypatch):
    with pytest.raises(DataRefused, match=r"nothing at s3://no-such-bucket/a: no such bucket"):
        scan("s3://no-such-bucket/a", Ingest())
    with pytest.raises(DataRefused, match=r"nothing at s3://pictures/nowhere"):
        scan(f"s3://{BUCKET}/nowhere", Ingest())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(SafelightError, match=r"can't be read.*AWS_ENDPOINT_URL") as refused:
            scan(photos, Ingest())
    assert refused.value.exit_code == 1


def test_a_missing_package_names_the_extra(monkeypatch):
    import fsspec

    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(SafelightError, match=r"make setup EXTRAS=s3.*safelight\[s3\]"):
        scan("s3://bucket/images", Ingest())
    with pytest.raises(SafelightError, match=r"make setup EXTRAS=gcs"):
        scan("gs://bucket/images", Ingest())


def test_a_disk_that_is_too_small_is_said_before_anything_is_copied(photos, tmp_path, monkeypatch):
    usage = os.statvfs(tmp_path)
    monkeypatch.setattr(buckets, "_SPARE_DISK", usage.f_frsize * usage.f_blocks)
    with pytest.raises(SafelightError, match=re.escape("--set ingest.copies=FOLDER")):
        scan(photos, Ingest())
    assert not list((tmp_path / "cache").rglob("*.png"))


def test_wrong_credentials_are_one_clear_error(photos, server: Store, monkeypatch):
    """The server is told to check signatures, for the requests of this test alone."""
    import requests

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    requests.post(f"{server.endpoint}/moto-api/reset-auth", data=b"0", timeout=10)
    try:
        with pytest.raises(SafelightError, match=r"can't be read: PermissionError.*AWS_PROFILE"):
            scan(photos, Ingest())
    finally:
        requests.post(f"{server.endpoint}/moto-api/reset-auth", data=b"1000000", timeout=10)


def test_a_bucket_goes_through_ingest_as_a_folder_does(photos, tmp_path):
    made = ingest(photos, tmp_path / "bucket")
    here = ingest(tmp_path / "photos", tmp_path / "here")
    assert made.summary["examples"] == here.summary["examples"]
    assert made.digest() == here.digest()
    assert made.summary["fingerprint"] == scan(photos, Ingest()).fingerprint
