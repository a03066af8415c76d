"""`safelight serve`: a workdir's pushed models behind TF Serving's interfaces, on this machine.

TF Serving is started where its binary is on the PATH or Docker answers. Elsewhere a server of our
own takes its place, for development: the same REST paths and gRPC methods, on loopback alone.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from rich.markup import escape

from pipeline import console
from pipeline.commands import processes
from pipeline.errors import SafelightError, UsageError, did_you_mean
from pipeline.workdir import Workdir, open_workdir

Engine = Literal["auto", "binary", "docker", "development"]

LOOPBACK: Final = "127.0.0.1"
REST_PORT: Final = 8501
GRPC_PORT: Final = 8500
# deploy/serving pins the same one.
DOCKER_IMAGE: Final = "tensorflow/serving:2.19.1"
_BINARY: Final = "tensorflow_model_server"
_ASK_DOCKER_SECONDS: Final = 10
_LOOK_SECONDS: Final = 0.2


@dataclass(frozen=True)
class Served:
    """Where a server answers."""

    model: str
    rest_url: str
    grpc_target: str

    @property
    def curl(self) -> str:
        """Returns a line for the shell that asks for one image's class."""
        return (
            'printf \'{"instances": [{"b64": "%s"}]}\' "$(base64 -w0 IMAGE.png)" | '
            f"curl -s -d @- {self.rest_url}/v1/models/{self.model}:predict"
        )


def command(
    workdir: Path,
    model_name: str | None = None,
    port: int = REST_PORT,
    grpc_port: int = GRPC_PORT,
    engine: Engine = "auto",
    as_json: bool = False,
) -> int:
    """Serves a workdir's model until it is stopped with Ctrl-C or SIGTERM; returns the exit code.

    Args:
      workdir: where the model was pushed.
      model_name: which model; by default the only one there.
      port: for REST; 0 picks a free one.
      grpc_port: for gRPC; 0 as above.
      engine: by default TF Serving's binary, else Docker, else the development server.
      as_json: print `{"engine", "model", "rest_url", "grpc_target"}` once it is starting.

    Raises:
      UsageError: there is no workdir, no such model, or nothing was pushed yet.
      SafelightError: a port is taken, or the engine asked for isn't there.
    """
    place = open_workdir(workdir, create=False)
    name = choose_model(place, model_name)
    found = choose_engine(engine)
    if found == "development":
        return _serve_here(name, place.serving(name), port, grpc_port, as_json)
    with (
        processes.stop_asked() as stopped,
        tempfile.TemporaryDirectory(prefix="safelight-serve-") as scratch,
    ):
        port, grpc_port = _chosen(port, grpc_port)
        line = command_line(found, name, place.serving(name), Path(scratch), port, grpc_port)
        _announce(
            found, Served(name, f"http://{LOOPBACK}:{port}", f"{LOOPBACK}:{grpc_port}"), as_json
        )
        return _run(line, stopped)


def choose_model(workdir: Workdir, name: str | None) -> str:
    """Returns the model to serve: the one named, or the only one that was pushed.

    Raises:
      UsageError: nothing was pushed, or there are several and none is named.
    """
    known = [one.name for one in workdir.models]
    if name is None and len(known) == 1:
        name = known[0]
    if not known:
        raise UsageError(
            f"The workdir {workdir.root} has no pushed model to serve. "
            f"Push one first: safelight run DATA --workdir {workdir.root}"
        )
    if name is None:
        raise UsageError(
            f"The workdir {workdir.root} has {len(known)} models; name one with --model-name: "
            f"{', '.join(known)}."
        )
    if name not in known:
        raise UsageError(
            f"The workdir {workdir.root} has no model {name!r}.{did_you_mean(name, known)}"
        )
    folder = workdir.serving(name)
    if not any(path.name.isdecimal() for path in folder.iterdir()):
        raise UsageError(
            f"The model {name!r} has no version in {folder} yet: no run was blessed. "
            f"See why: safelight history --workdir {workdir.root}"
        )
    return name


