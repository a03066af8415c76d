"""What a person wrote: `--set` taken apart, and pydantic's findings in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, ValidationError
from typing_extensions import is_typeddict

from pipeline.errors import ConfigError, did_you_mean
from pipeline.lanes import tomllib

# In TOML's words, where pydantic has Python's.
_WANTED: Final = {
    "tuple_type": 'expected a list, as in [1, 2] or ["a", "b"], and of tables [{name = "a"}]',
    "dict_type": "expected a table, as in {name = value}",
}


def override(text: str) -> tuple[str, list[str], Any]:
    """Returns the key of a `--set` as it was written, its parts, and the value.

    Args:
      text: `section.key=value`, the value as in TOML (a bare word is a string). Of a key that holds
        a table, the keys below it follow, also quoted: `train.class_weights."great tit"=2`.

    Raises:
      ConfigError: it is not of this form.
    """
    key, separator, value = text.partition("=")
    parts = _parts(key.strip()) if separator else []
    if len(parts) < 2:
        raise ConfigError(
            f"--set {text!r} is not of the form section.key=value, as in --set train.epochs=3, or "
            "--set evaluate.heads.severity.max_mae=0.1 below a key that holds a table."
        )
    return key.strip(), parts, _value(value.strip())


def placed(held: Any, path: Sequence[str], value: Any) -> Any:
    """Returns `held` with `value` at `path` below it; the value itself for an empty path."""
    if not path:
        return value
    table = dict(held) if isinstance(held, Mapping) else {}
    return {**table, path[0]: placed(table.get(path[0]), path[1:], value)}


def holds_tables(annotation: Any) -> bool:
    """Says whether a key of this type can have keys below it."""
    return any(get_origin(part) is dict for part in (annotation, *get_args(annotation)))


def explain(
    error: ValidationError,
    model: type[BaseModel],
    origins: Mapping[str, str],
    values: Mapping[str, Any],
) -> str:
    """Returns a line for each finding: the key, its value, who set it, and what is wrong.

    Args:
      error: what pydantic found.
      model: the whole configuration's type.
      origins: {section.key: who set it}.
      values: what was read, to name the place in a list or table.
    """
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"][:2])
        origin = origins.get(key, "the configuration")
        message = _WANTED.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        if "." not in key:  # of a section, or of several
            lines.append(_ended(message))
        elif problem["type"] == "extra_forbidden":
            lines.append(f"{_unknown(problem['loc'], model)} ({origin})")
        elif problem["type"] == "string_pattern_mismatch" and (wanted := _described(key, model)):
            lines.append(f"{key} = {problem['input']!r} ({origin}): expected: {wanted}")
        else:
            place = _place(values, problem["loc"])
            lines.append(f"{place} = {problem['input']!r} ({origin}): {_ended(message)}")
    return "\n".join(lines)


def _place(values: Any, location: Sequence[int | str]) -> str:
    """Returns the way to a value as it was written: pydantic's also names the types it tried."""
    parts = []
    for part in location:
        table = values if isinstance(values, Mapping) else {}
        listed = dict(enumerate(values)) if isinstance(values, list | tuple) else {}
        below = {**table, **listed}
        if part in below:
            values = below[part]
            parts.append(str(part))
    return ".".join(parts)


def _described(key: str, model: type[BaseModel]) -> str:
    """Returns what a key's documentation says of its values."""
    section, name = key.split(".")
    held = model.model_fields[section].annotation
    assert isinstance(held, type)
    assert issubclass(held, BaseModel)
    return held.model_fields[name].description or ""


def _parts(key: str) -> list[str]:
    try:
        found: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return []
    parts = []
    while isinstance(found, dict) and len(found) == 1:
        [(name, found)] = found.items()
        parts.append(name)
    return parts


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _unknown(location: Sequence[int | str], model: type[BaseModel]) -> str:
    *above, name = location
    known = _keys(model, above)
    where = ".".join(str(part) for part in above)
    hint = did_you_mean(str(name), known) if known else ""
    return f"{where} has no key {name!r}.{hint}"


def _keys(held: Any, path: Sequence[int | str]) -> Iterable[str]:
    """Returns the keys that the table at `path` below a type may have, as far as they are fixed."""
    if path:
        return next((found for it in _below(held, path[0]) if (found := _keys(it, path[1:]))), ())
    if is_typeddict(held):
        return tuple(held.__annotations__)
    if isinstance(held, type) and issubclass(held, BaseModel):
        return tuple(held.model_fields)
    return next((found for it in get_args(held) if (found := _keys(it, ()))), ())


def _below(held: Any, name: int | str) -> list[Any]:
    """Returns the types that a type may have under a name, or at a place of a list."""
    if isinstance(held, type) and issubclass(held, BaseModel):
        field = held.model_fields.get(str(name))
        return [field.annotation] if field else []
    if get_origin(held) is dict:
        return [get_args(held)[1]]
    return list(get_args(held))


def _ended(message: str) -> str:
    return message if message.endswith((".", "?")) else f"{message}."
