"""The registry: what it records, what it gives a run, and what a SIGKILL at any point leaves."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import events, registry
from pipeline.errors import NotBlessed, SafelightError, UsageError
from pipeline.registry import Origin

FIRST = Origin(by="safelight run", why="first", run_id="r1", data="d1", config="c1", code="k1")


def export(path: Path, fingerprint: str = "f1", classes: tuple[str, ...] = ("a", "b")) -> Path:
    """Writes files as an export has them (their bytes mean nothing to the registry)."""
    (path / "variables").mkdir(parents=True)
    (path / "assets.extra").mkdir()
    (path / "saved_model.pb").write_bytes(b"graph")
    (path / "variables" / "variables.index").write_bytes(b"index")
    (path / "variables" / "variables.data-00000-of-00001").write_bytes(bytes(5000))
    facts = {"format": 1, "classes": list(classes), "fingerprint": fingerprint}
    (path / "assets.extra" / "model.json").write_text(json.dumps(facts))
    return path


def warnings_in(log: Path) -> list[str]:
    return [event["text"] for _, event in events.read(log) if event["kind"] == "warning"]


def content(root: Path) -> dict:
    return json.loads((root / "registry.json").read_text())


def test_publish_numbers_copies_and_records(tmp_path):
    root = tmp_path / "serving" / "model"
    source = export(tmp_path / "export")
    first = registry.open(root).publish(source, replace(FIRST, metrics={"accuracy": 0.9}))
    assert (first.version, first.status, first.classes) == (1, "live", ["a", "b"])
    opened = registry.open(root)
    assert opened.champion() == first
    assert (root / "1" / "variables" / "variables.data-00000-of-00001").stat().st_size == 5000
    second = opened.publish(source, replace(FIRST, run_id="r2", champion=1))
    written = content(root)
    assert second.version == written["current"] == 2
    assert [entry["status"] for entry in written["versions"]] == ["retired", "live"]
    assert written["intent"] is None
    assert not list(root.glob(".*"))


def test_versions_only_grow(tmp_path):
    root, source = tmp_path / "model", export(tmp_path / "export")
    opened = registry.open(root)
    opened.publish(source, FIRST)
    opened.publish(source, FIRST)
    shutil.rmtree(root / "2")
    reopened = registry.open(root)
    champion = reopened.champion()
    assert champion is not None and champion.version == 1
    assert reopened.publish(source, FIRST).version == 3


def test_before_the_first_push(tmp_path):
    opened = registry.open(tmp_path / "model")
    assert opened.champion() is None
    assert opened.resolve_inputs("d", "c", "k") == registry.RunInputs()
    assert not (tmp_path / "model").exists()


def test_what_a_run_is_given(tmp_path):
    root, source = tmp_path / "model", export(tmp_path / "export", classes=("b", "a"))
    opened = registry.open(root)
    opened.publish(source, FIRST)
    # Equal to the champion's own run: nothing was known then, and there was nothing to beat.
    assert opened.resolve_inputs("d1", "c1", "k1") == registry.RunInputs()
    # The same data: the same class order as then, but the champion stands.
    assert opened.resolve_inputs("d1", "c2", "k1") == registry.RunInputs((), 1, str(root / "1"))
    # Other data: the champion's classes, in its order.
    other = opened.resolve_inputs("d2", "c1", "k1")
    assert other == registry.RunInputs(("b", "a"), 1, str(root / "1"))
    later = replace(FIRST, data="d2", known_classes=("b", "a"), champion=1)
    opened.publish(source, later)
    assert opened.resolve_inputs("d2", "c1", "k1") == other
    assert registry.open(root).resolve_inputs("d2", "c1", "k1") == other


def test_the_same_run_is_not_published_twice(tmp_path):
    root, source = tmp_path / "model", export(tmp_path / "export")
    opened = registry.open(root)
    entry = opened.publish(source, FIRST)
    again = replace(FIRST, run_id="r2")
    assert opened.published(again, "f1") == entry
    assert opened.published(again, "other weights") is None
    assert opened.published(replace(again, champion=1), "f1") is None
    assert opened.published(replace(again, config="c2"), "f1") is None


def test_source_that_is_no_export(tmp_path):
    (tmp_path / "export").mkdir()
    with pytest.raises(SafelightError, match=r"saved_model\.pb"):
        registry.open(tmp_path / "model").publish(tmp_path / "export", FIRST)
    assert not (tmp_path / "model").exists()


def test_disk_that_is_full(tmp_path, monkeypatch):
    root, source = tmp_path / "model", export(tmp_path / "export")
    opened = registry.open(root)
    opened.publish(source, FIRST)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(SafelightError, match="No space left"):
        opened.publish(source, FIRST)
    monkeypatch.undo()
    assert sorted(path.name for path in root.iterdir()) == ["1", "registry.json"]
    assert content(root)["intent"] is None
    assert registry.open(root).champion() == opened.champion()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text(path.read_text()[:40]),
        lambda path: path.unlink(),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text(
            path.read_text().replace('"classes": [', '"classes": 3, "": [')
        ),
        lambda path: path.write_text(path.read_text().replace('"current": 2', '"current": 7')),
    ],
    ids=["cut", "gone", "list", "types", "current"],
)
def test_damaged_registry_is_rebuilt_without_loss(tmp_path, event_log, damage):
    root, source = tmp_path / "model", export(tmp_path / "export")
    opened = registry.open(root)
    opened.publish(source, FIRST)
    opened.publish(source, replace(FIRST, data="d2", champion=1, metrics={"accuracy": 0.5}))
    before = content(root)
    damage(root / "registry.json")
    registry.open(root)
    assert content(root) == before
    assert any("rebuilt" in text for text in warnings_in(event_log))


def test_rebuilt_from_model_facts_alone(tmp_path, event_log):
    root = tmp_path / "model"
    export(root / "4", "f4")
    champion = registry.open(root).champion()
    assert champion is not None
    assert (champion.version, champion.model_fingerprint, champion.classes) == (4, "f4", ["a", "b"])
    assert content(root)["current"] == 4
    assert warnings_in(event_log)


def test_version_put_there_by_hand(tmp_path, event_log):
    root, source = tmp_path / "model", export(tmp_path / "export")
    registry.open(root).publish(source, FIRST)
    export(root / "9", "f9")
    champion = registry.open(root).champion()
    assert champion is not None and champion.version == 9
    assert [entry["status"] for entry in content(root)["versions"]] == ["retired", "live"]
    assert any("agree" in text for text in warnings_in(event_log))


def test_format_of_the_future(tmp_path):
    (tmp_path / "registry.json").write_text('{"format": 2}')
    with pytest.raises(SafelightError, match="format 2"):
        registry.open(tmp_path)


def test_read_repairs_nothing(tmp_path):
    root, source = tmp_path / "model", export(tmp_path / "export")
    registry.open(root).publish(source, FIRST)
    (root / ".2.incoming").mkdir()
    text = (
        (root / "registry.json").read_text().replace('"intent": null', '"intent": {"version": 2}')
    )
    (root / "registry.json").write_text(text)
    seen = registry.read(root).champion()
    assert seen is not None and seen.version == 1
    assert (root / ".2.incoming").is_dir()
    assert (root / "registry.json").read_text() == text


def three(root: Path, tmp_path: Path) -> registry.Registry:
    """Returns a registry with three versions, each another model."""
    opened = registry.open(root)
    for number in (1, 2, 3):
        source = export(tmp_path / f"export{number}", f"f{number}")
        origin = replace(FIRST, run_id=f"r{number}", data=f"d{number}", champion=number - 1 or None)
        opened.publish(source, origin)
    return opened


def test_rollback_publishes_the_older_model_as_the_next_version(tmp_path):
    root = tmp_path / "model"
    entry = three(root, tmp_path).rollback("ann", "blurred")
    assert (entry.version, entry.restores, entry.rolls_back) == (4, 2, 3)
    assert (entry.model_fingerprint, entry.data, entry.run_id) == ("f2", "d2", "r2")
    written = content(root)
    assert written["current"] == 4
    assert [one["status"] for one in written["versions"]] == [
        "retired",
        "retired",
        "rolled_back",
        "live",
    ]
    facts = json.loads((root / "4" / "assets.extra" / "model.json").read_text())
    assert facts["fingerprint"] == "f2"
    opened = registry.open(root)
    assert opened.champion() == entry
    # The restored model counts as its run's own: that run finds everything done.
    assert opened.resolve_inputs("d2", "c1", "k1").champion_version == 1


def test_what_was_rolled_back_never_comes_back(tmp_path):
    root = tmp_path / "model"
    opened = three(root, tmp_path)
    opened.rollback("ann", "blurred")
    with pytest.raises(NotBlessed, match="version 3, which was rolled back"):
        opened.publish(tmp_path / "export3", replace(FIRST, run_id="r9", champion=4))
    with pytest.raises(UsageError, match="version 3"):
        opened.rollback("ann", "again", to=3)
    # Also after the registry was lost: the version that took its place remembers.
    (root / "registry.json").unlink()
    opened = registry.open(root)
    assert [entry.status for entry in opened.entries][2:] == ["rolled_back", "live"]
    again = opened.rollback("ann", "the older one", to=1)
    assert (again.version, again.restores, again.rolls_back) == (5, 1, 4)
    # Version 2 is the model that was version 4: it is out as well.
    with pytest.raises(UsageError, match="any older version"):
        opened.rollback("ann", "and further")


def test_rollback_without_anything_to_go_back_to(tmp_path):
    root = tmp_path / "model"
    opened = registry.open(root)
    with pytest.raises(UsageError, match="nothing to undo"):
        opened.rollback("ann", "why")
    opened.publish(export(tmp_path / "export"), FIRST)
    with pytest.raises(UsageError, match=r"any older version.*1 \(live\)"):
        opened.rollback("ann", "why")
    assert content(root)["current"] == 1


def test_a_pin_holds_what_is_served(tmp_path):
    root = tmp_path / "model"
    with pytest.raises(UsageError, match="nothing to pin"):
        registry.open(root).pin("ann", "audit")
    opened = three(root, tmp_path)
    opened.pin("ann", "audit")
    opened = registry.open(root)
    assert opened.pinned is not None and opened.pinned.version == 3
    with pytest.raises(NotBlessed, match="Version 3 is pinned .* by ann .audit."):
        opened.publish(tmp_path / "export1", FIRST)
    with pytest.raises(NotBlessed, match="safelight unpin"):
        opened.rollback("ann", "why")
    taken = opened.unpin()
    assert taken is not None and taken.why == "audit"
    assert opened.unpin() is None
    assert registry.open(root).publish(export(tmp_path / "new", "f4"), FIRST).version == 4


def test_registry_of_an_older_safelight_is_read(tmp_path):
    root = tmp_path / "model"
    three(root, tmp_path)
    written = content(root)
    del written["pinned"]
    for entry in written["versions"]:
        del entry["restores"], entry["rolls_back"]
    (root / "registry.json").write_text(json.dumps(written))
    champion = registry.open(root).champion()
    assert champion is not None and (champion.version, champion.rolls_back) == (3, None)


# A process that publishes, and dies by SIGKILL at its n-th step on the disk: before the call, or
# in the middle of a copy. Without a step left to die at, it prints the version.
DYING = """
import os, shutil, signal, sys
from pathlib import Path
from pipeline import registry

