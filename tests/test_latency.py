"""Latency and size: measured in turns, and held to budgets."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.blessing import budgets, latency, turns
from pipeline.variants import timing

IMAGES = [b"%d" % number for number in range(5)]


class Clock:
    """A stopwatch that stands still but for what models take: the machine's load is no matter."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def taking(self, seconds: float) -> Callable[[Any], Any]:
        """Returns a model that takes so long for a request."""

        def serve(batch: Any) -> Any:
            self.now += seconds
            return batch

        return serve


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(turns, "time", made)
    return made


def test_the_ratio_to_the_champion(clock):
    found = latency.measure(clock.taking(0.004), clock.taking(0.002), IMAGES, 15)
    assert found.keys() == {"1", "32"}
    for size, one in found.items():
        assert one["p50_ms"] == pytest.approx(4)
        assert one["champion"]["p50_ms"] == pytest.approx(2)
        assert one["ratio"] == pytest.approx(2)
        low, high = one["ratio_interval"]
        assert low <= one["ratio"] <= high
        assert one["images_per_second"] == pytest.approx(int(size) / 0.004)


def test_without_a_champion(clock):
    one = latency.measure(clock.taking(0.0005), None, IMAGES, 3)["1"]
    assert one["champion"] is None and one["ratio"] is None and one["ratio_interval"] is None


def test_each_request_takes_other_images():
    asked: list[bytes] = []
    latency.measure(asked.extend, None, IMAGES, 2)
    assert set(asked) == set(IMAGES)
    assert len(asked) == (2 + 3) * (1 + 32)  # three requests of each size are not timed


def test_a_slow_model_gets_fewer_requests(clock):
    counted: list[int] = []
    slow = clock.taking(3.0)
    latency.measure(lambda batch: counted.append(len(slow(batch))), None, IMAGES, 1000)
    # Three that are not timed and five in any case; 20 s are over by then.
    assert counted == [1] * (3 + 5) + [32] * (3 + 5)


def test_each_is_asked_several_times_in_a_row_with_the_first_place_changing():
    asked: list[tuple[str, int]] = []
    calls = [lambda number: asked.append(("a", number)), lambda number: asked.append(("b", number))]
    times = turns.timed(calls, lambda n: n, rounds=2, warm=1, seconds=60.0, in_row=2)
    assert [len(one) for one in times] == [4, 4]
    assert [name for name, _ in asked] == list("aabb" + "bbaa" + "aabb")
    assert [number for _, number in asked] == [-2, -1] * 2 + [0, 1] * 2 + [2, 3] * 2


def test_time_that_is_over_ends_the_rounds(clock):
    [found] = turns.timed(
        [clock.taking(0.25)], lambda n: n, rounds=1000, warm=1, seconds=2.0, fewest=2
    )
    assert len(found) == 8
    [found] = turns.timed(
        [clock.taking(0.25)], lambda n: n, rounds=1000, warm=1, seconds=0.0, fewest=3
    )
    assert len(found) == 3


def test_what_goes_in_is_not_timed(clock):
    [found] = turns.timed([clock.taking(0.001)], clock.taking(0.02), rounds=3, warm=0, seconds=9.0)
    assert found == pytest.approx([0.001] * 3)


def test_one_image_of_two_models_by_the_median(clock):
    assert timing.compared(clock.taking(0.0015), clock.taking(0.0005)) == pytest.approx((1.5, 0.5))


def test_the_real_clock_measures_seconds():
    [found] = turns.timed([time.sleep], lambda n: 0.01, rounds=2, warm=0, seconds=9.0)
    assert found.min() > 0.009


def test_only_the_model_itself_is_weighed(tmp_path):
    (tmp_path / "variables").mkdir()
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "saved_model.pb").write_bytes(b"x" * 100)
    (tmp_path / "variables" / "variables.index").write_bytes(b"x" * 20)
    (tmp_path / "assets.extra" / "model.weights.h5").write_bytes(b"x" * 5000)
    assert latency.size(tmp_path) == 120


def served(ratio: float = 1.0, size: int = 1000, champion: int | None = 1000, **limits: Any) -> Any:
    """Returns serving_check.json of a model that is so much slower at 32 images."""

    def one(ratio: float | None) -> dict[str, Any]:
        numbers = {"p50_ms": 2.0 * (ratio or 1), "p95_ms": 9.0, "images_per_second": 500.0}
        return {
            **numbers,
            "champion": None if ratio is None else {**numbers, "p50_ms": 2.0},
            "ratio": ratio,
            "ratio_interval": None if ratio is None else [ratio - 0.1, ratio + 0.1],
        }

    with_champion = champion is not None
    return {
        "latency": {
            "batches": {"1": one(1.0 if with_champion else None),
                        "32": one(ratio if with_champion else None)},
            "size_bytes": size,
            "champion_size_bytes": champion,
            "limits": {"latency_ratio": None, "size_ratio": None, **limits},
            "message": "",
        }
    }  # fmt: skip


def test_a_model_that_is_shown_to_be_slower_is_blocked():
    [check], told = budgets.judge(served(2.0, latency_ratio=1.5))
    assert (check.name, check.passed, check.value) == ("latency", False, 2.0)
    assert check.bound == 1.9 and "32 images" in check.message
    assert told["latency"]["batches"]["32"]["ratio"] == 2.0
    # Where the interval reaches the limit, it may be the noise of the clock.
    [check], _ = budgets.judge(served(1.55, latency_ratio=1.5))
    assert check.passed


def test_a_model_that_is_too_large_is_blocked():
    [check], _ = budgets.judge(served(size=2500, size_ratio=2.0))
    assert (check.name, check.passed, check.value) == ("size", False, 2.5)
    [check], _ = budgets.judge(served(size=1500, size_ratio=2.0))
    assert check.passed


def test_without_limits_or_a_champion_nothing_is_checked():
    assert budgets.judge(served(9.0))[0] == []
    assert budgets.judge(served(9.0, champion=None, latency_ratio=1.5, size_ratio=1.0))[0] == []
    assert budgets.judge({"passed": True}) == ([], {})
