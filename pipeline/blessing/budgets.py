"""What a model may cost beside the champion: the checks of its latency and its size.

Plain Python: the content of serving_check.json in, checks out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.blessing.class_checks import Check, Part


def judge(serving: Mapping[str, Any]) -> Part:
    """Returns the checks for which there are a limit and a champion, and the key `latency`.

    Args:
      serving: the content of serving_check.json.
    """
    found = serving.get("latency")
    if not found:
        return [], {}
    limits = found["limits"]
    checks = []
    if limits["latency_ratio"] is not None and found["champion_size_bytes"] is not None:
        checks.append(_latency(found, limits["latency_ratio"]))
    if limits["size_ratio"] is not None and found["champion_size_bytes"]:
        checks.append(_size(found, limits["size_ratio"]))
    return checks, {"latency": found}


def _latency(found: Mapping[str, Any], limit: float) -> Check:
    """Blocks a model that is shown to be slower: the interval's lower end lies above the limit."""
    measured = {key: one for key, one in found["batches"].items() if one["ratio"] is not None}
    if not measured:
        message = f"The champion's latency could not be measured: {found['message']}"
        return Check("latency", None, None, limit, False, message)
    key = max(measured, key=lambda one: measured[one]["ratio_interval"][0])
    one = measured[key]
    low, high = one["ratio_interval"]
    passed = low <= limit
    images = "1 image" if key == "1" else f"{key} images"
    return Check(
        name="latency",
        value=one["ratio"],
        bound=low,
        threshold=limit,
        passed=passed,
        message=(
            f"A request of {images} takes {one['p50_ms']:.2f} ms (median), {one['ratio']:.2f} "
            f"times the champion's {one['champion']['p50_ms']:.2f} ms (between {low:.2f} and "
            f"{high:.2f} times); at most {limit:g} times is allowed (serving.max_latency_ratio)."
        ),
        interval=(low, high),
    )


def _size(found: Mapping[str, Any], limit: float) -> Check:
    ratio = found["size_bytes"] / found["champion_size_bytes"]
    return Check(
        name="size",
        value=ratio,
        bound=ratio,
        threshold=limit,
        passed=ratio <= limit,
        message=(
            f"The SavedModel has {found['size_bytes'] / 1e6:,.2f} MB, {ratio:.2f} times the "
            f"champion's {found['champion_size_bytes'] / 1e6:,.2f} MB; at most {limit:g} times is "
            "allowed (serving.max_size_ratio)."
        ),
    )
