"""The development server: TF Serving's paths and answers over real exported models."""

import base64
import csv
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
import requests
from google.protobuf import text_format
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

from pipeline.commands import serve
from pipeline.errors import SafelightError, UsageError
from pipeline.workdir import open_workdir
from tests import exports, signals

NAME = "colours"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("serving") / NAME
    exports.save_model(root / "1")
    return root


@pytest.fixture(scope="module")
def served(base):
    with serve.development(NAME, base) as server:
        yield server


def b64(label: str, number: int = 1) -> dict[str, str]:
    return {"b64": base64.b64encode(exports.encoded(label, number)).decode()}


def post(served, body, path: str = "") -> requests.Response:
    url = f"{served.rest_url}/v1/models/{NAME}{path}:predict"
    return requests.post(url, data=json.dumps(body), timeout=20)


@pytest.mark.parametrize("instance", [b64("red"), {"image": b64("red")}])
def test_rows(served, instance):
    response = post(served, {"instances": [instance, instance]})
    assert response.status_code == 200
    first, second = response.json()["predictions"]
    assert first == second
    assert first["label"] == "red"
    assert first["classes"] == ["blue", "green", "red", "white"]
    assert first["score"] == max(first["probabilities"]) > 0.9


@pytest.mark.parametrize(
    "inputs", [[b64("red"), b64("blue")], {"image": [b64("red"), b64("blue")]}]
)
def test_columns(served, inputs):
    response = post(served, {"inputs": inputs, "signature_name": "serving_default"}, "/versions/1")
    assert response.json()["outputs"]["label"] == ["red", "blue"]


def test_status_and_metadata(served):
    url = f"{served.rest_url}/v1/models/{NAME}"
    [version] = requests.get(url, timeout=5).json()["model_version_status"]
    assert version == {
        "version": "1",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    metadata = requests.get(f"{url}/versions/1/metadata", timeout=5).json()
    assert metadata["model_spec"] == {"name": NAME, "signature_name": "", "version": "1"}
    default = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert default["inputs"]["image"]["dtype"] == "DT_STRING"
    assert default["inputs"]["image"]["tensor_shape"]["dim"] == [{"size": "-1", "name": ""}]
    assert default["method_name"] == "tensorflow/serving/predict"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([1], "expected an object"),
        ({}, "'instances' and 'inputs'"),
        ({"instances": [b64("red")], "inputs": [b64("red")]}, "'instances' and 'inputs'"),
        ({"instances": []}, "empty"),
        ({"instances": [{"b64": "*"}]}, "base64"),
        ({"instances": [{"picture": b64("red")}]}, "image"),
        ({"inputs": {"picture": [b64("red")]}}, "picture"),
        ({"instances": [7]}, "expected a string"),
        ({"instances": ["no image"]}, "Unknown image file format"),
        ({"instances": [b64("red")], "signature_name": "other"}, '"other" not found'),
    ],
)
def test_refuses_a_bad_request(served, body, said):
    response = post(served, body)
    assert response.status_code == 400
    assert said in response.json()["error"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/models/other", "other"),
        (f"/v1/models/{NAME}/versions/7", "version 7"),
        (f"/v1/models/{NAME}/versions/7/metadata", "Specific(colours, 7)"),
        (f"/v1/models/{NAME}/labels/stable", "Malformed request: GET"),
        ("/", "Malformed request: GET /"),
    ],
)
def test_unknown_paths(served, path, said):
    response = requests.get(served.rest_url + path, timeout=5)
    assert response.status_code == 404
    assert said in response.json()["error"]


@pytest.mark.parametrize("body", ["{", "[" * 100_000], ids=["cut", "deep"])
def test_no_json(served, body):
    response = requests.post(f"{served.rest_url}/v1/models/{NAME}:predict", data=body, timeout=5)
    assert (response.status_code, "JSON Parse error" in response.text) == (400, True)


@pytest.mark.parametrize("depth", [254, 255, 700, 990])
@pytest.mark.parametrize("before", ["", '"", '])
def test_values_nested_too_deeply(served, before, depth):
    # TensorFlow ends the process where a tensor has more than 254 dimensions.
    body = f'{{"instances": [{before}{"[" * (depth - 1)}""{"]" * (depth - 1)}]}}'
    response = requests.post(f"{served.rest_url}/v1/models/{NAME}:predict", data=body, timeout=5)
    assert response.status_code == 400


