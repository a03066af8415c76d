"""The curated schema as a proto: completed with the classes, and read back.

Needs tensorflow_metadata alone, so that every stage can ask a schema for its classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from pipeline.errors import DataRefused, SafelightError, bounded

CLASSES = "classes"  # the string domain that the feature `label` refers to
FILE_NAME = "schema.pbtxt"  # the name that TFX gives to a schema


def curated() -> str:
    """Returns the text of schemas/image.pbtxt."""
    return resources.files("schemas").joinpath("image.pbtxt").read_text(encoding="utf-8")


def parse(text: str) -> schema_pb2.Schema:
    """Returns the schema of this text."""
    return text_format.Parse(text, schema_pb2.Schema())


def completed(classes: Sequence[str]) -> str:
    """Returns the curated schema's text, comments and all, with the classes appended in order.

    Text and not a printed proto: what a proto prints differs between Protobuf's versions, and the
    comments would be lost.

    Raises:
      DataRefused: fewer than two classes, one twice, or one that isn't valid UTF-8.
    """
    if len(classes) < 2:
        raise DataRefused(
            f"The data has {len(classes)} classes; expected at least two. Received: "
            f"{bounded([repr(name) for name in classes]) or 'none'}. Add images of another class."
        )
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise DataRefused(
            f"The ingest report names a class twice: {bounded(twice)}. Expected each once; "
            "run ingest again."
        )
    domain = schema_pb2.StringDomain(name=CLASSES)
    for name in classes:
        try:
            domain.value.append(name)
        except (UnicodeEncodeError, ValueError, TypeError):
            raise DataRefused(
                f"The class name {name!r} is not valid UTF-8; expected names that are. "
                "Rename the folder or the label."
            ) from None
    values = "".join(f"  value: {_quoted(name)}\n" for name in classes)
    text = (
        f"{curated()}\n# The data's classes; a name's position is its label_id.\n"
        f'string_domain {{\n  name: "{CLASSES}"\n{values}}}\n'
    )
    assert classes_of(parse(text)) == tuple(classes)
    return text


def classes_of(schema: schema_pb2.Schema) -> tuple[str, ...]:
    """Returns the classes in the order of their label_id.

    Raises:
      SafelightError: the schema has no classes.
    """
    for domain in schema.string_domain:
        if domain.name == CLASSES:
            return tuple(domain.value)
    raise SafelightError(
        f"The schema has no string domain {CLASSES!r}; expected one that lists the classes. "
        "Use the schema that ImageSchemaGen wrote."
    )


def read_classes(path: Path) -> tuple[str, ...]:
    """Returns the classes of the schema at `path`: its file, or the artifact's directory."""
    file = path / FILE_NAME if path.is_dir() else path
    return classes_of(parse(file.read_text(encoding="utf-8")))


def _quoted(text: str) -> str:
    """Returns `text` as a string literal of the text format, with what isn't printable escaped."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    shown = (escapes.get(char) or (char if char.isprintable() else _octal(char)) for char in text)
    return '"' + "".join(shown) + '"'


def _octal(char: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in char.encode("utf-8"))
