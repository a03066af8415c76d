"""What every test shares: quiet TensorFlow, Keras 3, no GPU, and events that go nowhere else."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_USE_LEGACY_KERAS"] = "0"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import pytest

from pipeline import events


@pytest.fixture(autouse=True)
def event_log(tmp_path):
    """Sends the events of a test to a file of its own, and gives its path."""
    path = tmp_path / "events.jsonl"
    events.configure(path)
    yield path
    events.configure(None)
