"""Events: whole lines, from several processes at once, read while they are written."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from pipeline import events

pytestmark = pytest.mark.current

WRITER = """
import sys
from pathlib import Path
from pipeline import events
events.configure(Path(sys.argv[1]))
for number in range(500):
    events.progress(sys.argv[2], number, 500, "images", note="x" * 300)
"""


def test_each_kind_is_read_back_with_its_fields(event_log):
    events.emit("stage", name="Trainer", state="complete", seconds=1.5, peak_mb=200)
    events.note("chosen: mnist-cnn")
    events.warn("one class is small: ÄÖ")
    events.progress("ingest", 3, None, "images", note="almost")
    found = [event for _, event in events.read(event_log)]
    assert [event.pop("kind") for event in found] == ["stage", "note", "warning", "progress"]
    assert all(event.pop("t") > 1.7e9 for event in found)
    assert found == [
        {"name": "Trainer", "state": "complete", "seconds": 1.5, "peak_mb": 200},
        {"text": "chosen: mnist-cnn"},
        {"text": "one class is small: ÄÖ"},
        {"stage": "ingest", "done": 3, "total": None, "unit": "images", "note": "almost"},
    ]


def test_two_processes_never_tear_each_others_lines(event_log):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(event_log), name]) for name in "ab"
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    found = [event for _, event in events.read(event_log)]
    for name in "ab":
        assert [event["done"] for event in found if event["stage"] == name] == list(range(500))


def test_reading_goes_on_behind_the_last_offset_and_leaves_half_a_line(event_log):
    events.note("one")
    [(offset, _)] = events.read(event_log)
    events.note("two")
    with open(event_log, "a") as file:
        file.write('{"kind": "note", "te')
    [(offset, event)] = events.read(event_log, offset)
    assert event["text"] == "two"
    assert list(events.read(event_log, offset)) == []
    with open(event_log, "a") as file:
        file.write('xt": "three"}\n')
    [(_, event)] = events.read(event_log, offset)
    assert event["text"] == "three"


def test_a_line_that_was_cut_short_and_gone_on_with_hides_no_other(event_log):
    with open(event_log, "a") as file:
        file.write('{"kind": "note", "te')
    events.note("lost with it")
    events.note("there")
    assert [event["text"] for _, event in events.read(event_log)] == ["there"]


def test_a_file_that_is_not_there_yet_holds_no_events(tmp_path):
    assert list(events.read(tmp_path / "none.jsonl")) == []


def test_without_a_sink_an_event_is_a_line_of_the_log(caplog):
    events.configure(None)
    assert events.sink() is None
    with caplog.at_level(logging.INFO, logger="safelight"):
        events.note("in a container")
    assert "in a container" in caplog.text
