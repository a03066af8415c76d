"""The check-up: real on this machine, and the right words on machines that lack something."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.commands import doctor
from pipeline.commands.doctor import Finding

pytestmark = pytest.mark.current


@pytest.fixture(scope="module")
def here() -> doctor.Machine:
    return doctor.inspect(Path.cwd())


def findings(machine: doctor.Machine) -> dict[str, Finding]:
    found = doctor.check(machine, lambda: Finding("TensorFlow", "ok", "not asked"))
    return {finding.name: finding for finding in found}


def test_this_machine_and_environment_are_fit(here):
    found = findings(here)
    for name in ("system", "lane", "tfx", "tensorflow", "keras", "protobuf", "packages", "runner"):
        assert found[name].state == "ok", found[name]


def test_tensorflow_is_asked_in_a_child_and_answers():
    by_name = {finding.name: finding for finding in doctor.ask_tensorflow()}
    assert by_name["TensorFlow"].state in ("ok", "warn"), by_name
    assert "Keras is 3." in by_name["TensorFlow"].found
    assert by_name["devices"].found


def test_a_tensorflow_that_hangs_is_a_finding():
    [finding] = doctor.ask_tensorflow(seconds=0.05)
    assert finding.state == "fail"
    assert "did not end within" in finding.found


def test_a_tensorflow_that_is_broken_is_a_finding(tmp_path, monkeypatch):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('libfoo.so: cannot open')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    [finding] = doctor.ask_tensorflow()
    assert finding.state == "fail"
    assert "libfoo.so: cannot open" in finding.found
    assert finding.fix


@pytest.mark.parametrize(
    ("changed", "name", "state", "words"),
    [
        ({"python": (3, 13), "glibc": (2, 36)}, "lane", "fail", "LANE=legacy"),
        ({"python": (3, 9)}, "lane", "fail", "Python 3.10 to 3.13"),
        ({"python": (3, 14), "glibc": (2, 41)}, "lane", "fail", "Python 3.10 to 3.13"),
        ({"system": "Darwin-arm64"}, "system", "fail", "x86-64"),
        ({"glibc": None}, "system", "fail", "glibc"),
        ({"memory_free_bytes": 10**9}, "memory", "warn", "end other programs"),
        ({"disk_free_bytes": 3 * 10**9}, "disk", "warn", "another disk"),
        ({"disk_free_bytes": 10**8}, "disk", "fail", "another disk"),
        ({"shm_bytes": 64 * 10**5}, "/dev/shm", "warn", "--shm-size"),
        ({"versions": {}}, "tfx", "fail", "make setup"),
        ({"versions": {}}, "packages", "fail", "make setup"),
        ({"versions": {}}, "runner", "fail", "make setup"),
    ],
)
def test_what_is_missing_is_said_with_its_fix(here, changed, name, state, words):
    finding = findings(replace(here, **changed))[name]
    assert finding.state == state
    assert words in finding.fix


def test_a_package_of_the_other_lane_is_found(here):
    machine = replace(here, versions={**here.versions, "tensorflow": "2.5.0"})
    finding = findings(machine)["tensorflow"]
    assert finding.state == "fail"
    assert finding.found.startswith("2.5.0; this lane has 2.")


def test_the_command_prints_a_table_for_people(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "ask_tensorflow", lambda: [Finding("TensorFlow", "ok", "fine")])
    assert doctor.command(as_json=False) == 0
    printed = capsys.readouterr().out
    assert "lane" in printed
    assert "glibc" in printed


def test_the_command_prints_json_for_programs(capsys, monkeypatch):
    broken = Finding("TensorFlow", "fail", "broken", "make setup")
    monkeypatch.setattr(doctor, "ask_tensorflow", lambda: [broken])
    assert doctor.command(as_json=True) == 1
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert record["ok"] is False
    assert record["checks"][-1] == {
        "name": "TensorFlow",
        "state": "fail",
        "found": "broken",
        "fix": "make setup",
    }
    assert "1 to fix" in printed.err
