"""The client against a real server on loopback: REST and gRPC give the same, and fail clearly."""

import io
import json
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import client, images
from pipeline.client import GrpcClient, NotServed, RequestRefused, RestClient
from pipeline.client.request_log import RequestLog
from pipeline.commands import request, serve
from pipeline.errors import SafelightError, UsageError
from tests import exports, made, pictures

NAME = "colours"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    base = tmp_path_factory.mktemp("serving") / NAME
    exports.save_model(base / "3")
    with serve.development(NAME, base) as server:
        yield server


@pytest.fixture(params=["rest", "grpc"])
def make_client(request, served):
    def make(model=NAME, **options):
        if request.param == "rest":
            return RestClient(served.rest_url, model, **options)
        return GrpcClient(served.grpc_target, model, **options)

    return make


def test_predicts_files_and_bytes(make_client, tmp_path):
    folder = made.class_folders(tmp_path, {"blue": 1, "red": 1})
    with make_client(batch_size=2) as client:
        answers = client.predict(
            [folder / "blue/00000.png", folder / "red/00000.png", exports.encoded("green", 5)]
        )
    assert [answer.label for answer in answers] == ["blue", "red", "green"]
    for answer in answers:
        assert list(answer.probabilities) == list(exports.CLASSES)
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert answer.score == pytest.approx(answer.probabilities[answer.label])


def test_rest_and_grpc_give_the_same(served):
    pictures = [exports.encoded(label, 9) for label in exports.CLASSES]
    with RestClient(served.rest_url, NAME) as rest, GrpcClient(served.grpc_target, NAME) as grpc:
        for one, other in zip(rest.predict(pictures), grpc.predict(pictures), strict=True):
            assert one.label == other.label
            # REST carries the shortest decimals of each float32.
            assert np.float32(list(one.probabilities.values())).tolist() == pytest.approx(
                list(other.probabilities.values()), abs=0
            )


def test_images_are_converted_as_at_ingest(make_client, tmp_path):
    picture = made.picture("red", 2)
    picture.save(tmp_path / "picture.webp", lossless=True)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", exif=rotated, quality=95)
    log = RequestLog(tmp_path / "log.jsonl")
    with make_client(log=log) as client:
        webp, turned = client.predict([tmp_path / "picture.webp", buffer.getvalue()])
    assert (webp.label, turned.label) == ("red", "red")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["converted"] for line in lines] == ["webp", "orientation"]


def test_as_small_as_an_image_can_be(make_client, tmp_path):
    made.picture("red", 1, size=(3, 1)).save(tmp_path / "small.png")
    with make_client() as client:
        [answer] = client.predict([tmp_path / "small.png"])
    assert answer.label == "red"


def test_status(make_client):
    with make_client() as client:
        [version] = client.status()
    assert (version.version, version.state, version.error) == (3, "AVAILABLE", "")


def test_the_log(make_client, tmp_path):
    log = RequestLog(tmp_path / "log.jsonl", keep_images=True)
    sent = exports.encoded("white", 4)
    with make_client(log=log, version=3) as client:
        client.predict([sent])
        client.predict([sent])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    facts = images.facts(images.prepare(sent).pixels)
    assert lines[0]["facts"]["brightness"] == facts.brightness
    assert (lines[0]["label"], lines[0]["version"], lines[0]["model"]) == ("white", 3, NAME)
    assert lines[0]["bytes"] == len(sent)
    assert lines[0]["image"]


def test_batches_are_bounded_in_bytes_and_what_is_held_too(make_client, monkeypatch, tmp_path):
    pictures = [exports.encoded("red", 1), *[exports.encoded("blue", n) for n in range(4)]]
    monkeypatch.setattr(client, "_BATCH_BYTES", 2 * max(map(len, pictures)))
    monkeypatch.setattr(client, "_HELD_BYTES", 3 * 32 * 32 * 3)
    log = RequestLog(tmp_path / "log.jsonl")
    with make_client(log=log) as asking:
        answers = asking.predict(pictures)
        (tmp_path / "page.jpg").write_text("<html>")
        with pytest.raises(RequestRefused, match="Nothing was sent"):
            asking.predict([*pictures, tmp_path / "page.jpg"])
    assert [answer.label for answer in answers] == ["red"] + ["blue"] * 4
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 5 and len({line["milliseconds"] for line in lines}) == 3


def test_how_large_an_image_may_be(make_client):
    picture = pictures.encoded(made.picture("red", 1, size=(60, 60)), "PNG")
    with make_client(max_pixels=3600) as asking:
        assert asking.predict([picture])[0].label == "red"
    with (
        make_client(max_pixels=3599) as asking,
        pytest.raises(RequestRefused, match="at most 3599 are decoded"),
    ):
        asking.predict([picture])


