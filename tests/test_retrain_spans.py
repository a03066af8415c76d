"""Spans on a real disk: which there are, which are complete, what a window is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import Ingest, Retrain
from pipeline.errors import SafelightError, UsageError
from pipeline.ingest.scan import scan
from pipeline.retrain import spans, windows
from pipeline.retrain.book import Book
from tests import made

COUNTS = {"blue": 3, "red": 2}


def folders(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)


def found(root: Path, pattern: str) -> list[tuple[int, int, str]]:
    return [
        (one.number, one.version, str(one.path.relative_to(root)))
        for one in spans.find(root, pattern)
    ]


def test_spans_in_order_of_their_numbers(tmp_path):
    folders(tmp_path, "span-10", "span-2", "span-x", "other", ".span-3")
    (tmp_path / "span-4").write_text("a file")
    assert found(tmp_path, "span-{SPAN}") == [(2, 0, "span-2"), (10, 0, "span-10")]
    assert [one.name for one in spans.find(tmp_path, "span-{SPAN}")] == ["span-2", "span-10"]


def test_the_highest_version_counts(tmp_path):
    folders(tmp_path, "1/v1", "1/v10", "1/v9", "2/v1", "3")
    expected = [(1, 10, "1/v10"), (2, 1, "2/v1")]
    assert found(tmp_path, "{SPAN}/v{VERSION}") == expected


def test_dates_are_days_since_1970(tmp_path):
    folders(tmp_path, "1970-01-02", "2026-02-28", "2026-02-30", "2026-2-3")
    numbers = [(1, 0, "1970-01-02"), (20_512, 0, "2026-02-28")]
    assert found(tmp_path, "{YYYY}-{MM}-{DD}") == numbers


def test_refused_places(tmp_path):
    with pytest.raises(UsageError, match="not there"):
        spans.find(tmp_path / "no", "span-{SPAN}")
    folders(tmp_path, "span-1", "span-01")
    with pytest.raises(UsageError, match="both span 1"):
        spans.find(tmp_path, "span-{SPAN}")
    with pytest.raises(UsageError, match="twice"):
        spans.find(tmp_path, "{SPAN}-{SPAN}")


def test_change_is_seen_though_the_copy_kept_old_times(tmp_path):
    made.class_folders(tmp_path / "span-1", COUNTS)
    [span] = spans.find(tmp_path, "span-{SPAN}")
    before = spans.last_change(span)
    file = next((tmp_path / "span-1" / "red").iterdir())
    os.utime(file, (1000, 1000))
    assert spans.last_change(span) >= before > 1_000_000
    assert not spans.marked(span)
    (span.path / spans.SUCCESS).touch()
    assert spans.marked(span)


def taken(book: Book, folder: Path, number: int, now: float = 1.0):
    return book.take(number, folder, scan(str(folder), Ingest()).to_dict(), now)


def test_a_changed_span_is_a_new_revision(tmp_path):
    folder = made.class_folders(tmp_path / "span-1", COUNTS)
    book = Book(tmp_path / "book")
    first = taken(book, folder, 1)
    assert (first.name, first.images) == ("span-1-r1", 5)
    assert taken(book, folder, 1) == first
    made.picture("red", 99).save(folder / "red" / "later.png")
    second = taken(book, folder, 1)
    assert (second.revision, second.images) == (2, 6)
    assert second.fingerprint != first.fingerprint
    assert Book(tmp_path / "book").latest() == [second]


def test_marks_of_the_book_stay(tmp_path):
    book = Book(tmp_path / "book")
    one, two, three = (
        taken(book, made.class_folders(tmp_path / f"span-{number}", COUNTS), number)
        for number in (1, 2, 3)
    )
    book.mark_trained({one.fingerprint})
    book.quarantine(two, "too many broken files")
    again = Book(tmp_path / "book")
    assert [record.number for record in again.usable()] == [1, 3]
    assert again.new() == [three]
    assert again.find(2).reason == "too many broken files"
    with pytest.raises(UsageError, match="There is: 1, 2, 3"):
        again.find(9)


def test_a_damaged_book_is_refused(tmp_path):
    (tmp_path / "spans.json").write_text('{"spans": [{"number": 1}]}')
    with pytest.raises(SafelightError, match="damaged"):
        Book(tmp_path)


def test_settling_starts_anew_with_a_change_and_a_clock_that_jumps_back(tmp_path):
    book = Book(tmp_path)
    assert not book.settled(1, "f", now=1000, seconds=60)
    assert not book.settled(1, "f", now=1030, seconds=60)
    assert not book.settled(1, "g", now=1070, seconds=60)
    assert Book(tmp_path).settled(1, "g", now=1130, seconds=60)
    assert not book.settled(1, "g", now=500, seconds=60)
    assert book.settled(1, "g", now=560, seconds=60)
    assert book.settled(2, "h", now=560, seconds=0)


def test_windows_are_explicit_lists(tmp_path):
    book = Book(tmp_path / "book")
    for number in (1, 2, 5):
        folder = made.class_folders(tmp_path / f"span-{number}", {**COUNTS, "green": number})
        taken(book, folder, number)
    usable = book.usable()

    def numbers(**options) -> list[int]:
        return [record.number for record in windows.resolve(usable, Retrain(**options))]

    assert numbers() == [1, 2, 5]
    assert numbers(window="rolling", rolling=2) == [2, 5]
    assert numbers(window="list", spans=(5, 1, 5)) == [1, 5]
    with pytest.raises(UsageError, match=r"names 3, .*There is: 1, 2, 5"):
        numbers(window="list", spans=(3,))


def test_a_span_that_no_window_takes_is_not_new_for_ever(tmp_path):
    book = Book(tmp_path / "book")

    def take(number: int) -> None:
        folder = made.class_folders(tmp_path / f"span-{number}", {**COUNTS, "green": number})
        taken(book, folder, number)

    def new(**options) -> list[int]:
        return [record.number for record in windows.new(book, Retrain(**options))]

    for number in (1, 2, 4, 5):
        take(number)
    rolling, listed = {"window": "rolling", "rolling": 2}, {"window": "list", "spans": (1, 7)}
    # More may have come than a window takes: they count until it has trained.
    assert new() == new(**rolling) == [1, 2, 4, 5] and new(**listed) == [1]
    book.mark_trained({book.find(number).fingerprint for number in (4, 5)})
    assert new() == [1, 2] and new(**rolling) == []
    # A late one, behind the window; then a newer one.
    take(3)
    assert new(**rolling) == []
    take(6)
    assert new(**rolling) == [6] and new(**listed) == [1]
    book.mark_trained({book.find(1).fingerprint})
    assert new(**listed) == []


def test_one_scan_of_a_window(tmp_path):
    book = Book(tmp_path / "book")
    for number in (1, 2):
        folder = made.class_folders(tmp_path / f"span-{number}", {**COUNTS, "green": number})
        taken(book, folder, number)
    golden = scan(str(made.class_folders(tmp_path / "gold", {"blue": 4, "white": 4})), Ingest())
    window = book.usable()
    listed = windows.members(window, golden)
    assert [(one.name, one.golden, one.judged) for one in listed] == [
        ("span-1-r1", False, False),
        ("span-2-r1", False, True),
        ("golden", True, True),
    ]
    whole = windows.scan_of(str(tmp_path), window, golden)
    assert whole.files == 6 + 7 + 8
    assert whole.per_class == {"blue": 6, "green": 3, "red": 4}
    assert whole.classes == ("blue", "green", "red")
    other = [window[0], replace(window[1], fingerprint="changed")]
    assert windows.scan_of(str(tmp_path), other, golden).fingerprint != whole.fingerprint
    assert windows.scan_of(str(tmp_path), window, None).fingerprint != whole.fingerprint


def test_a_folder_without_a_span_says_what_is_there_instead(tmp_path):
    assert spans.none_found(tmp_path, "span-{SPAN}").endswith("there is no folder yet.")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    said = spans.none_found(tmp_path, "span-{SPAN}")
    assert "retrain.pattern span-{SPAN}" in said
    assert "cat" in said and "dog" in said and "do not match" in said
