"""The curated schema as a proto: completed with the classes and the heads, and read back.

Needs tensorflow_metadata alone, so that every stage can ask a schema for its classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from pipeline.errors import DataRefused, SafelightError, bounded
from pipeline.heads import Head

CLASSES = "classes"  # the string domain that the feature `label` refers to
_HEAD = "head_"  # before a class head's name: the string domain of its feature
# Where the curated text begins to say how features become tensors.
_TENSORS = re.compile(r'tensor_representation_group\s*\{\s*key:\s*""\s*value\s*\{')
FILE_NAME = "schema.pbtxt"  # the name that TFX gives to a schema


def curated() -> str:
    """Returns the text of schemas/image.pbtxt."""
    return resources.files("schemas").joinpath("image.pbtxt").read_text(encoding="utf-8")


def parse(text: str) -> schema_pb2.Schema:
    """Returns the schema of this text."""
    return text_format.Parse(text, schema_pb2.Schema())


def completed(classes: Sequence[str], heads: Sequence[Head] = ()) -> str:
    """Returns the curated schema's text, comments and all, with the classes appended in order.

    Text and not a printed proto: what a proto prints differs between Protobuf's versions, and the
    comments would be lost.

    Args:
      classes: the label's.
      heads: those beside the label. Each gets a feature, a class head with its classes as the
        domain, a regression head with its minimum and maximum.

    Raises:
      DataRefused: fewer than two classes, one twice, or one that isn't valid UTF-8.
      SafelightError: the curated schema lacks the group that says how features become tensors.
    """
    _check_classes(classes)
    text = _with_tensors(curated(), heads) + (
        "\n# The data's classes; a name's position is its label_id.\n" + _domain(CLASSES, classes)
    )
    for head in heads:
        text += f"\n# What the head {head.name} learns: a column of the manifest.\n"
        text += "".join(f"{line}\n" for line in _feature(head))
        if head.kind == "class":
            _check_classes(head.classes)
            text += _domain(_HEAD + head.name, head.classes)
    schema = parse(text)
    assert classes_of(schema) == tuple(classes)
    assert head_classes_of(schema) == {h.name: h.classes for h in heads if h.kind == "class"}
    return text


def _with_tensors(text: str, heads: Sequence[Head]) -> str:
    """Returns the curated text with a dense tensor for each head's feature."""
    if not heads:
        return text
    group = _TENSORS.search(text)
    if group is None:
        raise SafelightError(
            'schemas/image.pbtxt has no tensor_representation_group with the key ""; expected one, '
            "in which the features of train.heads can stand. Put it back."
        )
    tensors = "".join(
        f"\n    tensor_representation {{\n      key: {_quoted(head.feature)}\n      value {{ "
        f"dense_tensor {{ column_name: {_quoted(head.feature)} shape {{}} }} }}\n    }}"
        for head in heads
    )
    return text[: group.end()] + tensors + text[group.end() :]


def _feature(head: Head) -> Iterator[str]:
    yield "feature {"
    yield f"  name: {_quoted(head.feature)}"
    if head.kind == "class":
        yield "  type: BYTES"
        yield f"  domain: {_quoted(_HEAD + head.name)}"
    else:
        bounds = {"min": head.minimum, "max": head.maximum}
        said = "".join(f"{key}: {value!r} " for key, value in bounds.items() if value is not None)
        yield "  type: FLOAT"
        yield f"  float_domain {{ {said}disallow_nan: true disallow_inf: true }}"
    yield "  presence { min_fraction: 1.0 min_count: 1 }"
    yield "  shape {}"
    yield "}"


def _domain(name: str, values: Sequence[str]) -> str:
    lines = "".join(f"  value: {_quoted(value)}\n" for value in values)
    return f"string_domain {{\n  name: {_quoted(name)}\n{lines}}}\n"


def _check_classes(classes: Sequence[str]) -> None:
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


def head_classes_of(schema: schema_pb2.Schema) -> dict[str, tuple[str, ...]]:
    """Returns the classes of each class head beside the label, by the head's name."""
    return {
        domain.name.removeprefix(_HEAD): tuple(domain.value)
        for domain in schema.string_domain
        if domain.name.startswith(_HEAD)
    }


def read_classes(path: Path) -> tuple[str, ...]:
    """Returns the classes of the schema at `path`: its file, or the artifact's directory."""
    return classes_of(_read(path))


def head_classes(path: Path) -> dict[str, tuple[str, ...]]:
    """Returns the classes of the class heads, by name, of the schema at `path`."""
    return head_classes_of(_read(path))


def _read(path: Path) -> schema_pb2.Schema:
    file = path / FILE_NAME if path.is_dir() else path
    return parse(file.read_text(encoding="utf-8"))


def _quoted(text: str) -> str:
    """Returns `text` as a string literal of the text format, with what isn't printable escaped."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    shown = (escapes.get(char) or (char if char.isprintable() else _octal(char)) for char in text)
    return '"' + "".join(shown) + '"'


def _octal(char: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in char.encode("utf-8"))