@pytest.mark.parametrize(
    "tensor",
    [
        tensor_pb2.TensorProto(),
        tensor_pb2.TensorProto(dtype=types_pb2.DT_INT32, tensor_content=b"123"),
    ],
    ids=["no dtype", "cut"],
)
def test_a_tensor_that_is_none(served, tensor):
    asked = predict_pb2.PredictRequest(inputs={"image": tensor})
    asked.model_spec.name = NAME
    with grpc.insecure_channel(served.grpc_target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Predict(asked, timeout=5)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "input 'image'" in refused.value.details()


def test_a_versions_label_is_not_taken_for_the_newest(served):
    asked = predict_pb2.PredictRequest()
    asked.model_spec.name, asked.model_spec.version_label = NAME, "stable"
    asked.inputs["image"].CopyFrom(
        tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING,
            tensor_shape={"dim": [{"size": 1}]},
            string_val=[exports.encoded("red", 1)],
        )
    )
    with grpc.insecure_channel(served.grpc_target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="version label: stable") as refused:
            stub.Predict(asked, timeout=5)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_new_versions_are_loaded_and_old_ones_dropped(tmp_path):
    base = tmp_path / NAME
    exports.save_model(base / "1")
    with serve.development(NAME, base) as served:
        # The second names its first two classes the other way round.
        swapped = dict(zip(exports.CLASSES, ("green", "blue", "red", "white"), strict=True))
        incoming = exports.save_model(tmp_path / "incoming", outputs=list(swapped.values()))
        shutil.copytree(incoming, base / ".2.incoming")
        (base / ".2.incoming").rename(base / "2")
        until_versions(served, ["2", "1"])
        assert (
            post(served, {"instances": [b64("blue")]}).json()["predictions"][0]["label"] == "green"
        )
        old = post(served, {"instances": [b64("blue")]}, "/versions/1").json()
        assert old["predictions"][0]["label"] == "blue"
        shutil.copytree(incoming, base / ".3.incoming")
        (base / ".3.incoming").rename(base / "3")
        until_versions(served, ["3", "2"])
        (base / "4").mkdir()
        (base / "4" / "saved_model.pb").write_bytes(b"damaged")
        until_versions(served, ["4", "3"])
        states = requests.get(f"{served.rest_url}/v1/models/{NAME}", timeout=5).json()
        assert [one["state"] for one in states["model_version_status"]] == ["END", "AVAILABLE"]
        assert post(served, {"instances": [b64("red")]}).json()["predictions"][0]["label"] == "red"


def test_a_folder_that_can_not_be_read_for_a_while_ends_nothing(tmp_path, monkeypatch):
    base, listed, failed = tmp_path / NAME, Path.iterdir, threading.Event()
    exports.save_model(base / "1")

    def broken(path):
        if path == base and not failed.is_set():
            failed.set()
            raise PermissionError(errno.EACCES, "Permission denied", str(base))
        return listed(path)

    with serve.development(NAME, base) as served:
        monkeypatch.setattr(Path, "iterdir", broken)
        assert failed.wait(30)
        shutil.copytree(base / "1", tmp_path / "2")
        (tmp_path / "2").rename(base / "2")
        until_versions(served, ["2", "1"])


def until_versions(served, expected):
    url = f"{served.rest_url}/v1/models/{NAME}"
    end = time.monotonic() + 30
    found, states = None, {"LOADING"}
    while (found != expected or "LOADING" in states) and time.monotonic() < end:
        time.sleep(0.2)
        told = requests.get(url, timeout=5).json()["model_version_status"]
        found, states = [one["version"] for one in told], {one["state"] for one in told}
    assert found == expected


def test_nothing_that_can_be_loaded(tmp_path):
    (tmp_path / NAME / "1").mkdir(parents=True)
    (tmp_path / NAME / "1" / "saved_model.pb").write_bytes(b"damaged")
    with (
        pytest.raises(SafelightError, match="could be loaded"),
        serve.development(NAME, tmp_path / NAME),
    ):
        pass


