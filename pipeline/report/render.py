"""Jinja2, set up once: autoescape on, an unknown name is an error, and the filters of `formats`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report import formats

_FILTERS = (
    formats.percent,
    formats.points,
    formats.count,
    formats.counted,
    formats.short,
    formats.signed,
    formats.seconds,
    formats.size,
    formats.number,
    formats.moment,
    formats.setting,
)


def render(template: str, context: Mapping[str, Any]) -> str:
    """Returns the page that `template` makes of `context`, with the style sheet inside."""
    return _environment().get_template(template).render(css=_css(), **context)


def replace(path: Path, page: str) -> Path:
    """Writes `page` beside `path`, then renames, so that nobody opens half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    # Class names and paths may hold what UTF-8 can't: shown as an escape, not as an error.
    temporary.write_bytes(page.encode("utf-8", errors="backslashreplace"))
    temporary.replace(path)
    return path


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({function.__name__: function for function in _FILTERS})
    environment.globals["interval"] = formats.interval
    return environment


@lru_cache(maxsize=1)
def _css() -> Markup:
    folder = resources.files("pipeline.report").joinpath("templates")
    return Markup(folder.joinpath("style.css").read_text(encoding="utf-8"))
