"""The tree of errors: exit codes as documented, and lists that stay short."""

from __future__ import annotations

import inspect

import pytest

from pipeline import errors
from pipeline.errors import SafelightError, bounded, did_you_mean

pytestmark = pytest.mark.current

# Part of the command line's contract: scripts depend on these.
EXIT_CODES = {
    "SafelightError": 1,
    "UsageError": 2,
    "ConfigError": 2,
    "NotBlessed": 3,
    "DataRefused": 4,
    "Busy": 5,
}


def test_the_tree_and_its_exit_codes_are_the_documented_ones():
    tree = {
        name: kind.exit_code
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, SafelightError)
    }
    assert tree == EXIT_CODES
    for name, code in EXIT_CODES.items():
        line = next(line for line in (errors.__doc__ or "").splitlines() if name in line)
        assert f"exit {code}" in line


def test_an_error_keeps_its_message_and_its_reasons():
    error = errors.DataRefused("two findings", reasons=("one", "two"))
    assert str(error) == "two findings"
    assert error.reasons == ["one", "two"]
    assert errors.Busy("held").reasons == []


def test_the_nearest_name_is_suggested_else_what_there_is():
    assert did_you_mean("epoch", ["epochs", "seed"]) == " Did you mean 'epochs'?"
    assert did_you_mean("zzz", ["seed", "epochs"]) == " There is: epochs, seed."


def test_a_list_shows_five_and_counts_the_rest():
    assert bounded([]) == ""
    assert bounded(range(5)) == "0, 1, 2, 3, 4"
    assert bounded(range(7)) == "0, 1, 2, 3, 4 and 2 more"


def test_what_others_wrapped_is_found_again():
    try:
        try:
            raise errors.DataRefused("too few images")
        except errors.DataRefused as inner:
            raise RuntimeError("while running 'Write'") from inner
    except RuntimeError as outer:
        found = errors.known_cause(outer)
    assert isinstance(found, errors.DataRefused) and str(found) == "too few images"
    assert errors.known_cause(ValueError("not ours")) is None
