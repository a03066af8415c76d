"""`safelight config`: every value with where it came from, or every key with what it takes.

Values are shown as TOML, so that they can be copied into a profile or behind `--set`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from pipeline import config as configuration
from pipeline import console
from pipeline.config import Config

# A longer list or table takes a line for each of its entries.
_WIDTH: Final = 48
_NAMES: Final = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "true or false",
    "null": "auto",
}
_BOUNDS: Final = {
    "minimum": "from {}",
    "exclusiveMinimum": "above {}",
    "maximum": "to {}",
    "exclusiveMaximum": "below {}",
}

Schema = Mapping[str, Any]


def command(profile: str | None, overrides: Sequence[str], schema: bool, as_json: bool) -> None:
    """Prints the effective configuration.

    Args:
      profile: as of every command.
      overrides: `section.key=value` each.
      schema: document every key instead.
      as_json: print a list of `{"key", "value", "origin", "type", "help", "fields"}`.

    Raises:
      ConfigError: an unknown profile, section or key, or a value that its key refuses.
    """
    effective = configuration.load(profile, overrides)
    rows = list(_rows(effective))
    if as_json:
        print(json.dumps(rows))
    elif schema:
        _print_schema(rows)
    else:
        table = Table("key", "value", "from", box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(row["key"], escape(toml(row["value"])), escape(row["origin"]))
        console.stdout.print(table)


def _rows(effective: configuration.Effective) -> Iterator[dict[str, Any]]:
    values = effective.config.model_dump(mode="json")
    for name, section in Config.model_fields.items():
        whole: Schema = section.annotation.model_json_schema()  # type: ignore[union-attr]
        for key, schema in whole["properties"].items():
            yield {
                "key": f"{name}.{key}",
                "value": values[name][key],
                "origin": effective.origin(f"{name}.{key}"),
                "type": described(schema, whole),
                "help": schema["description"],
                "fields": dict(_fields(schema, whole)),
            }


def toml(value: Any) -> str:
    """Returns a value as TOML; what is left to be chosen, as `auto`. Long ones take several lines.

    Inline tables of several lines are for reading: TOML 1.0 wants them on one.
    """
    line = _toml(value)
    if len(line) <= _WIDTH or not isinstance(value, list | dict):
        return line
    if isinstance(value, list):
        return "\n".join(["[", *(f"  {_toml(one)}," for one in value), "]"])
    entries = (f"  {_key(key)} = {_toml(one)}," for key, one in value.items())
    return "\n".join(["{", *entries, "}"])


def described(schema: Schema, whole: Schema) -> str:
    """Returns what a key takes, in a few words: `number, above 0`.

    Args:
      schema: of the key, as JSON Schema.
      whole: of its section, with the definitions.
    """
    schema = _resolved(schema, whole)
    if "anyOf" in schema:
        parts = [described(one, whole) for one in schema["anyOf"]]
        return " or ".join(dict.fromkeys(parts))
    if "enum" in schema or "const" in schema:
        return " | ".join(_toml(one) for one in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items", {})
        return f"list of {_plural(described(items, whole))}" if items else "list"
    if kind == "object":
        values = schema.get("additionalProperties")
        if isinstance(values, Mapping):
            return f"table of {_plural(described(values, whole))}"
        return "table"
    bounds = [
        text.format(json.dumps(schema[key])) for key, text in _BOUNDS.items() if key in schema
    ]
    return ", ".join([_NAMES.get(str(kind), "any value"), " ".join(bounds)]).rstrip(", ")


def _fields(schema: Schema, whole: Schema) -> Iterator[tuple[str, str]]:
    """Yields (key, what it takes) of the tables that a key holds."""
    schema = _resolved(schema, whole)
    inner = schema.get("items") or schema.get("additionalProperties")
    for one in schema.get("anyOf", [inner] if isinstance(inner, Mapping) else []):
        yield from _fields(one, whole)
    required = schema.get("required", ())
    for key, value in schema.get("properties", {}).items():
        yield key, described(value, whole) + (" (required)" if key in required else "")


def _resolved(schema: Schema, whole: Schema) -> Schema:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: Schema = whole["$defs"][reference.rpartition("/")[2]]
    return found


def _plural(words: str) -> str:
    plural = {"text": "texts", "integer": "integers", "number": "numbers", "table": "tables"}
    return plural.get(words, words)


def _toml(value: Any) -> str:
    if value is None:
        return "auto"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _key(key: str) -> str:
    bare = key.replace("_", "").replace("-", "").isalnum() and key.isascii()
    return key if bare else json.dumps(key, ensure_ascii=False)


def _print_schema(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        console.stdout.print(
            f"[bold]{row['key']}[/] = {escape(toml(row['value']))}  [dim]{escape(row['type'])}[/]"
        )
        console.stdout.print(f"    {escape(row['help'])}")
        for key, takes in row["fields"].items():
            console.stdout.print(f"      {key}: [dim]{escape(takes)}[/]")