def test_a_taken_port(base):
    with socket.socket() as other:
        other.bind((serve.LOOPBACK, 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(SafelightError, match=f"{port}.*--port"),
            serve.development(NAME, base, port),
        ):
            pass
        with (
            pytest.raises(SafelightError, match=f"{port}.*--grpc-port"),
            serve.development(NAME, base, grpc_port=port),
        ):
            pass


def test_choosing_the_model(tmp_path):
    workdir = open_workdir(tmp_path / "work")
    with pytest.raises(UsageError, match="no pushed model"):
        serve.choose_model(workdir, None)
    workdir.serving("a").mkdir(parents=True)
    with pytest.raises(UsageError, match="no version"):
        serve.choose_model(workdir, None)
    (workdir.serving("a") / "1").mkdir()
    assert serve.choose_model(workdir, None) == "a"
    (workdir.serving("b") / "1").mkdir(parents=True)
    assert serve.choose_model(workdir, "b") == "b"
    with pytest.raises(UsageError, match="2 models; name one with --model-name: a, b"):
        serve.choose_model(workdir, None)
    with pytest.raises(UsageError, match="no model 'c'"):
        serve.choose_model(workdir, "c")


def test_an_engine_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert serve.choose_engine("auto") == "development"
    with pytest.raises(SafelightError, match="tensorflow_model_server on the PATH"):
        serve.choose_engine("binary")
    with pytest.raises(SafelightError, match="Docker engine"):
        serve.choose_engine("docker")


def test_tf_servings_command_lines(tmp_path):
    line = serve.command_line("binary", "m", tmp_path / "serving/m", tmp_path, 1, 2)
    assert line[:3] == ["tensorflow_model_server", "--port=2", "--rest_api_port=1"]
    assert f'base_path: "{tmp_path}/serving/m"' in (tmp_path / "models.config").read_text()
    line = serve.command_line("docker", "m", tmp_path / "serving/m", tmp_path, 1, 2)
    assert "--publish=127.0.0.1:1:8501" in line
    assert "--init" in line
    # The folder of the configuration is its user's alone; the container's root has to read it.
    assert "--cap-add=DAC_OVERRIDE" in line
    assert 'base_path: "/models/m"' in (tmp_path / "models.config").read_text()


@pytest.mark.parametrize("folder", ["plain", 'run "12:30", röd'])
def test_tf_serving_finds_a_workdir_of_any_name(tmp_path, folder):
    base = tmp_path / folder / "serving" / "m"
    serve.command_line("binary", "m", base, tmp_path, 1, 2)
    read = text_format.Parse(
        (tmp_path / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    assert read.model_config_list.config[0].base_path == str(base)
    line = serve.command_line("docker", "m", base, tmp_path, 1, 2)
    mounts = [one.removeprefix("--mount=") for one in line if one.startswith("--mount=")]
    # Docker reads each as a line of CSV.
    assert list(csv.reader(mounts)) == [
        ["type=bind", f"source={base}", "target=/models/m", "readonly"],
        ["type=bind", f"source={tmp_path}", "target=/config", "readonly"],
    ]


def test_the_command_serves_until_it_is_stopped(tmp_path, base):
    workdir = open_workdir(tmp_path / "work")
    shutil.copytree(base, workdir.serving(NAME))
    line = (
        "import sys; from pathlib import Path; from pipeline.commands import serve;"
        "sys.exit(serve.command(Path(sys.argv[1]), port=0, grpc_port=0, engine='development',"
        " as_json=True))"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", line, str(workdir.root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    try:
        told = json.loads(server.stdout.readline())
        response = requests.post(
            f"{told['rest_url']}/v1/models/{NAME}:predict",
            json={"instances": [b64("white")]},
            timeout=20,
        )
        assert response.json()["predictions"][0]["label"] == "white"
        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=30)
    finally:
        server.kill()
        server.wait()
    assert server.returncode == 0
    assert "for development" in said
    assert "curl" in said


SERVE = (
    "import sys; from pathlib import Path; from pipeline.commands import serve;"
    "serve.processes.STOP_SECONDS = 0.5;"
    "sys.exit(serve.command(Path(sys.argv[1]), port=0, grpc_port=0, engine='binary', as_json=True))"
)


@pytest.fixture(params=["heeds", "ignores"])
def tf_serving(request, tmp_path, monkeypatch):
    """A program of TF Serving's name that heeds SIGTERM or doesn't; gives what it leaves there."""
    seen, fake = tmp_path / "seen", tmp_path / "bin" / "tensorflow_model_server"
    trap = "trap '' TERM" if request.param == "ignores" else ""
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\n{trap}\necho "$$ $*" > {seen}.new && mv {seen}.new {seen} && exec sleep 60\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    yield seen
    if seen.exists():
        with suppress(ProcessLookupError):
            os.kill(int(seen.read_text().split()[0]), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_tf_serving_ends_with_the_command(tmp_path, tf_serving, number):
    workdir = open_workdir(tmp_path / "work")
    (workdir.serving(NAME) / "1").mkdir(parents=True)
    line = [sys.executable, "-c", SERVE, str(workdir.root)]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, text=True, preexec_fn=signals.heeded
    ) as command:
        told = json.loads(command.stdout.readline())
        end = time.monotonic() + 30
        while not tf_serving.exists() and time.monotonic() < end:
            time.sleep(0.05)
        command.send_signal(number)
        command.wait(30)
    assert command.returncode == 0
    pid, *arguments = tf_serving.read_text().split()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    options = dict(one.removeprefix("--").split("=", 1) for one in arguments)
    assert not Path(options["model_config_file"]).parent.exists()
    # The ports that were left to choose are those that were told.
    assert told["rest_url"] == f"http://127.0.0.1:{options['rest_api_port']}"
    assert told["grpc_target"] == f"127.0.0.1:{options['port']}"
    assert "0" not in (options["rest_api_port"], options["port"])
