"""Where ML Metadata is kept: the connection that `metadata.url` names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from ml_metadata.proto import metadata_store_pb2

from pipeline.errors import ConfigError

_PORTS = {"mysql": 3306, "postgresql": 5432}


def connection_config(url: str, sqlite: Path) -> metadata_store_pb2.ConnectionConfig:
    """Returns ML Metadata's connection: SQLite at `sqlite` when `url` is empty.

    Raises:
      ConfigError: a URL that is neither mysql:// nor postgresql://, or lacks a part.
    """
    config = metadata_store_pb2.ConnectionConfig()
    if not url:
        config.sqlite.filename_uri = str(sqlite)
        config.sqlite.connection_mode = (
            metadata_store_pb2.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
        )
        return config
    parts = urlsplit(url)
    database = parts.path.lstrip("/")
    # As for libpq, `?host=/run/postgresql` names the folder of a Unix socket.
    host = parts.hostname or parse_qs(parts.query).get("host", [""])[0]
    if parts.scheme not in _PORTS or not host or not database:
        raise ConfigError(
            f"metadata.url = {_without_password(parts)!r} is not understood; expected "
            "mysql://user:password@host:port/database or postgresql://user:password@host:port/"
            "database, or nothing for SQLite in the workdir."
        )
    port = parts.port or _PORTS[parts.scheme]
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if parts.scheme == "mysql":
        config.mysql.host, config.mysql.port, config.mysql.database = host, port, database
        config.mysql.user, config.mysql.password = user, password
    else:
        config.postgresql.host, config.postgresql.port = host, str(port)
        config.postgresql.dbname = database
        config.postgresql.user, config.postgresql.password = user, password
    return config


def _without_password(parts: SplitResult) -> str:
    if parts.password is None:
        return parts.geturl()
    return parts.geturl().replace(f":{parts.password}@", ":***@")
