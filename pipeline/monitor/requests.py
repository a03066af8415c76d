"""Logged requests, in either form: the client's JSON lines, or TFRecords of PredictionLog.

An entry has the keys of pipeline/client/request_log.py. TF Serving writes PredictionLogs where a
log collector is built in; a proxy can, too. There the images themselves are logged, and their facts
are worked out here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeGuard

from pipeline import features, images
from pipeline.errors import UsageError, first_line

_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
_FORMAT = re.compile(r"[0-9A-Za-z]{1,16}")
_WRITABLE = re.compile(r"[^\ud800-\udfff]*")  # JSON can escape half a surrogate pair
_ROUNDING = 0.001  # that a probability may be off by


def read(
    logs: Sequence[Path], wanted: set[int | None], model: str, since: float = 0.0
) -> tuple[list[dict[str, Any]], int]:
    """Returns the entries about these versions, and how many others and damaged ones there are.

    Args:
      logs: files in either form, told by their first bytes.
      wanted: versions; None stands for an entry that does not say.
      model: its name.
      since: when the wanted version was published, seconds since 1970: what was answered before,
        and does not say by which version, was another's.

    Raises:
      UsageError: a log can't be read, or none has an entry about this model.
    """
    found: list[dict[str, Any]] = []
    skipped = 0
    for log in logs:
        for entry in _of_records(log) if _is_records(log) else _of_lines(log):
            if _ours(entry, wanted, model) and not _earlier(entry, since):
                found.append(entry)
            else:
                skipped += 1
    if not found:
        raise UsageError(
            f"The logs hold no request to the model {model!r} in the version that is served "
            f"({skipped} other lines). Expected what RequestLog or `safelight request --log` "
            "wrote, or TFRecords of PredictionLog."
        )
    return found, skipped


def _ours(entry: Any, wanted: set[int | None], model: str) -> TypeGuard[dict[str, Any]]:
    """Says whether this is a whole entry about one of these versions of the model."""
    return _is_whole(entry) and entry.get("version") in wanted and entry.get("model") == model


def _earlier(entry: dict[str, Any], since: float) -> bool:
    """Says whether the entry names no version, and is older than the one that is asked about."""
    when = entry.get("t")
    return entry.get("version") is None and _is_number(when) and when < since


def _is_whole(entry: Any) -> TypeGuard[dict[str, Any]]:
    """Says whether all that monitoring uses is there, and of the type that the client writes.

    Anything else would end the command, or make a figure NaN, which is above no bound.
    """
    if not isinstance(entry, dict):
        return False
    facts, shares, version = (entry.get(key) for key in ("facts", "probabilities", "version"))
    return (
        isinstance(facts, dict)
        and all(_is_number(facts.get(name)) for name in features.FLOAT_FACTS)
        and isinstance(shares, dict)
        and all(_is_share(value) for value in (entry.get("score"), *shares.values()))
        and _is_text(entry.get("label"))
        and (version is None or _is_number(version))
        and _is_text(entry.get("sha256"), _SHA256)
        and ("image" not in entry or _is_image(entry["image"], entry.get("format")))
    )


def _is_number(value: Any) -> TypeGuard[float]:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max  # which NaN is not


def _is_share(value: Any) -> bool:
    return _is_number(value) and -_ROUNDING <= value <= 1 + _ROUNDING


def _is_text(value: Any, form: re.Pattern[str] = _WRITABLE) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None


def _is_image(kept: Any, format: Any) -> bool:
    try:
        base64.b64decode(kept)
    except (ValueError, TypeError):
        return False
    return _is_text(format, _FORMAT)


def _is_records(log: Path) -> bool:
    """Whether the file begins as gzip or a TFRecord does: no line of JSON has such bytes."""
    try:
        with open(log, "rb") as file:
            head = file.read(8)
    except OSError as error:
        raise _unreadable(log, error) from None
    return head[:2] == b"\x1f\x8b" or head[4:8] == bytes(4)


def _of_lines(log: Path) -> Iterator[Any]:
    try:
        with open(log, "rb") as file:  # a byte that is no UTF-8 damages its own line alone
            for line in file:
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):
                    yield None
    except OSError as error:
        raise _unreadable(log, error) from None


def _of_records(log: Path) -> Iterator[dict[str, Any] | None]:
    """Yields an entry for each image of each logged request; None for what is none.

    A file that is cut short gives what is whole in it.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError
    from tensorflow_serving.apis import prediction_log_pb2

    packed = log.read_bytes()[:2] == b"\x1f\x8b"
    records = tf.data.TFRecordDataset(str(log), compression_type="GZIP" if packed else "")
    try:
        for record in records.as_numpy_iterator():
            try:
                logged = prediction_log_pb2.PredictionLog.FromString(record)
                yield from _answers(logged.predict_log)
            except (DecodeError, ValueError, LookupError, TypeError, AttributeError):
                yield None
    except tf.errors.DataLossError:
        yield None
    except tf.errors.OpError as error:
        raise _unreadable(log, error) from None


def _answers(logged: Any) -> Iterator[dict[str, Any] | None]:
    """Yields the entries of one PredictLog.

    Raises:
      LookupError, TypeError, ValueError, AttributeError: it has not the inputs and outputs of
        `serving_default`, a row for each image.
    """
    import tensorflow as tf

    asked, answered = logged.request, logged.response
    encoded = tf.make_ndarray(asked.inputs[_there(features.IMAGE, asked.inputs)]).ravel()
    outputs = {name: tf.make_ndarray(value) for name, value in answered.outputs.items()}
    spec = answered.model_spec if answered.HasField("model_spec") else asked.model_spec
    version = spec.version.value if spec.HasField("version") else None
    for index, image in enumerate(encoded):
        names = [name.decode() for name in outputs[features.OUT_CLASSES][index]]
        shares = outputs[features.OUT_PROBABILITIES][index].tolist()
        yield _entry(
            bytes(image),
            model=spec.name,
            version=version,
            label=outputs[features.OUT_LABEL][index].decode(),
            score=float(outputs[features.OUT_SCORE][index]),
            probabilities=dict(zip(names, shares, strict=True)),
        )


def _there(name: str, inputs: Any) -> str:
    # A map of protobuf makes what is asked for.
    if name not in inputs:
        raise KeyError(name)
    return name


def _entry(encoded: bytes, **answer: Any) -> dict[str, Any] | None:
    try:
        image = images.prepare(encoded, min_side=1, max_pixels=images.MOST_PIXELS)
    except images.BadImage:
        return None
    return {
        "sha256": hashlib.sha256(encoded).hexdigest(),
        "format": image.format,
        "facts": asdict(images.facts(image.pixels)),
        "image": base64.b64encode(encoded).decode(),
        **answer,
    }


def _unreadable(log: Path, error: Exception) -> UsageError:
    why = (isinstance(error, OSError) and error.strerror) or first_line(error)
    return UsageError(
        f"The log {log} can't be read ({why}); expected a file of JSON lines, or "
        "TFRecords of PredictionLog."
    )
