"""Where ML Metadata is kept: the connection that `metadata.url` names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from ml_metadata.proto import metadata_store_pb2

from pipeline.errors import ConfigError, SafelightError

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
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # what it says may be part of a password
        raise _not_understood(
            "",
            ": its host or its port can't be told (in a password, / ? # [ ] and @ are written "
            "%2F %3F %23 %5B %5D %40)",
        ) from None
    database = parts.path.lstrip("/")
    # As for libpq, `?host=/run/postgresql` names the folder of a Unix socket.
    host = parts.hostname or parse_qs(parts.query).get("host", [""])[0]
    if parts.scheme not in _PORTS or not host or not database:
        raise _not_understood(f" = {_without_password(parts)!r}")
    port = port or _PORTS[parts.scheme]
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if parts.scheme == "mysql":
        config.mysql.host, config.mysql.port, config.mysql.database = host, port, database
        config.mysql.user, config.mysql.password = user, password
    else:
        config.postgresql.host, config.postgresql.port = host, str(port)
        config.postgresql.dbname = database
        config.postgresql.user, config.postgresql.password = user, password
    return config


def check(url: str, sqlite: Path) -> None:
    """Opens ML Metadata once, to say what is wrong with it before anything takes long.

    Raises:
      ConfigError: as `connection_config`.
      SafelightError: its server doesn't answer, or its file is damaged.
    """
    from ml_metadata import errors, metadata_store

    config = connection_config(url, sqlite)
    try:
        metadata_store.MetadataStore(config)
    except (errors.StatusError, RuntimeError) as error:
        # MLMD tells the whole statement that failed behind what failed.
        told = str(error).strip().removeprefix("Error when executing query: ")
        found = told.partition(" query:")[0].strip().rstrip(".")
        if "Concurrent writes" in found:  # after 40 s: a database browser, say
            mend = "Another program holds it: end that one"
        elif url:
            mend = "See that its server is up, and that the user may create tables in the database"
        else:
            mend = (
                "Restore the file, or move it away: a new one is made, and all stages run once more"
            )
        where = f"metadata.url = {_without_password(urlsplit(url))!r}" if url else str(sqlite)
        raise SafelightError(
            f"ML Metadata can't be opened ({where}): {found}. {mend}; then run the same command "
            "again."
        ) from error


def _not_understood(value: str, why: str = "") -> ConfigError:
    return ConfigError(
        f"metadata.url{value} is not understood{why}; expected "
        "mysql://user:password@host:port/database or postgresql://user:password@host:port/"
        "database, or nothing for SQLite in the workdir."
    )


def _without_password(parts: SplitResult) -> str:
    if parts.password is None:
        return parts.geturl()
    return parts.geturl().replace(f":{parts.password}@", ":***@")
