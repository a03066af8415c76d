"""The workdir: whose it is, where it was made, and who holds it right now."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import Busy, SafelightError, UsageError
from pipeline.workdir import open_workdir

pytestmark = pytest.mark.current

# Takes the lock, says so, and holds it until its standard input ends.
HOLDER = """
import sys
from pathlib import Path
from pipeline.workdir import open_workdir
with open_workdir(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""
# The same, but a child that inherits the lock outlives it; the child's process id is printed.
PARENT = """
import os, subprocess, sys
from pathlib import Path
from pipeline.workdir import open_workdir
with open_workdir(Path(sys.argv[1])).lock() as descriptor:
    child = subprocess.Popen(["sleep", "60"], pass_fds=[descriptor], stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    sys.stdin.read()
"""
WAITER = """
import sys
from pathlib import Path
from pipeline.workdir import open_workdir
print("waiting", flush=True)
with open_workdir(Path(sys.argv[1])).lock(wait=True):
    print("held", flush=True)
"""


def start(code: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def release(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_it_is_made_once_and_opened_again(tmp_path):
    made = open_workdir(tmp_path / "a" / "work")
    assert json.loads(made.marker.read_text()) == {"format": 1, "path": str(made.root)}
    before = made.marker.stat().st_mtime_ns
    assert open_workdir(made.root) == made
    assert made.marker.stat().st_mtime_ns == before


def test_a_relative_path_and_an_absolute_one_are_the_same_workdir(tmp_path, monkeypatch):
    made = open_workdir(tmp_path / "work")
    monkeypatch.chdir(tmp_path)
    assert open_workdir(Path("work")).root == made.root


def test_every_path_lies_below_the_root(tmp_path):
    work = open_workdir(tmp_path / "work")
    paths = [work.artifacts, work.metadata, work.checkpoints, work.runs, work.serving("digits")]
    assert all(work.root in path.parents for path in paths)
    assert work.serving("digits") == work.root / "serving" / "digits"


def test_a_file_is_no_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; expected a directory"):
        open_workdir(tmp_path / "file")


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"safelight\.json is missing"):
        open_workdir(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_empty_folder_becomes_one(tmp_path):
    (tmp_path / "empty").mkdir()
    assert open_workdir(tmp_path / "empty").marker.is_file()


def test_one_that_is_not_there_is_not_made_for_a_reader(tmp_path):
    with pytest.raises(UsageError, match="There is no workdir"):
        open_workdir(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()


def test_one_that_was_moved_is_refused_with_both_paths(tmp_path):
    made = open_workdir(tmp_path / "before")
    shutil.move(made.root, tmp_path / "after")
    with pytest.raises(UsageError) as caught:
        open_workdir(tmp_path / "after")
    assert str(tmp_path / "before") in str(caught.value)
    assert str(tmp_path / "after") in str(caught.value)


def test_the_same_directory_by_another_path_is_the_workdir_that_was_made(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    made = open_workdir(tmp_path / "home" / "work")
    monkeypatch.chdir(tmp_path / "home")  # from within a link, the current path is another one
    for path in (Path("work"), tmp_path / "disk" / "work", Path("..") / "disk" / "work"):
        assert open_workdir(path) == made
    shutil.copytree(made.root, tmp_path / "copy")
    with pytest.raises(UsageError, match="was made at"):
        open_workdir(tmp_path / "copy")


def test_a_path_that_reads_as_a_pattern_is_refused_and_not_made(tmp_path):
    with pytest.raises(UsageError, match=r"TFX takes a path with \[ \] for a pattern"):
        open_workdir(tmp_path / "work [1]" / "a")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_home_is_a_mistake_of_usage(tmp_path):
    with pytest.raises(UsageError, match="begins with ~"):
        open_workdir(Path("~nobody-of-this-name/work"))


# Each write fails as on a full disk: a file may have no bytes.
FULL = """
import resource, signal, sys
from pathlib import Path
from pipeline.errors import SafelightError
from pipeline.workdir import open_workdir
root = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
try:
    with open_workdir(root).lock():
        print("held")
except SafelightError as error:
    print(error)
"""


def test_a_full_disk_is_said_and_the_same_command_works_later(tmp_path):
    root = tmp_path / "work"
    command = [sys.executable, "-c", FULL, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "can't be made (File too large). Raise the limit" in done.stdout
    with open_workdir(root).lock():
        pass
    # gc, which frees space, takes the lock too.
    assert subprocess.run(command, capture_output=True, text=True).stdout == "held\n"


def test_what_may_not_be_locked_is_said(tmp_path):
    work = open_workdir(tmp_path / "work")
    (work.root / ".lock").mkdir()
    with (
        pytest.raises(SafelightError, match=r"can't be written to \(Is a directory\)"),
        work.lock(),
    ):
        pytest.fail("it was locked")


@pytest.mark.parametrize("text", ["{}", "[]", '{"pid": 1}', "{"])
def test_a_holder_that_can_not_be_read_is_another_process(tmp_path, text):
    work = open_workdir(tmp_path / "work")
    with work.lock():
        (work.root / ".holder.json").write_text(text)
        with pytest.raises(Busy, match="another process holds it"), work.lock():
            pytest.fail("the lock was taken twice")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "path": 5}'])
def test_a_damaged_marker_is_named(tmp_path, text):
    made = open_workdir(tmp_path / "work")
    made.marker.write_text(text)
    with pytest.raises(UsageError, match="is damaged"):
        open_workdir(made.root)


def test_another_format_is_refused(tmp_path):
    made = open_workdir(tmp_path / "work")
    made.marker.write_text(json.dumps({"format": 99, "path": str(made.root)}))
    with pytest.raises(UsageError, match="has format 99; this version reads 1"):
        open_workdir(made.root)


def test_a_second_process_is_told_who_holds_it(tmp_path):
    work = open_workdir(tmp_path / "work")
    holder = start(HOLDER, work.root)
    assert said(holder) == "held"
    with pytest.raises(Busy) as caught, work.lock():
        pytest.fail("the lock was taken twice")
    assert f"process {holder.pid} on " in str(caught.value)
    assert "--wait" in str(caught.value)
    assert caught.value.exit_code == 5
    release(holder)
    with work.lock():
        pass


def test_waiting_ends_when_the_holder_does(tmp_path):
    work = open_workdir(tmp_path / "work")
    with work.lock():
        waiter = start(WAITER, work.root)
        assert said(waiter) == "waiting"
        with pytest.raises(subprocess.TimeoutExpired):
            waiter.wait(timeout=1)
    assert said(waiter) == "held"
    release(waiter)


def test_a_holder_that_is_killed_leaves_the_workdir_free(tmp_path):
    work = open_workdir(tmp_path / "work")
    holder = start(HOLDER, work.root)
    assert said(holder) == "held"
    holder.kill()
    holder.communicate(timeout=30)
    with work.lock():
        pass


def test_a_worker_that_outlives_its_parent_still_holds_it(tmp_path):
    work = open_workdir(tmp_path / "work")
    parent = start(PARENT, work.root)
    worker = int(said(parent))
    try:
        parent.kill()
        parent.communicate(timeout=30)
        with pytest.raises(Busy), work.lock():
            pytest.fail("the worker's lock was ignored")
    finally:
        os.kill(worker, signal.SIGKILL)
    with work.lock(wait=True):
        pass
