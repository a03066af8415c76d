"""Which lane `make` picks, on machines of many kinds, and the words where none fits."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import lanes

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "lane.sh"

# Stands for uv: it knows the Pythons that PATH has, as uv does.
UV = """#!/bin/sh
for version; do :; done
command -v "python$version"
"""


@dataclass(frozen=True)
class Picked:
    """What the script said."""

    code: int
    values: dict[str, str]
    said: str


@pytest.fixture
def machine(tmp_path):
    """Gives a function that lays a machine out as a PATH of its own and picks the lane on it."""
    path = tmp_path / "bin"
    home = tmp_path / "home"
    path.mkdir()
    home.mkdir()
    for tool in ("sh", "dirname", "sed"):
        (path / tool).symlink_to(str(shutil.which(tool)))

    def program(file: Path, text: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)

    def pick(
        glibc: str = "glibc 2.36",
        pythons: str = "",
        pyenv: str = "",
        system: str = "Linux x86_64",
        **environment: str,
    ) -> Picked:
        name, architecture = system.split()
        program(path / "getconf", f"#!/bin/sh\necho '{glibc}'\n")
        program(path / "uname", f"#!/bin/sh\n[ $1 = -s ] && echo {name} || echo {architecture}\n")
        program(path / "uv", UV)
        for before in path.glob("python*"):
            before.unlink()
        for version in pythons.split():
            program(path / f"python{version}", "#!/bin/sh\n")
        for version in pyenv.split():
            short = version.rpartition(".")[0]
            program(home / ".pyenv/versions" / version / "bin" / f"python{short}", "#!/bin/sh\n")
        done = subprocess.run(
            [path / "sh", SCRIPT],
            env={"PATH": str(path), "HOME": str(home), **environment},
            capture_output=True,
            text=True,
            timeout=30,
        )
        pairs = (line.partition("=") for line in done.stdout.splitlines())
        return Picked(
            done.returncode, {key: value.strip("'") for key, _, value in pairs}, done.stderr
        )

    return pick


@pytest.mark.parametrize(
    ("glibc", "pythons", "lane", "python"),
    [
        ("2.36", "3.10", "legacy", "3.10"),
        ("2.36", "3.10 3.11 3.13", "legacy", "3.10"),
        ("2.35", "3.10", "legacy", "3.10"),
        ("2.39", "3.12", "current", "3.12"),
        ("2.41", "3.13", "current", "3.13"),
        ("2.41", "3.10 3.11 3.12", "current", "3.12"),
        ("2.41", "3.10", "legacy", "3.10"),
        ("3.0", "3.13", "current", "3.13"),
    ],
)
def test_the_lane_follows_from_glibc_and_the_pythons(machine, glibc, pythons, lane, python):
    picked = machine(f"glibc {glibc}", pythons)
    assert picked.code == 0
    assert (picked.values["lane"], picked.values["python"]) == (lane, python)
    assert picked.values["environment"] == str(ROOT / ".venv")
    assert picked.said.count("\n") == 1
    assert f"Lane {lane}: TFX " in picked.said
    assert f"Python {python} (" in picked.said


def test_the_reason_is_the_true_one(machine):
    assert "glibc 2.36 is older than the 2.39" in machine("glibc 2.36", "3.10 3.13").said
    assert "there is no Python 3.11 to 3.13" in machine("glibc 2.41", "3.10").said


def test_a_python_that_pyenv_has_is_found_where_its_shims_are_silent(machine):
    picked = machine("glibc 2.36", pyenv="3.10.13 3.12.1")
    assert picked.values["python"] == "3.10"
    assert picked.values["python_path"].endswith("versions/3.10.13/bin")


def test_lane_overrides_and_has_an_environment_of_its_own(machine):
    picked = machine("glibc 2.41", "3.10 3.13", LANE="legacy")
    assert (picked.values["lane"], picked.values["python"]) == ("legacy", "3.10")
    assert picked.values["environment"] == str(ROOT / ".venv-legacy")
    assert "as LANE asks" in picked.said


def test_lane_that_says_what_is_picked_anyway_changes_nothing(machine):
    picked = machine("glibc 2.36", "3.10", LANE="legacy")
    assert picked.values["environment"] == str(ROOT / ".venv")


def test_uv_may_fetch_a_python_only_where_it_was_asked_to(machine):
    assert machine("glibc 2.36").code == 1
    for glibc, lane, python in (("2.36", "legacy", "3.10"), ("2.41", "current", "3.13")):
        picked = machine(f"glibc {glibc}", UV_PYTHON_DOWNLOADS="automatic")
        assert (picked.values["lane"], picked.values["python"]) == (lane, python)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pythons": "3.11"}, ["glibc 2.39 (here: 2.36)", "Python 3.10", "pyenv install 3.10"]),
        ({"glibc": "glibc 2.41", "pythons": "3.9"}, ["no Python 3.10 to 3.13", "apt-get install"]),
        ({"pythons": "3.10", "LANE": "current"}, ["has 2.36", "LANE=legacy", "smoke-current"]),
        ({"glibc": "glibc 2.41", "pythons": "3.10", "LANE": "current"}, ["needs Python 3.11"]),
        ({"glibc": "glibc 2.41", "pythons": "3.13", "LANE": "legacy"}, ["needs Python 3.10"]),
        ({"pythons": "3.10", "LANE": "newest"}, ["LANE=newest", "LANE=legacy or LANE=current"]),
        ({"glibc": "musl", "pythons": "3.10"}, ["not glibc"]),
        ({"system": "Linux aarch64", "pythons": "3.10"}, ["Linux-aarch64", "x86-64"]),
        ({"system": "Darwin arm64", "pythons": "3.10"}, ["Darwin-arm64", "x86-64"]),
    ],
)
def test_where_no_lane_fits_the_fix_is_said(machine, given, words):
    picked = machine(**given)
    assert picked.code == 1
    assert picked.values == {}
    for word in words:
        assert word in picked.said


@pytest.fixture
def bare(tmp_path):
    """Gives a function that runs a copy of a script where PATH holds only what it is given."""
    scripts = tmp_path / "copy" / "scripts"
    shutil.copytree(ROOT / "scripts", scripts)
    path = tmp_path / "bare"
    path.mkdir()
    for tool in ("sh", "dirname", "cat", "rm", "mkdir", "tail"):
        (path / tool).symlink_to(str(shutil.which(tool)))

    def call(script: str, **programs: str) -> subprocess.CompletedProcess[str]:
        for name, body in programs.items():
            (path / name).write_text(f"#!/bin/sh\n{body}\n")
            (path / name).chmod(0o755)
        return subprocess.run(
            [path / "sh", scripts / script, "true"],
            env={"PATH": str(path)},
            capture_output=True,
            text=True,
            timeout=30,
        )

    return call


@pytest.mark.parametrize(
    ("script", "programs", "words"),
    [
        ("env.sh", {}, ["no python3", "apt-get install python3 python3-venv"]),
        ("env.sh", {"python3": "exit 1"}, ["neither venv nor pip", "apt-get install python3-venv"]),
        (
            "env.sh",
            # venv is missing, pip is there, and no index answers it.
            {"python3": '[ "$3" = --version ] || { echo "no index" >&2; exit 1; }'},
            ["no index", "could not be installed", "package index"],
        ),
        ("debian13.sh", {"id": "echo 1000"}, ["run it as root"]),
        ("debian13.sh", {"id": "echo 0"}, ["apt-get install debootstrap"]),
        (
            "debian13.sh",
            {"id": "echo 0", "debootstrap": "echo 'E: no mirror' >&2; exit 1"},
            ["debootstrap failed", "E: no mirror"],
        ),
    ],
)
def test_what_set_up_lacks_is_said_with_the_fix(bare, script, programs, words):
    done = bare(script, **programs)
    assert done.returncode == 1
    for word in words:
        assert word in done.stderr


def test_a_root_folder_that_was_broken_off_is_made_anew(bare):
    # As debootstrap does: what an earlier attempt left in the folder, it refuses.
    debootstrap = """[ ! -e "$4/etc" ] || { echo "E: file already exists"; exit 1; }
        mkdir -p "$4/etc"; echo "E: no mirror"; exit 1"""
    for _ in range(2):
        done = bare("debian13.sh", id="echo 0", debootstrap=debootstrap)
        assert "E: no mirror" in done.stderr


@pytest.mark.current
def test_a_command_runs_in_the_locked_environment_and_writes_bytecode():
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": "/nowhere"}
    environment.pop("SAFELIGHT_QUIET", None)  # `make test` sets it
    code = "import sys; print(sys.prefix, sys.dont_write_bytecode, '/nowhere' in sys.path)"
    done = subprocess.run(
        ["sh", ROOT / "scripts" / "env.sh", "python", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(ROOT / ".venv"), "False", "False"]
    assert "Lane " in done.stderr


@pytest.mark.current
def test_this_environment_is_the_one_its_lane_locks():
    from importlib.metadata import version

    for package, prefix in lanes.VERSIONS[lanes.of(sys.version_info[:2])].items():
        assert version(package).startswith(prefix), package


@pytest.mark.parametrize(
    ("python", "lane"),
    [((3, 10), "legacy"), ((3, 11), "current"), ((3, 13), "current")],
)
def test_the_lane_follows_from_python_as_in_the_lock(python, lane):
    assert lanes.of(python) == lane
    lock = lanes.tomllib.loads((ROOT / "uv.lock").read_text())
    [ours] = [package for package in lock["package"] if package["name"] == "safelight"]
    markers = {
        one["version"]: one["marker"] for one in ours["dependencies"] if one["name"] == "tfx"
    }
    [wanted] = [version for version in markers if version.startswith(lanes.VERSIONS[lane]["tfx"])]
    sense = "<" if lane == "legacy" else ">="
    assert f"python_full_version {sense} '3.11'" in markers[wanted]


def test_the_glibc_that_the_current_lane_needs_is_said_once_in_shell_and_once_in_python():
    major, minor = lanes.CURRENT_GLIBC
    assert f"current_needs={minor} " in SCRIPT.read_text()
    assert f"{major}.{minor}" in (ROOT / "scripts" / "current.sh").read_text()


@pytest.mark.current
def test_toml_is_read_in_either_lane():
    assert lanes.tomllib.loads("a = [1, 2]") == {"a": [1, 2]}
    with pytest.raises(lanes.tomllib.TOMLDecodeError):
        lanes.tomllib.loads("a = ")


def test_no_other_module_asks_which_lane_it_is_in():
    asking = re.compile(r"version_info\s*[<>]|^\s*import toml|hasattr\((tf|keras|tfx|tfma)\b", re.M)
    sources = [path for name in ("pipeline", "components") for path in (ROOT / name).rglob("*.py")]
    found = [str(path.relative_to(ROOT)) for path in sources if asking.search(path.read_text())]
    assert found == ["pipeline/lanes.py"]