def choose_engine(engine: Engine) -> Engine:
    """Returns the engine to start: the one asked for, or the best that is there.

    Raises:
      SafelightError: the one asked for isn't there.
    """
    if engine == "development":
        return engine
    if engine in ("auto", "binary") and shutil.which(_BINARY):
        return "binary"
    if engine in ("auto", "docker") and _docker_answers():
        return "docker"
    if engine == "auto":
        return "development"
    wanted = f"{_BINARY} on the PATH" if engine == "binary" else "a Docker engine that answers"
    raise SafelightError(
        f"There is no {wanted}. Install it, or serve for development: --engine development"
    )


def model_config(name: str, base_path: str, versions: int = 2) -> str:
    """Returns TF Serving's configuration of one model, whose latest `versions` are served."""
    return (
        "model_config_list {\n"
        "  config {\n"
        f"    name: {_quoted(name)}\n"
        f"    base_path: {_quoted(base_path)}\n"
        '    model_platform: "tensorflow"\n'
        f"    model_version_policy {{ latest {{ num_versions: {versions} }} }}\n"
        "  }\n"
        "}\n"
    )


def _quoted(text: str) -> str:
    """Returns a string of protobuf's text format, which escapes quotes as JSON does."""
    return json.dumps(text, ensure_ascii=False)


def command_line(
    engine: Engine, name: str, base: Path, scratch: Path, port: int, grpc_port: int
) -> list[str]:
    """Returns the command that starts TF Serving; its configuration is written into `scratch`."""
    inside = engine == "docker"
    base_path = f"/models/{name}" if inside else str(base)
    config = scratch / "models.config"
    config.write_text(model_config(name, base_path))
    arguments = [
        f"--model_config_file={'/config/models.config' if inside else config}",
        "--model_config_file_poll_wait_seconds=0",
        "--file_system_poll_wait_seconds=1",
    ]
    if not inside:
        return [_BINARY, f"--port={grpc_port}", f"--rest_api_port={port}", *arguments]
    return [
        # Without an init, TF Serving is process 1 there, which SIGTERM does not end.
        *("docker", "run", "--rm", "--init", "--read-only", "--cap-drop=ALL"),
        # Root without it can't read what is another user's alone, as the folder `scratch` is.
        "--cap-add=DAC_OVERRIDE",
        f"--publish={LOOPBACK}:{port}:{REST_PORT}",
        f"--publish={LOOPBACK}:{grpc_port}:{GRPC_PORT}",
        f"--mount={_bind(base, base_path)}",
        f"--mount={_bind(scratch, '/config')}",
        "--entrypoint=tensorflow_model_server",
        DOCKER_IMAGE,
        *(f"--port={GRPC_PORT}", f"--rest_api_port={REST_PORT}"),
        *arguments,
    ]


def _bind(source: Path, target: str) -> str:
    """Returns a mount as a line of CSV: --volume takes no source with a colon in it."""
    fields = [f"source={source}".replace('"', '""'), f"target={target}".replace('"', '""')]
    return ",".join(["type=bind", *(f'"{field}"' for field in fields), "readonly"])


