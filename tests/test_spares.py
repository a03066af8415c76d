"""Processes started ahead: they run what they are told, die with their parent, and are optional."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pipeline import spares

CHILD = "tests.environment_child"


@pytest.fixture
def none_waiting():
    yield
    for spare in spares._waiting.values():
        spare.kill()
        spare.wait()
    spares._waiting.clear()


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, **more}


def test_a_spare_becomes_the_module_with_its_arguments(none_waiting, tmp_path):
    spares.ahead(CHILD, ["decimal"], environment(SEEN="yes"))
    [waiting] = spares._waiting.values()
    child = spares.popen(CHILD, [str(tmp_path / "seen")], environment(SEEN="yes"))
    assert child is waiting
    assert child.wait(30) == 0
    assert json.loads((tmp_path / "seen").read_text())["SEEN"] == "yes"


def test_what_this_process_imports_meanwhile_makes_no_other_child(
    none_waiting, tmp_path, monkeypatch
):
    given = environment(SEEN="yes")
    del given["PATH"]
    spares.ahead(CHILD, [], given)
    [waiting] = spares._waiting.values()
    monkeypatch.setenv("TF2_BEHAVIOR", "of the parent")
    child = spares.popen(
        CHILD, [str(tmp_path / "seen")], {**given, "TF2_BEHAVIOR": "of the parent"}
    )
    assert child is waiting
    assert child.wait(30) == 0


def test_imports_are_not_collected_and_what_comes_after_is():
    code = (
        "import gc\n"
        "from pipeline import spares\n"
        "try:\n"
        "    with spares.uncollected():\n"
        "        assert not gc.isenabled()\n"
        "        raise ImportError\n"
        "except ImportError:\n"
        "    assert gc.isenabled() and gc.get_freeze_count()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("dead", [False, True], ids=["another environment", "dead"])
def test_without_a_spare_that_fits_a_new_process_is_started(none_waiting, tmp_path, dead):
    spares.ahead(CHILD, [], environment(SEEN="no"))
    [waiting] = spares._waiting.values()
    if dead:
        waiting.kill()
        waiting.wait()
    child = spares.popen(CHILD, [str(tmp_path / "seen")], environment(SEEN="no" if dead else "yes"))
    assert child is not waiting
    assert child.wait(30) == 0
    assert json.loads((tmp_path / "seen").read_text())["SEEN"] == ("no" if dead else "yes")


def test_what_a_spare_prints_goes_to_the_log_that_it_is_given(none_waiting, tmp_path):
    spares.ahead("platform", [], environment())
    with open(tmp_path / "log", "wb") as log:
        assert spares.popen("platform", ["terse"], environment(), log).wait(30) == 0
    assert "Linux" in (tmp_path / "log").read_text()


def test_a_spare_that_is_never_needed_dies_with_its_parent():
    code = (
        "import os, time\n"
        "from pipeline import spares\n"
        "spares.ahead('platform', [], dict(os.environ))\n"
        "[spare] = spares._waiting.values()\n"
        "print(spare.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        spare = psutil.Process(int(parent.stdout.readline()))
        time.sleep(1)  # it asks the kernel first thing
        parent.send_signal(signal.SIGKILL)
        parent.wait(30)
    spare.wait(30)
    assert not spare.is_running()
