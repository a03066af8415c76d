"""The commands that the documentation shows: the command line takes each of them as it stands."""

from __future__ import annotations

import json
import re
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import typer
from PIL import Image

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


@pytest.fixture()
def answering():
    """The URL of a server that gives each image the same answer, in TF Serving's form."""
    row = {"label": "cat", "score": 0.75, "classes": ["cat", "dog"], "probabilities": [0.75, 0.25]}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["instances"]
            body = json.dumps({"predictions": [row] * len(rows)}).encode()
            self.send_response(200 if self.path == "/v1/models/model:predict" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_client_that_the_page_shows_asks_and_logs(answering, tmp_path, monkeypatch, capsys):
    [shown] = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs/serving.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert "http://127.0.0.1:8501" in shown and "share=0.1" in shown
    shown = shown.replace("http://127.0.0.1:8501", answering).replace("share=0.1", "share=1.0")
    Image.new("RGB", (8, 8), "teal").save(tmp_path / "new-photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(shown, "docs/serving.md", "exec"), {})
    assert capsys.readouterr().out == "cat 0.75 {'cat': 0.75, 'dog': 0.25}\n"
    [line] = Path("requests.jsonl").read_text().splitlines()
    assert json.loads(line)["label"] == "cat" and json.loads(line)["image"]


ANCHOR = re.compile(r"\]\((?!https?:)([^)\s#]*)#?([^)\s]*)\)")


def headings(text: str) -> set[str]:
    """Returns the anchors that a page's headings get."""
    plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-") for one in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_leads_somewhere(page):
    for file, anchor in ANCHOR.findall(page.read_text(encoding="utf-8")):
        target = page.parent / file if file else page
        assert target.exists(), file
        assert not anchor or anchor in headings(target.read_text(encoding="utf-8")), anchor
