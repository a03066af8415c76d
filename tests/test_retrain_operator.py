"""What an operator decides: rollback, pin, unpin, and the release of a span."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipeline import registry
from pipeline.commands import rollback
from pipeline.errors import NotBlessed, SafelightError, UsageError
from pipeline.retrain.book import Book
from pipeline.retrain.evidence import Evidence
from pipeline.runs import RunDir
from pipeline.workdir import open_workdir
from tests.spanned import decided, kinds, pushed, rounds, span, take
from tests.test_registry import FIRST, export


@pytest.fixture
def place(tmp_path):
    return pushed(tmp_path)


def test_rollback_pin_and_unpin_commands(tmp_path, place, capsys):
    root = place.serving("model")
    registry.open(root).publish(export(tmp_path / "e2", "f2"), replace(FIRST, run_id="r2"))
    data = tmp_path / "data"
    span(data, 7)
    take(rounds(place, data))
    with pytest.raises(UsageError, match="reason"):
        rollback.rollback(place.root, " ")
    with pytest.raises(UsageError, match="Span 9 is not known"):
        rollback.rollback(place.root, "why", quarantine=9)
    assert registry.read(root).current == 2
    assert rollback.pin(place.root, "audit") == 0
    with pytest.raises(NotBlessed, match="pinned"):
        rollback.rollback(place.root, "why")
    rollback.unpin(place.root)
    capsys.readouterr()
    assert rollback.rollback(place.root, "blurred", quarantine=7, as_json=True) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["version"], printed["restores"], printed["rolls_back"]) == (3, 1, 2)
    assert printed["by"] == rollback.operator() and printed["why"] == "blurred"
    assert Book(place.root / "retrain").find(7).state == "quarantined"
    assert kinds(place) == ["pin", "unpin", "quarantine", "rollback"]


@pytest.fixture
def blamed(tmp_path, place):
    """The workdir with two more versions, the last of which span 7 has spoilt."""
    for number in (2, 3):
        source = export(tmp_path / f"e{number}", f"f{number}")
        origin = replace(FIRST, run_id=f"r{number}")
        registry.open(place.serving("model")).publish(source, origin)
    span(tmp_path / "data", 7)
    take(rounds(place, tmp_path / "data"))
    return place


def blame(place, **more) -> tuple[int | None, str, list[str]]:
    """Rolls back because of span 7; returns what is served, the span's state, and the ledger."""
    assert rollback.rollback(place.root, "blurred", quarantine=7, **more) == 0
    return stands(place)


def stands(place) -> tuple[int | None, str, list[str]]:
    served = registry.read(place.serving("model")).current
    return served, Book(place.root / "retrain").find(7).state, kinds(place)


def test_a_refused_rollback_quarantines_nothing(blamed):
    with pytest.raises(UsageError, match="version 3"):
        blame(blamed, to=3)
    rollback.pin(blamed.root, "audit")
    with pytest.raises(NotBlessed, match="pinned"):
        blame(blamed)
    assert stands(blamed) == (3, "taken", ["pin"])


def test_a_span_that_can_not_be_quarantined_leaves_what_is_served(blamed):
    in_the_way = blamed.root / "retrain" / ".spans.json.new"
    in_the_way.mkdir()
    with pytest.raises(SafelightError, match="nothing has changed"):
        blame(blamed)
    assert stands(blamed) == (3, "taken", [])
    in_the_way.rmdir()
    assert blame(blamed) == (4, "quarantined", ["quarantine", "rollback"])


def test_a_rollback_that_died_before_it_published_is_made_by_the_same_command(blamed, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(registry.Registry, "rollback", dies)
        with pytest.raises(KeyboardInterrupt):
            blame(blamed)
    assert stands(blamed) == (3, "quarantined", ["quarantine"])
    assert blame(blamed) == (4, "quarantined", ["quarantine", "quarantine", "rollback"])


@pytest.mark.parametrize("to", [None, 2])
def test_a_rollback_that_died_behind_its_push_goes_back_no_further(blamed, monkeypatch, to, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(registry.Registry, "commit", dies)
        with pytest.raises(KeyboardInterrupt):
            blame(blamed, to=to)
    served, state, told = blame(blamed, to=to)
    assert (served, state, told[-1]) == (4, "quarantined", "rollback")
    assert "not recorded" in capsys.readouterr().err
    statuses = [one.status for one in registry.read(blamed.serving("model")).entries]
    assert statuses == ["retired", "retired", "rolled_back", "live"]
    # Recorded now: who asks once more means it.
    assert rollback.rollback(blamed.root, "blurred") == 0
    assert registry.read(blamed.serving("model")).current == 5


def test_a_ledger_that_can_not_be_written_ends_no_command(blamed, capsys):
    ledger = blamed.root / "retrain" / "ledger.jsonl"
    ledger.mkdir()
    assert blame(blamed, as_json=True) == (4, "quarantined", [])
    said = capsys.readouterr()
    assert json.loads(said.out)["version"] == 4
    assert "the rollback is done, and the ledger does not have it" in said.err
    assert rollback.pin(blamed.root, "audit") == 0
    assert rollback.unpin(blamed.root) == 0
    assert rollback.release(blamed.root, 7, "looked") == 0
    ledger.rmdir()
    assert blame(blamed) == (4, "quarantined", ["quarantine", "rollback"])


def dies(*given, **more):
    raise KeyboardInterrupt


def test_commands_without_a_model(tmp_path):
    workdir = open_workdir(tmp_path / "work")
    with pytest.raises(UsageError, match="Nothing has been pushed"):
        rollback.rollback(workdir.root, "why")
    for name in ("a", "b"):
        registry.open(workdir.serving(name)).publish(export(tmp_path / name), FIRST)
    with pytest.raises(UsageError, match="--model-name. There is: a, b"):
        rollback.pin(workdir.root, "why")
    assert rollback.pin(workdir.root, "why", model="b") == 0


def test_a_span_is_released_by_an_operator_and_not_doubted_again(tmp_path, place):
    data = tmp_path / "data"
    span(data, 4)
    one = rounds(place, data)
    book = take(one)
    for wrong, said in ((4, "in no quarantine"), (9, "Span 9 is not known")):
        with pytest.raises(UsageError, match=said):
            rollback.release(place.root, wrong, "looked at them")
    doubtful = {"images": 8, "moved": 0.1, "chance": 0.2}
    labels = {"labelled": 200, "contradicted": 150, "usual": 0.05, "usual_images": 200}
    keep = Evidence(one.folder, place, RunDir(place.runs / "r1"), one.config)
    file = one.folder / "evidence" / keep._name(book.find(4))
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({**doubtful, "labels": labels}))
    put_aside = decided(one)
    assert "labels look wrong" in put_aside.quarantined[0]
    assert Book(one.folder).find(4).state == "quarantined"
    with pytest.raises(UsageError, match="reason"):
        rollback.release(place.root, 4, "")
    assert rollback.release(place.root, 4, "they are right") == 0
    again = decided(one)
    assert again.quarantined == ()
    assert [record.number for record in Book(one.folder).new()] == [4]
    assert kinds(place) == ["quarantine", "decision", "release", "decision"]


def test_a_span_that_could_not_be_read_is_not_released(tmp_path, place):
    data = tmp_path / "data"
    (data / "span-1" / "red").mkdir(parents=True)
    (data / "span-1" / "_SUCCESS").touch()
    decided(rounds(place, data))
    with pytest.raises(UsageError, match="Mend its files"):
        rollback.release(place.root, 1, "why")
