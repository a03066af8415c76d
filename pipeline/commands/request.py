"""`safelight request`: asks a server (TF Serving's, or `safelight serve`) about image files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from pipeline import console, images
from pipeline.client import GrpcClient, Prediction, RestClient
from pipeline.client.request_log import RequestLog
from pipeline.errors import UsageError
from pipeline.ingest import walk
from pipeline.ingest.entries import Ignored


def command(
    files: Sequence[Path],
    url: str | None = None,
    grpc_target: str | None = None,
    model: str = "model",
    version: int | None = None,
    deadline_seconds: float = 30.0,
    log: Path | None = None,
    log_images: bool = False,
    top: int = 3,
    as_json: bool = False,
) -> int:
    """Prints class and probability for each image file; returns the exit code.

    Args:
      files: image files, or folders of them.
      url: of the REST interface, as in http://127.0.0.1:8501.
      grpc_target: or host:port of the gRPC interface.
      model: the name that it is served by.
      version: a certain one; by default the newest.
      deadline_seconds: for all images together, with all tries.
      log: a JSONL file to append requests and answers to.
      log_images: whether the images are logged too.
      top: classes to show for each image.
      as_json: print a JSON object a line instead.

    Raises:
      UsageError: not exactly one address, or no file.
      RequestRefused, NotServed: as the clients do.
    """
    if (url is None) == (grpc_target is None):
        raise UsageError(
            "Name one server: --url http://HOST:8501 for REST, or --grpc HOST:8500 for gRPC."
        )
    paths = _expand(files)
    request_log = None if log is None else RequestLog(log, keep_images=log_images)
    options = {
        "version": version,
        "deadline_seconds": deadline_seconds,
        "log": request_log,
        # They are the person's own files: how large they may be is for the model to say.
        "max_pixels": images.MOST_PIXELS,
    }
    client: RestClient | GrpcClient
    if url:
        client = RestClient(url, model, **options)
    else:
        with console.native_silence():  # imports TensorFlow
            client = GrpcClient(str(grpc_target), model, **options)
    with client:
        answers = client.predict(paths)
    if as_json:
        for path, answer in zip(paths, answers, strict=True):
            print(json.dumps({"file": _shown(path), **answer.as_json()}))
    else:
        console.stdout.print(_table(paths, answers, top))
    return 0


def _expand(files: Sequence[Path]) -> list[Path]:
    paths: list[Path] = []
    for file in files:
        if file.is_dir():
            found, _ = walk.files(file, follow_links=True, ignored=Ignored())
            paths += [file / os.fsdecode(one.path) for one in found]
        else:
            paths.append(file)
    if not paths:
        raise UsageError("There is no image to ask about. Name image files, or a folder of them.")
    return paths


def _table(paths: Sequence[Path], answers: Sequence[Prediction], top: int) -> Table:
    table = Table("file", "class", "probability", box=None, pad_edge=False, header_style="bold")
    for path, answer in zip(paths, answers, strict=True):
        best = sorted(answer.probabilities.items(), key=lambda pair: -pair[1])[:top]
        lines = [(name, f"{probability:.4f}") for name, probability in best]
        if answer.label not in answer.probabilities:  # the model isn't sure enough to say
            lines.insert(0, (answer.label, ""))
        for row, (name, probability) in enumerate(lines):
            table.add_row("" if row else escape(_shown(path)), escape(name), probability)
        for head, said in answer.heads.items():
            if isinstance(said, float):
                table.add_row("", f"{escape(head)} {said:.4g}", "")
            else:
                table.add_row("", escape(f"{head} {said.label}"), f"{said.score:.4f}")
    return table


def _shown(path: Path) -> str:
    """Returns a path as `predict` tells it: bytes that are no UTF-8 stay visible as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