root, source, deadly = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
step = 0

def deadly_at(call, half=None):
    def wrapped(*args, **kwargs):
        global step
        step += 1
        if step == deadly:
            if half is not None:
                half(*args)
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapped

def half_a_file(source, target):
    Path(target).write_bytes(Path(source).read_bytes()[:2])

os.replace = deadly_at(os.replace)
os.rename = deadly_at(os.rename)
os.fsync = deadly_at(os.fsync)
shutil.copyfile = deadly_at(shutil.copyfile, half_a_file)
opened = registry.open(root)
if source.name == "rollback":
    print(opened.rollback("ann", "why").version)
else:
    origin = registry.Origin("test", "why", "r2", "d2", "c1", "k1", champion=1)
    print(opened.publish(source, origin).version)
"""


def publish_and_die(root: Path, source: Path, step: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", DYING, str(root), str(source), str(step)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_killed_at_every_step(tmp_path, event_log):
    source = export(tmp_path / "export")
    expected = sorted(str(path.relative_to(source)) for path in source.rglob("*"))
    outcomes = []
    for step in range(1, 60):
        root = tmp_path / str(step) / "model"
        registry.open(root).publish(source, FIRST)
        done = publish_and_die(root, source, step)
        for name in (path.name for path in root.iterdir() if path.name.isdecimal()):
            found = sorted(str(path.relative_to(root / name)) for path in (root / name).rglob("*"))
            assert [one for one in found if "published" not in one] == expected, step
            assert (root / name / "saved_model.pb").read_bytes() == b"graph"
        champion = registry.open(root).champion()
        assert champion is not None
        served = max(int(path.name) for path in root.iterdir() if path.name.isdecimal())
        assert champion.version == content(root)["current"] == served
        assert content(root)["intent"] is None
        left = {path.name for path in root.iterdir()} - {"1", "2", "registry.json"}
        assert left <= {".registry.json.new"}
        # What was left is no hindrance to the next push.
        assert registry.open(root).publish(source, FIRST).version == served + 1
        outcomes.append(served)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.strip() == "2"
    assert set(outcomes) == {1, 2}
    assert outcomes == sorted(outcomes), "once published, later deaths must not undo it"
    assert not warnings_in(event_log)


def test_killed_at_every_step_of_a_rollback(tmp_path, event_log):
    sources = [export(tmp_path / f"export{number}", f"f{number}") for number in (1, 2)]
    outcomes = []
    for step in range(1, 60):
        root = tmp_path / str(step) / "model"
        for source in sources:
            registry.open(root).publish(source, FIRST)
        done = publish_and_die(root, Path("rollback"), step)
        champion = registry.open(root).champion()
        assert champion is not None
        served = max(int(path.name) for path in root.iterdir() if path.name.isdecimal())
        assert champion.version == served
        statuses = [entry.status for entry in registry.open(root).entries]
        assert statuses == (
            ["retired", "live"] if served == 2 else ["retired", "rolled_back", "live"]
        )
        assert champion.model_fingerprint == ("f2" if served == 2 else "f1")
        outcomes.append(served)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert set(outcomes) == {2, 3} and outcomes == sorted(outcomes)
    assert not warnings_in(event_log)
