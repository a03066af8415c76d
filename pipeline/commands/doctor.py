"""`safelight doctor`: what this machine and environment are, what is wrong, and the fix.

Neither TensorFlow nor Beam is imported here: a child process is asked about them, with a time
limit, so that a broken or a slow TensorFlow is a finding and no crash.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline import lanes

State = Literal["ok", "warn", "fail"]

_GB: Final = 1e9
_CHILD_SECONDS: Final = 120
_SLOW_IMPORT_SECONDS: Final = 20
_MEMORY_GB: Final = 4.0  # below it Transform and Trainer of a demo-sized run start to swap
_DISK_GB: Final = 5.0
_SHM_MB: Final = 64.0  # what Docker gives by default

_OTHERS: Final = ("apache-beam", "tensorflow-transform", "tensorflow-model-analysis", "numpy")
_MARKS: Final[dict[State, str]] = {
    "ok": "[green]ok[/]",
    "warn": "[yellow]warn[/]",
    "fail": "[bold red]fail[/]",
}

# Prints one JSON object; all that TensorFlow prints goes to the other stream.
_PROBE: Final = """
import json, os, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_USE_LEGACY_KERAS"] = "0"
start = time.monotonic()
import tensorflow as tf
seconds = time.monotonic() - start
import keras
gpus = []
for gpu in tf.config.list_physical_devices("GPU"):
    facts = tf.config.experimental.get_device_details(gpu)
    gpus.append(facts.get("device_name", gpu.name))
