"""What a cache key is made of: sources, configuration, and any JSON value.

TFX hashes a component's execution properties, not the code behind a dotted path. So each node
carries the fingerprint of its own sources: a change in one module re-runs the nodes that import
it, and nothing else.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

PACKAGES = ("pipeline", "components", "schemas")

# What these and what lies below them hold can't change an artifact: configuration arrives as
# values, and the others talk.
EXCLUDED = ("pipeline.config", "pipeline.errors", "pipeline.events", "pipeline.workdir")


def of_value(value: Any) -> str:
    """Returns 16 hexadecimal digits for a JSON-serializable value, whatever its keys' order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_path(path: Path) -> str:
    """Returns 16 hexadecimal digits for the content of a file, or of a directory's files."""
    digest = hashlib.sha256()
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in filter(Path.is_file, files):
        digest.update(f"{file.relative_to(path)}\n{file.stat().st_size}\n".encode())
        with open(file, "rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


@cache
def of_sources(*modules: str) -> str:
    """Returns 16 hexadecimal digits for these modules and all of ours that they import.

    Args:
      modules: dotted names (`pipeline.transform`) or package data (`schemas/image.pbtxt`).
    """
    digest = hashlib.sha256()
    for name, source in sorted(_closure(modules).items()):
        digest.update(f"{name}\n{len(source)}\n".encode() + source)
    return digest.hexdigest()[:16]


def _closure(modules: tuple[str, ...]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found or _excluded(name):
            continue
        source = _read(name)
        if source is None:
            continue
        found[name] = source
        if "/" not in name:
            waiting.extend(_imported(source))
    return found


def _excluded(name: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in EXCLUDED)


def _read(name: str) -> bytes | None:
    """Returns the source of a module or data file of ours; None for a name that is neither."""
    if "/" in name:
        package, _, path = name.partition("/")
        return resources.files(package).joinpath(path).read_bytes()
    package, *parts = name.split(".")
    if not parts:
        return None
    *folders, last = parts
    place = resources.files(package)
    for folder in folders:
        place = place.joinpath(folder)
    for candidate in (place.joinpath(f"{last}.py"), place.joinpath(last).joinpath("__init__.py")):
        if candidate.is_file():
            return candidate.read_bytes()
    return None


@cache  # the nodes share most of their modules: each is parsed once
def _imported(source: bytes) -> tuple[str, ...]:
    found: list[str] = []
    for node in _statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            # `from pipeline import x` may name a module, `from pipeline.x import y` names one.
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found += [name for name in names if name.split(".")[0] in PACKAGES]
    return tuple(found)


def _statements(module: ast.Module) -> Iterator[ast.AST]:
    """Yields a module's statements, also those within others.

    What statements are made of holds no import, and is nine tenths of the tree.
    """
    waiting: list[ast.AST] = list(module.body)
    while waiting:
        statement = waiting.pop()
        yield statement
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting += getattr(statement, block, ())
