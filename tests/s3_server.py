"""A real S3 server on this machine (moto's), found as people's own is: by AWS_ENDPOINT_URL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

BUCKET = "pictures"
_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Store:
    """The server's one bucket, seen through boto3, which Safelight itself does not use."""

    def __init__(self, endpoint: str) -> None:
        import boto3

        self.endpoint = endpoint
        self.requests: list[str] = []
        self._client: Any = boto3.client("s3", endpoint_url=endpoint)
        self._client.create_bucket(Bucket=BUCKET)

    def put(self, key: str, data: bytes) -> None:
        """Stores an object."""
        self._client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def put_folder(self, folder: Path, key: str) -> None:
        """Stores every file below `folder`."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{key}/{path.relative_to(folder)}", path.read_bytes())

    def delete(self, key: str) -> None:
        """Removes an object."""
        self._client.delete_object(Bucket=BUCKET, Key=key)


@contextmanager
def serving() -> Iterator[Store]:
    """Starts the server, and points the libraries to it by the environment."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        endpoint = f"http://127.0.0.1:{port}"
        with mock.patch.dict(os.environ, {**_CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}):
            yield Store(endpoint)
    finally:
        server.stop()