total = float(tf.reduce_sum(tf.ones([2, 2])))
assert total == 4.0, f"the sum of four ones came out as {total}"
print(json.dumps({"seconds": seconds, "gpus": gpus, "keras": keras.__version__}))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the check-up; `fix` is empty where nothing is to be done."""

    name: str
    state: State
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Machine:
    """What the checks look at; taken from the machine by `inspect`, and made by tests."""

    python: tuple[int, int]
    system: str
    glibc: tuple[int, int] | None
    memory_bytes: int
    memory_free_bytes: int
    cores: int
    disk_free_bytes: int
    shm_bytes: int | None
    versions: dict[str, str | None] = field(default_factory=dict)


def inspect(folder: Path) -> Machine:
    """Looks at this machine; `folder` says which disk counts."""
    memory = psutil.virtual_memory()
    shm = Path("/dev/shm")
    names = {name for lane in lanes.VERSIONS.values() for name in lane} | set(_OTHERS)
    return Machine(
        python=sys.version_info[:2],
        system=f"{platform.system()}-{platform.machine()}",
        glibc=_glibc(),
        memory_bytes=memory.total,
        memory_free_bytes=memory.available,
        cores=len(os.sched_getaffinity(0)),
        disk_free_bytes=shutil.disk_usage(folder).free,
        shm_bytes=shutil.disk_usage(shm).total if shm.is_dir() else None,
        versions={name: _version(name) for name in sorted(names)},
    )


def check(machine: Machine, probe: Callable[[], Finding | list[Finding]]) -> Iterator[Finding]:
    """Yields the findings, the slow one last; `probe` asks TensorFlow."""
    yield _check_system(machine)
    yield _check_lane(machine)
    yield from _check_versions(machine)
    yield _check_memory(machine)
    yield _check_disk(machine)
    if machine.shm_bytes is not None:
        yield _check_shm(machine.shm_bytes)
    yield _check_runner(machine)
    found = probe()
    yield from [found] if isinstance(found, Finding) else found


def command(as_json: bool, folder: Path | None = None) -> int:
    """Prints the check-up as it goes; returns the exit code: 1 where something fails."""
    findings = []
    table = Table(box=None, pad_edge=False, show_header=False)
    console = Console(stderr=as_json, highlight=False)
    with console.status("asking TensorFlow for its devices"):
        for finding in check(inspect(folder or Path.cwd()), ask_tensorflow):
            findings.append(finding)
            text = escape(finding.found)
            if finding.fix:
                text += f"\n[dim]{escape(finding.fix)}[/]"
            table.add_row(_MARKS[finding.state], finding.name, text)
    console.print(table)
    failed = sum(finding.state == "fail" for finding in findings)
    warned = sum(finding.state == "warn" for finding in findings)
    console.print(
        "All is fine." if not failed + warned else f"{failed} to fix, {warned} worth a look."
    )
    if as_json:
        lane = lanes.of(sys.version_info[:2])
        record = {"ok": not failed, "lane": lane, "checks": [asdict(one) for one in findings]}
        sys.stdout.write(json.dumps(record) + "\n")
    return 1 if failed else 0


def ask_tensorflow(seconds: float = _CHILD_SECONDS) -> list[Finding]:
    """Imports TensorFlow in a child process; returns what it found out about devices and speed."""
    try:
        child = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return [
            Finding(
                "TensorFlow",
                "fail",
                f"its import did not end within {seconds:.0f} s",
                "Install again so that bytecode is compiled (make setup), or look for a slow disk.",
            )
        ]
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        return [Finding("TensorFlow", "fail", f"can't be imported: {last}", "Install: make setup")]
    return _read_probe(json.loads(child.stdout.strip().splitlines()[-1]))


def _read_probe(facts: dict[str, object]) -> list[Finding]:
    seconds = float(str(facts["seconds"]))
    slow = seconds > _SLOW_IMPORT_SECONDS
    gpus = facts["gpus"]
    assert isinstance(gpus, list)
    hidden = _nvidia_present() and not gpus
    return [
        Finding(
            "TensorFlow",
            "warn" if slow else "ok",
            f"imports in {seconds:.0f} s, computes, and Keras is {facts['keras']}",
            "Bytecode is missing, perhaps: unset PYTHONDONTWRITEBYTECODE; make setup"
            if slow
            else "",
        ),
        Finding(
            "devices",
            "warn" if hidden else "ok",
            ", ".join(str(gpu) for gpu in gpus) if gpus else "CPU alone",
            "There is an NVIDIA GPU that TensorFlow does not see: check CUDA_VISIBLE_DEVICES, and "
            "install CUDA's libraries: make setup EXTRAS=gpu"
            if hidden
            else "",
        ),
    ]


def _check_system(machine: Machine) -> Finding:
    glibc = "no glibc" if machine.glibc is None else f"glibc {_dotted(machine.glibc)}"
    found = f"{machine.system}, {glibc}, {machine.cores} cores"
    if machine.system != "Linux-x86_64" or machine.glibc is None:
        fix = "TFX has wheels for Linux on x86-64 with glibc alone: use Debian or Ubuntu there."
        return Finding("system", "fail", found, fix)
    return Finding("system", "ok", found)


def _check_lane(machine: Machine) -> Finding:
    lane = lanes.of(machine.python)
    found = f"{lane}: TFX {lanes.VERSIONS[lane]['tfx']} on Python {_dotted(machine.python)}"
    if lane == "current" and (machine.glibc is None or machine.glibc < lanes.CURRENT_GLIBC):
        return Finding(
            "lane",
            "fail",
            found + "; it needs glibc 2.39",
            "Use Python 3.10: make setup LANE=legacy",
        )
    if not (3, 10) <= machine.python <= (3, 13):
        return Finding("lane", "fail", found, "Expected Python 3.10 to 3.13: make setup")
    return Finding("lane", "ok", found)


def _check_versions(machine: Machine) -> Iterator[Finding]:
    expected = lanes.VERSIONS[lanes.of(machine.python)]
    for name, prefix in expected.items():
        version = machine.versions.get(name)
        if version is None:
            yield Finding(name, "fail", "not installed", "Install the locked packages: make setup")
        elif not version.startswith(prefix):
            yield Finding(
                name,
                "fail",
                f"{version}; this lane has {prefix.rstrip('.')}",
                "Something else was installed into the environment: rm -r .venv; make setup",
            )
        else:
            yield Finding(name, "ok", version)
    others = {name: machine.versions.get(name) for name in _OTHERS}
    missing = [name for name, version in others.items() if version is None]
    yield Finding(
        "packages",
        "fail" if missing else "ok",
        ", ".join(f"{name} {version or 'missing'}" for name, version in others.items()),
        "Install the locked packages: make setup" if missing else "",
    )


def _check_memory(machine: Machine) -> Finding:
    total, free = machine.memory_bytes / _GB, machine.memory_free_bytes / _GB
    found = f"{total:.1f} GB, {free:.1f} GB free"
    if free < _MEMORY_GB:
        fix = f"A run takes about {_MEMORY_GB:.0f} GB: end other programs, or expect swapping."
        return Finding("memory", "warn", found, fix)
    return Finding("memory", "ok", found)


def _check_disk(machine: Machine) -> Finding:
    free = machine.disk_free_bytes / _GB
    if free < 1:
        fix = "A run keeps its images as TFRecords: free some, or put --workdir on another disk."
        return Finding("disk", "fail", f"{free:.1f} GB free here", fix)
    if free < _DISK_GB:
        fix = "Enough for small data alone; put --workdir on another disk for more."
        return Finding("disk", "warn", f"{free:.1f} GB free here", fix)
    return Finding("disk", "ok", f"{free:.0f} GB free here")


def _check_shm(size: int) -> Finding:
    found = f"{size / 1e6:.0f} MB"
    if size < _SHM_MB * 1e6:
        return Finding("/dev/shm", "warn", found, "In Docker, give it more: --shm-size=1g")
    return Finding("/dev/shm", "ok", found)


def _check_runner(machine: Machine) -> Finding:
    beam = machine.versions.get("apache-beam")
    if beam is None:
        return Finding("runner", "fail", "apache-beam is missing", "Install it: make setup")
    return Finding("runner", "ok", f"Beam {beam}'s DirectRunner, in memory")


def _glibc() -> tuple[int, int] | None:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        major, minor = version.split(".")[:2]
        return (int(major), int(minor)) if name == "glibc" else None
    except (ValueError, OSError):
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _nvidia_present() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(str(part) for part in version)
