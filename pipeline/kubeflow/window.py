"""The parameter `spans`: a window of spans, decided on before a run is submitted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import Ingest
from pipeline.errors import SafelightError, UsageError
from pipeline.ingest.scan import Scan, same_listing, scan
from pipeline.retrain import windows
from pipeline.retrain.windows import Member

# What a step is given is one argument of its launcher: 128 KiB on Linux. A span takes some 400
# characters there, with a path of 60.
MOST = 200


def to_parameter(spans: Sequence[Mapping[str, Any]] | None) -> str:
    """Returns the value of the pipeline's parameter `spans`: JSON, "" for no window.

    Raises:
      UsageError: as `parse`.
    """
    if not spans:
        return ""
    return json.dumps(parse(json.dumps([dict(one) for one in spans])))


def parse(text: str) -> list[dict[str, Any]]:
    """Returns the window that the parameter `spans` names, the newest span last.

    Args:
      text: a JSON list of objects with `name`, `path` and `fingerprint`, and where they differ
        from false and true, `golden` and `judged` (`pipeline.retrain.windows.Member`).

    Raises:
      UsageError: it is something else, names a span twice, has too many, or none that trains.
    """
    if not text.strip():
        return []
    try:
        found = [Member(**one).to_dict() for one in json.loads(text)]
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"The parameter spans is not understood ({error}); expected a JSON list of objects "
            'with name, path, fingerprint, golden and judged, as "spans" in a run.json has them.'
        ) from None
    for one in found:
        kinds = {"name": str, "path": str, "fingerprint": str, "golden": bool, "judged": bool}
        wrong = [key for key, kind in kinds.items() if not isinstance(one[key], kind)]
        if wrong or not one["name"] or "/" in one["name"]:
            raise UsageError(
                f"The parameter spans has {one!r}; expected texts as name (without a slash), path "
                "and fingerprint, and true or false as golden and judged."
            )
    if len(found) > MOST:
        raise UsageError(
            f"The parameter spans has {len(found)} spans; a run on the cluster takes {MOST} at "
            "most. Take fewer (retrain.window = rolling), or put old spans together."
        )
    known = [one["name"] for one in found]
    if len(set(known)) < len(known):
        raise UsageError(f"The parameter spans names a span twice: {', '.join(known)}.")
    if all(one["golden"] for one in found):
        raise UsageError("The parameter spans has no span that trains; add one without golden.")
    return found


def look_at(root: str, spans: Sequence[Mapping[str, Any]], options: Ingest) -> Scan:
    """Returns one scan of the whole window, as `safelight retrain` takes it.

    Args:
      root: the folder that the spans lie in.
      spans: from `parse`.
      options: the section `ingest`.

    Raises:
      DataRefused: a span can't be read.
      SafelightError: one is no more what the window was decided on.
    """
    scans, golden = [], None
    for span in spans:
        found = scan(span["path"], options, verify="+" in span["fingerprint"])
        if not same_listing(found.fingerprint, span["fingerprint"]):
            raise SafelightError(
                f"{span['name']} ({span['path']}) has changed since the window was decided: "
                f"expected fingerprint {span['fingerprint'][:16]}, found {found.fingerprint[:16]}. "
                "Decide again: safelight retrain takes it as a new revision."
            )
        if span["golden"]:
            golden = found
        else:
            scans.append(found)
    return windows.joined(root, scans, golden, spans)
