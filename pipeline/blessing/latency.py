"""How fast a model answers and how large it is, beside the champion in the same process.

Plain Python: functions that answer go in. docs/serving.md says how the numbers come about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.blessing import turns
from pipeline.blessing.turns import Floats

BATCHES: Final = (1, 32)
# Requests that are not timed: the first ones make TensorFlow optimize the graph.
_WARM: Final = 3
# A slow model gets fewer requests: the median of a few is better than a run that waits for hours.
_SECONDS: Final = 20.0
_FEWEST: Final = 5
_CONFIDENCE_Z: Final = 1.645  # one-sided, 95 %

Serve = Callable[[Sequence[bytes]], object]


def measure(
    model: Serve, champion: Serve | None, images: Sequence[bytes], requests: int
) -> dict[str, dict[str, Any]]:
    """Times requests of 1 and of 32 images, to the model and to the champion in turns.

    What else the machine does slows both alike: each round asks one right behind the other, with
    the first place changing, and the ratio is the median of the rounds' own ratios.

    Args:
      model: answers a batch of encoded images.
      champion: the same; None without one.
      images: real ones; each request takes the next.
      requests: rounds a batch size, fewer for a model so slow that they took over 20 s.

    Returns:
      `batches` of serving_check.json's `latency`.
    """
    found = {}
    for size in BATCHES:
        ours, theirs = _times(model, champion, images, size, requests)
        told = _numbers(ours, size)
        told["champion"] = None if champion is None else _numbers(theirs, size)
        told["ratio"], told["ratio_interval"] = None, None
        if champion is not None:
            told["ratio"], told["ratio_interval"] = _median(ours / theirs)
        found[str(size)] = told
    return found


def _times(
    model: Serve, champion: Serve | None, images: Sequence[bytes], size: int, requests: int
) -> tuple[Floats, Floats]:
    """Returns seconds a request, float64 [rounds] each; the second is empty without a champion."""
    ours, *theirs = turns.timed(
        [model] if champion is None else [model, champion],
        lambda number: [images[(number * size + index) % len(images)] for index in range(size)],
        rounds=requests,
        warm=_WARM,
        seconds=_SECONDS,
        fewest=_FEWEST,
    )
    return ours, theirs[0] if theirs else np.empty(0)


def _numbers(seconds: Floats, size: int) -> dict[str, Any]:
    return {
        "p50_ms": round(1000 * float(np.quantile(seconds, 0.5)), 3),
        "p95_ms": round(1000 * float(np.quantile(seconds, 0.95)), 3),
        "images_per_second": round(size * len(seconds) / float(seconds.sum()), 1),
    }


def _median(ratios: Floats) -> tuple[float, list[float]]:
    """Returns the median and its interval, two one-sided bounds of 95 % by the order statistics.

    As many of n values lie below the median as heads fall in n throws (here by the normal law), so
    nothing is assumed of how the ratios are distributed.
    """
    ordered = np.sort(ratios)
    count = len(ordered)
    reach = _CONFIDENCE_Z * count**0.5 / 2
    low = max(0, int(np.floor(count / 2 - reach)))
    high = min(count - 1, int(np.ceil(count / 2 + reach)))
    return float(np.median(ordered)), [float(ordered[low]), float(ordered[high])]


def size(model_dir: Path) -> int:
    """Returns the bytes of a SavedModel: its graph, variables and assets, not what lies beside."""
    files = [model_dir / "saved_model.pb"]
    files += [path for name in ("variables", "assets") for path in (model_dir / name).rglob("*")]
    return sum(path.stat().st_size for path in files if path.is_file())
