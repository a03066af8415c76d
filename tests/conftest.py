"""What every test shares: quiet TensorFlow, Keras 3, no GPU, and events that go nowhere else."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_USE_LEGACY_KERAS"] = "0"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import pytest

from pipeline import events
from tests import browser


@pytest.fixture(autouse=True)
def environment():
    """Undoes what a test changes in this process's environment: an entry point may, in its own."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def event_log(tmp_path):
    """Sends the events of a test to a file of its own, and gives its path."""
    path = tmp_path / "events.jsonl"
    events.configure(path)
    yield path
    events.configure(None)


def pytest_collection_modifyitems(config, items):
    """Leaves the tests marked `browser` out where there is no Chromium; the summary says so."""
    if browser.binary() is not None:
        return
    without = [item for item in items if item.get_closest_marker("browser") is not None]
    if without:
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]


def pytest_terminal_summary(terminalreporter):
    """Says which tests could not be tried on this machine."""
    if browser.binary() is None:
        terminalreporter.write_line(
            "The browser tests were left out: Chromium is missing (apt-get install chromium).",
            yellow=True,
        )
