"""A process that asked for it ends when the one that started it does."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

CHILD = """
import os, signal, sys, time
from pipeline import lifetime
lifetime.end_with_parent(by=signal.Signals(int(sys.argv[1])))
print(os.getpid(), flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]])
time.sleep(60)
"""


def ends_with(*code: str) -> None:
    """Runs Python that prints a process's number, and kills it: so that process ends too."""
    command = [sys.executable, "-c", *code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        parent.wait(30)
        child.wait(30)
    assert not child.is_running()


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent(by):
    ends_with(PARENT, CHILD, str(int(by)))


def test_one_whose_parent_has_died_already_ends_at_once():
    began = time.monotonic()
    code = "from pipeline import lifetime; lifetime.end_with_parent(1 << 22); print('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert time.monotonic() - began < 30


SERVER = """
import sys
from pipeline.commands import processes
server = processes.start([sys.executable, "-c", "import time; time.sleep(60)"])
print(server.pid, flush=True)
server.wait()
"""


def test_a_server_ends_with_a_command_that_is_killed():
    ends_with(SERVER)


NOHUP = """
import os, signal
from pipeline.commands import processes
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with processes.stop_asked() as stopped:
    os.kill(os.getpid(), signal.SIGHUP)
    assert not stopped.is_set()
"""


def test_a_terminal_that_is_closed_does_not_stop_what_runs_under_nohup():
    subprocess.run([sys.executable, "-c", NOHUP], check=True)


STORM = """
import os, signal, subprocess, sys
from pipeline.commands import processes
sender = '''
import os, signal
for number in range(20_000):
    os.kill({0}, (signal.SIGINT, signal.SIGTERM)[number % 2])
'''
with processes.stop_asked() as stopped:
    asking = subprocess.Popen([sys.executable, "-c", sender.format(os.getpid())])
    while asking.poll() is None:
        stopped.wait(0.0001)
    assert stopped.wait() and stopped.is_set()
"""


def test_signals_on_top_of_each_other_do_not_lock_each_other_out():
    subprocess.run([sys.executable, "-c", STORM], check=True, timeout=120)
