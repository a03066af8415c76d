"""Fingerprints: of values whatever their order, of sources whatever imports them."""

from pathlib import Path

import pytest

from pipeline import fingerprint


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package named `pipeline` of five modules, read in place of the real one."""
    sources = {
        "a.py": "from pipeline import b\nfrom pipeline.errors import Wrong\n",
        "b.py": "import pipeline.deep.c\n",
        "errors.py": "class Wrong(Exception): pass\n",
        "lonely.py": "x = 1\n",
        "deep/__init__.py": "",
        "deep/c.py": "y = 2\n",
    }
    for name, text in sources.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    fingerprint.of_sources.cache_clear()
    yield tmp_path
    fingerprint.of_sources.cache_clear()


def changed_by(package: Path, name: str) -> bool:
    before = fingerprint.of_sources("pipeline.a")
    (package / name).write_text((package / name).read_text() + "\nz = 3\n")
    fingerprint.of_sources.cache_clear()
    return fingerprint.of_sources("pipeline.a") != before


def test_values_with_other_order_are_equal():
    assert fingerprint.of_value({"a": 1, "b": [2]}) == fingerprint.of_value({"b": [2], "a": 1})
    assert fingerprint.of_value({"a": 1}) != fingerprint.of_value({"a": 2})


@pytest.mark.parametrize("name", ["a.py", "b.py", "deep/c.py"])
def test_a_change_of_what_is_imported_counts(package, name):
    assert changed_by(package, name)


@pytest.mark.parametrize("name", ["lonely.py", "errors.py"])
def test_a_change_elsewhere_does_not(package, name):
    assert not changed_by(package, name)


def test_package_data_counts(package):
    (package / "image.pbtxt").write_text("feature {}")
    before = fingerprint.of_sources("schemas/image.pbtxt")
    fingerprint.of_sources.cache_clear()
    (package / "image.pbtxt").write_text("feature { }")
    assert fingerprint.of_sources("schemas/image.pbtxt") != before
