"""A small Kubeflow Pipelines API on loopback, for the client's tests: it keeps what it is given.

The paths are those of backend/api/v2beta1 (kubeflow/pipelines 2.17); uploads are parsed by kfp's
own loader, so that a package that a server would refuse is refused here.
"""

from __future__ import annotations

import email.parser
import email.policy
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kfp import components

Json = dict[str, Any]


class State:
    """What the server holds; tests set `script` and `logs`, and read the rest."""

    def __init__(self) -> None:
        self.token: str | None = None
        self.pipelines: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self.packages: list[str] = []
        self.runs: dict[str, Json] = {}
        self.schedules: dict[str, Json] = {}
        # What a run is at each time that it is asked for; the last one stays.
        self.script: list[Json] = [{"state": "SUCCEEDED"}]
        self.logs: dict[str, str] = {}


class _Handler(BaseHTTPRequestHandler):
    state: State

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.state.token and self.headers.get("Authorization") != f"Bearer {self.state.token}":
            self._send(401, {"error_message": "no valid token"})
            return
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        log = re.fullmatch(r"/apis/v1alpha1/runs/[\w-]+/nodes/([\w-]+)/log", path)
        if log:
            found = self.state.logs.get(log[1])
            self._send(200 if found else 500, found or {"error_message": "no pod"})
            return
        try:
            answer = self._route(method, path.removeprefix("/apis/v2beta1"), query, body)
        except KeyError as error:
            self._send(404, {"error_message": f"{method} {path}: {error}"})
        except ValueError as error:
            self._send(400, {"error_message": str(error)})
        else:
            self._send(200, answer)

    def _route(self, method: str, path: str, query: Json, body: bytes) -> Json:
        state = self.state
        if path.endswith("/upload") or path.endswith("/upload_version"):
            return self._upload(path, query, body)
        given = json.loads(body) if body else {}
        if path == "/healthz":
            return {"multi_user": False}
        if path == "/experiments":
            one = {"experiment_id": "exp-1", "display_name": "safelight"}
            return {"experiments": [one], "total_size": 1} if method == "GET" else one
        if path == "/pipelines":
            found = [{"pipeline_id": i, "display_name": n} for n, i in state.pipelines.items()]
            return {"pipelines": found, "total_size": len(found)}
        if re.fullmatch(r"/pipelines/[\w-]+/versions", path):
            versions = [
                {"pipeline_version_id": i, "display_name": n} for n, i in state.versions.items()
            ]
            return {"pipeline_versions": versions, "total_size": len(versions)}
        if path == "/runs":
            run_id = f"run-{len(state.runs) + 1}"
            state.runs[run_id] = {**given, "run_id": run_id}
            return state.runs[run_id]
        if path.startswith("/runs/"):
            run = state.runs[path.split("/")[2].partition(":")[0]]
            now = state.script.pop(0) if len(state.script) > 1 else state.script[0]
            return {"run_id": run["run_id"], **now}
        return self._schedules(method, path, given)

    def _schedules(self, method: str, path: str, given: Json) -> Json:
        schedules = self.state.schedules
        if path == "/recurringruns" and method == "POST":
            made = {**given, "recurring_run_id": f"rr-{len(schedules) + 1}", "status": "ENABLED"}
            schedules[made["recurring_run_id"]] = made
            return made
        if path == "/recurringruns":
            return {"recurringRuns": list(schedules.values())}
        one, _, verb = path.removeprefix("/recurringruns/").partition(":")
        if method == "DELETE":
            del schedules[one]
            return {}
        schedules[one]["status"] = {"disable": "DISABLED", "enable": "ENABLED"}[verb]
        return {}

    def _upload(self, path: str, query: Json, body: bytes) -> Json:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.default).parsebytes(head + body)
        [part] = [one for one in message.iter_parts() if one.get_filename()]
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        text = content.decode()
        components.load_component_from_text(text)
        self.state.packages.append(text)
        [name] = query["name"]
        if path.endswith("/upload"):
            self.state.pipelines[name] = "pipe-1"
            return {"pipeline_id": "pipe-1", "display_name": name}
        self.state.versions[name] = f"version-{len(self.state.versions) + 1}"
        return {"pipeline_version_id": self.state.versions[name], "display_name": name}

    def _send(self, status: int, answer: Json | str) -> None:
        text = isinstance(answer, str)
        body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if text else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving() -> Iterator[tuple[str, State]]:
    """Serves while it is open; yields the URL and the state."""
    state = State()
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", state
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()