def test_a_share_of_the_log(tmp_path, served):
    with RestClient(served.rest_url, NAME, log=RequestLog(tmp_path / "log", share=0.0)) as client:
        client.predict([exports.encoded("red", 1)])
    assert not (tmp_path / "log").exists()
    with pytest.raises(UsageError, match=r"1\.5; expected 0 to 1"):
        RequestLog(tmp_path / "log", share=1.5)


@pytest.mark.parametrize("path", ["missing/log", "/dev/full"])
def test_a_log_that_cannot_be_written(tmp_path, served, path):
    log = RequestLog(tmp_path / path)
    with (
        RestClient(served.rest_url, NAME, log=log) as client,
        pytest.raises(SafelightError, match="can't be written"),
    ):
        client.predict([exports.encoded("red", 1)])


@pytest.mark.parametrize(
    ("options", "said"),
    [({"model": "other"}, "other"), ({"version": 9}, r"Specific\(colours, 9\)")],
)
def test_what_is_not_served(make_client, options, said):
    with make_client(**options) as client, pytest.raises(RequestRefused, match=said):
        client.predict([exports.encoded("red", 1)])


def test_a_file_that_is_no_image(make_client, tmp_path):
    (tmp_path / "page.jpg").write_text("<html>")
    with make_client() as client:
        with pytest.raises(RequestRefused, match=r"page\.jpg.*not_an_image.*Nothing was sent"):
            client.predict([tmp_path / "page.jpg"])
        with pytest.raises(RequestRefused, match="can't be read"):
            client.predict([tmp_path / "missing.jpg"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((serve.LOOPBACK, 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("kind", ["rest", "grpc"])
def test_nobody_there_by_the_deadline(kind):
    port = free_port()
    options = {"deadline_seconds": 1.0}
    client = (
        RestClient(f"http://127.0.0.1:{port}", NAME, **options)
        if kind == "rest"
        else GrpcClient(f"127.0.0.1:{port}", NAME, **options)
    )
    began = time.monotonic()
    with client, pytest.raises(NotServed, match=r"within 1 s \(\d+ tr"):
        client.status()
    assert time.monotonic() - began < 20  # without a deadline of its own, it would be 30


@pytest.fixture()
def moody():
    """A server that is overloaded twice, then answers each status question."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked += 1
            ok = self.server.asked > 2
            body = json.dumps(
                {"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}
                if ok
                else {"error": "overloaded"}
            ).encode()
            self.send_response(200 if ok else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            """Answers the first request, and no other."""
            self.rfile.read(int(self.headers["Content-Length"]))
            self.server.asked += 1
            row = {"label": "a", "score": 1.0, "classes": ["a"], "probabilities": [1.0]}
            body = json.dumps({"predictions": [row]}).encode()
            self.send_response(200 if self.server.asked == 1 else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked = 0
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join(5)
    server.server_close()


def test_an_overloaded_server_is_asked_again(moody):
    with RestClient(f"http://127.0.0.1:{moody.server_port}", NAME, deadline_seconds=20) as client:
        [version] = client.status()
    assert version.state == "AVAILABLE"
    assert moody.asked == 3


def test_how_far_the_answers_came_by_the_deadline(moody):
    url = f"http://127.0.0.1:{moody.server_port}"
    with (
        RestClient(url, NAME, deadline_seconds=4, batch_size=1) as client,
        pytest.raises(NotServed, match="more than 1 of 3 images within 4 s"),
    ):
        client.predict([exports.encoded("red", 1)] * 3)


def test_wrong_addresses_and_options(served):
    with pytest.raises(UsageError, match="expected http"):
        RestClient("127.0.0.1:8501", NAME)
    with pytest.raises(UsageError, match="deadline_seconds is 0"):
        RestClient("http://127.0.0.1", NAME, deadline_seconds=0)
    with pytest.raises(UsageError, match="Name one server"):
        request.command([])


def test_the_command(served, tmp_path, capsys):
    folder = made.class_folders(tmp_path / "images", {"blue": 1, "red": 2})
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "labels.txt").write_text("blue red")
    log = tmp_path / "requests.jsonl"
    assert request.command([folder], url=served.rest_url, model=NAME, log=log, as_json=True) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["label"] for line in told] == ["blue", "red", "red"]
    assert len(log.read_text().splitlines()) == 3
    request.command([folder / "blue"], grpc_target=served.grpc_target, model=NAME)
    assert "blue" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no image to ask about"):
        (tmp_path / "empty").mkdir()
        request.command([tmp_path / "empty"], url=served.rest_url)


def test_a_name_that_is_no_utf8_is_told_as_predict_does(served, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(b"\xff.png"))
    path.write_bytes(exports.encoded("red", 1))
    request.command([path], url=served.rest_url, model=NAME)
    assert "\\xff.png" in capsys.readouterr().out
    request.command([path], url=served.rest_url, model=NAME, as_json=True)
    assert json.loads(capsys.readouterr().out)["file"] == "\\xff.png"
