"""Setting up again: after what broke off, in another lane, and the copy in the root folder."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests import signals

ROOT = Path(__file__).parent.parent


@pytest.fixture
def copied(tmp_path):
    """Gives a copy of the scripts in a repository of its own, and a folder of programs for PATH."""
    scripts = tmp_path / "copy" / "scripts"
    shutil.copytree(ROOT / "scripts", scripts)
    subprocess.run(["git", "init", "-q", scripts.parent], check=True)
    programs = tmp_path / "programs"
    programs.mkdir()

    def call(script: str, **variables: str) -> str:
        done = subprocess.run(
            ["sh", scripts / script, "true"],
            env={"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path), **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout + done.stderr

    def program(place: Path, body: str) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"#!/bin/sh\n{body}\n")
        place.chmod(0o755)

    return scripts.parent, programs, program, call


def test_set_up_is_done_again_after_an_update_that_broke_off_and_for_another_python(copied):
    root, programs, program, call = copied
    [version] = re.findall(r"^uv_version=(.*)", (root / "scripts/env.sh").read_text(), re.M)
    synced = root / "synced.txt"
    program(
        root / f".tools/uv-{version}/bin/uv",
        f"""if [ $1 = python ]; then for name; do :; done; [ -e {programs}/python$name ]; exit; fi
        echo "$@" >>{synced}; mkdir -p "$UV_PROJECT_ENVIRONMENT"; exit ${{BREAKS:-0}}""",
    )
    program(programs / "python3.10", "")
    program(programs / "getconf", "echo glibc 2.41")
    lock = root / "uv.lock"
    (root / "pyproject.toml").touch()

    def syncs(**variables: str) -> list[str]:
        synced.write_text("")
        call("env.sh", **variables)
        return synced.read_text().splitlines()

    lock.write_text("old")
    assert len(syncs(EXTRAS="s3")) == 1
    assert syncs() == []
    lock.write_text("new")
    assert len(syncs(BREAKS="1")) == 1
    lock.write_text("old")  # half of what is there is of the new one
    [again] = syncs()
    assert "--extra s3" in again
    assert syncs() == []
    # The machine now takes the other lane, into the same `.venv`.
    program(programs / "python3.13", "")
    [other] = syncs()
    assert "--python 3.13" in other
    assert "--extra s3" in other


@pytest.fixture
def root_folder(copied):
    """Gives a root folder that counts as made, of the repository in `copied`."""
    root = copied[0]
    folder = root / ".cache" / "debian13"
    (folder / "proc").mkdir(parents=True)
    (folder / "dev" / "shm").mkdir(parents=True)
    [release] = re.findall(r'^release="(.*?)"', (root / "scripts/debian13.sh").read_text(), re.M)
    (folder / ".safelight-root").write_text(release + "\n")
    (root / ".gitignore").write_text(".cache\n")
    return folder


def test_the_copy_in_the_root_folder_follows_and_takes_nothing_from_what_runs_there(
    copied, root_folder
):
    root, programs, program, call = copied
    program(programs / "id", "echo 0")
    program(programs / "chroot", "")
    inside = root_folder / "safelight"
    for name in ("same.py", "package/module.py", "folder/file.txt", "turns"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("1")
    call("debian13.sh")
    (inside / "package" / "__pycache__").mkdir()
    (inside / ".venv").mkdir()
    kept = (inside / "same.py").stat()
    shutil.rmtree(root / "package")
    shutil.rmtree(root / "folder")
    (root / "folder").write_text("a file now")
    (root / "turns").unlink()
    (root / "turns").mkdir()
    (root / "turns" / "into").write_text("a folder now")
    (root / "it's new.txt").write_text("2")
    said = call("debian13.sh")
    # Not made anew: a program that runs in there finds it at any moment.
    assert (inside / "same.py").stat().st_ino == kept.st_ino, said
    assert (inside / "it's new.txt").read_text() == "2"
    assert (inside / "folder").read_text() == "a file now"
    assert (inside / "turns" / "into").read_text() == "a folder now"
    assert not (inside / "package").exists()
    assert (inside / ".venv").is_dir()
    assert list((root_folder / "tmp").iterdir()) == []


def test_a_checkout_that_git_does_not_list_is_no_reason_to_empty_the_copy(copied, root_folder):
    root, programs, program, call = copied
    program(programs / "id", "echo 0")
    program(programs / "chroot", "")
    call("debian13.sh")
    shutil.rmtree(root / ".git")
    said = call("debian13.sh", GIT_CEILING_DIRECTORIES=str(root.parent))
    assert "not a git repository" in said
    assert "can't list this checkout's files" in said
    assert (root_folder / "safelight" / "scripts" / "env.sh").is_file()


@pytest.mark.skipif(
    os.getuid() != 0
    or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0,
    reason="takes root, and mounts",
)
def test_a_folder_in_shared_memory_can_be_shared_with_the_root_folder(copied, root_folder):
    _root, programs, program, call = copied
    # A root folder without programs can't be entered: what a command there would write.
    program(programs / "chroot", 'echo kept >"$1$SHARE/result"')
    with tempfile.TemporaryDirectory(dir="/dev/shm") as shared:
        said = call("debian13.sh", SHARE=shared)
        assert (Path(shared) / "result").is_file(), said


def test_ctrl_c_ends_the_try_of_the_other_lane(copied):
    root, programs, program, _call = copied
    program(root / "scripts/env.sh", "echo lane=legacy")
    program(programs / "id", "echo 0")
    told = root / "running"
    program(
        root / "scripts/current.sh",
        f'[ "$1" != true ] || exit 0; echo $$ >{told}.new; mv {told}.new {told}; exec sleep 120',
    )
    process = subprocess.Popen(
        ["sh", root / "scripts/other_lane.sh"],
        env={"PATH": f"{programs}:{os.environ['PATH']}"},
        start_new_session=True,
        preexec_fn=signals.heeded,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not told.exists():
            assert process.poll() is None
            time.sleep(0.05)
        # As a terminal does: those in the group of the command, and no other.
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)