@contextmanager
def development(name: str, base: Path, port: int = 0, grpc_port: int = 0) -> Iterator[Served]:
    """Serves the versions below `base` on loopback, in threads of this process, while it is open.

    Raises:
      SafelightError: a port is taken, or no version there can be loaded.
    """
    # TensorFlow is imported here, after every quick check.
    import uvicorn

    with console.native_silence():
        from pipeline.serving import models, rest, rpc

    versions = models.Versions(name, base)
    versions.refresh()
    _check_loaded(versions.states(), base)
    listener = _listen(port)
    try:
        grpc_server, grpc_port = rpc.start(versions, f"{LOOPBACK}:{grpc_port}")
    except OSError:
        listener.close()
        raise _taken(grpc_port, "--grpc-port") from None
    stop = threading.Event()
    settings = uvicorn.Config(
        rest.application(versions), log_level="warning", access_log=False, lifespan="off"
    )
    server = uvicorn.Server(settings)
    threads = [
        threading.Thread(target=server.run, args=([listener],), name="rest", daemon=True),
        threading.Thread(target=versions.watch, args=(stop,), name="versions", daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        rest_port = listener.getsockname()[1]
        yield Served(name, f"http://{LOOPBACK}:{rest_port}", f"{LOOPBACK}:{grpc_port}")
    finally:
        stop.set()
        server.should_exit = True
        grpc_server.stop(grace=1.0).wait()
        for thread in threads:
            thread.join(processes.STOP_SECONDS)
        listener.close()


def _serve_here(name: str, base: Path, port: int, grpc_port: int, as_json: bool) -> int:
    with console.stderr.status("loading the model"):
        server = development(name, base, port, grpc_port)
        served = server.__enter__()
    with processes.stop_asked() as stopped:
        try:
            _announce("development", served, as_json)
            stopped.wait()
        finally:
            server.__exit__(None, None, None)
    return 0


def _announce(engine: Engine, served: Served, as_json: bool) -> None:
    told: dict[str, Any] = {
        "engine": engine,
        "model": served.model,
        "rest_url": served.rest_url,
        "grpc_target": served.grpc_target,
    }
    if as_json:
        print(json.dumps(told), flush=True)
    names = {
        "binary": "TF Serving",
        "docker": "TF Serving in Docker",
        "development": "a server for development (neither TF Serving's binary nor Docker is here, "
        "or it was asked for); don't put it into production",
    }
    console.stderr.print(f"Serving [bold]{escape(served.model)}[/] with {names[engine]}.")
    console.stderr.print(
        f"  REST {served.rest_url}/v1/models/{served.model}   gRPC {served.grpc_target}"
    )
    console.stderr.print(f"  {escape(served.curl)}", soft_wrap=True)
    console.stderr.print("  Ctrl-C stops it.", style="dim")


def _check_loaded(states: list[Any], base: Path) -> None:
    if any(one.state == "AVAILABLE" for one in states):
        return
    raise SafelightError(
        f"No version below {base} could be loaded: {states[0].error[:500]}. "
        "Push the model again, or remove the damaged version."
    )


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
    except OSError:
        listener.close()
        raise _taken(port, "--port") from None
    listener.listen(128)
    return listener


def _taken(port: int, option: str) -> SafelightError:
    return SafelightError(
        f"Port {port} on {LOOPBACK} can't be had: something else listens there, or it takes more "
        f"rights. Name another one with {option}, or 0 for any that is free."
    )


def _docker_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    try:
        asked = subprocess.run(
            ["docker", "info", "--format", "{{.ServerVersion}}"],
            capture_output=True,
            text=True,
            timeout=_ASK_DOCKER_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0 and bool(asked.stdout.strip())


def _chosen(port: int, grpc_port: int) -> tuple[int, int]:
    """Returns the two ports, and in place of 0 one that is free: TF Serving chooses none itself."""
    with (
        socket.create_server((LOOPBACK, 0)) as rest,
        socket.create_server((LOOPBACK, 0)) as grpc,
    ):
        return port or rest.getsockname()[1], grpc_port or grpc.getsockname()[1]


def _run(line: list[str], stopped: processes.Stop) -> int:
    server = processes.start(line)
    try:
        while (code := server.poll()) is None and not stopped.wait(_LOOK_SECONDS):
            pass
    finally:
        processes.stop(server)
    if code != 0 and not stopped.is_set():
        raise SafelightError(
            f"{line[0]} ended with exit code {code}; its message above says why. "
            "Or serve for development: --engine development"
        )
    return 0
