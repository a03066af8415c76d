"""The commands that the documentation shows: the command line takes each of them as it stands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from pipeline import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("deploy/**/*.md")])]
# Fenced, or indented by four spaces.
BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```|((?:^ {4}.*\n)+)", re.MULTILINE | re.DOTALL)


def commands_in(text: str) -> Iterator[list[str]]:
    """Yields the words behind each `safelight` that begins a command in the text's code blocks."""
    for fenced, indented in BLOCK.findall(text):
        for line in (fenced or indented).replace("\\\n", " ").splitlines():
            if re.search(r"(^|\W)safelight ", line):  # JSON and Python need not be words of a shell
                yield from _commands_of(line)


def _commands_of(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    command: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("();<>|&"):
            if command[:1] == ["safelight"]:
                yield command[1:]
            command = []
        else:
            command.append(word)


SHOWN = [
    pytest.param(words, id=f"{page.name}: {shlex.join(words)}")
    for page in PAGES
    for words in commands_in(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("words", SHOWN)
def test_each_command_is_one_that_the_command_line_takes(words):
    command, left = typer.main.get_command(cli.app), list(words)
    while hasattr(command, "commands"):
        command = command.commands[left.pop(0)]
    # It parses the words, and refuses what it does not know or misses; it runs nothing.
    command.make_context("safelight", left)


def test_commands_are_found_in_code_blocks_alone():
    text = """\
`safelight one` is prose; safelight two too.

```sh
kubectl get pods &                  # safelight three is a comment
found=$(safelight four "a b" --x 'c=["d"]')
safelight five \\
    --y 1 | tee log; safelight six
echo '17 * * * * safelight seven'
```

    safelight eight IMAGE…  # a comment
"""
    assert list(commands_in(text)) == [
        ["four", "a b", "--x", 'c=["d"]'],
        ["five", "--y", "1"],
        ["six"],
        ["eight", "IMAGE…"],
    ]
