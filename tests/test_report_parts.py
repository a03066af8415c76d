"""What the report is made of: charts, numbers as people read them, images found by their place."""

from __future__ import annotations

import base64
import io
import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import images
from pipeline.features import TRAIN
from pipeline.ingest import wire
from pipeline.report import diagrams, drawing, figures, formats, pictures, records, seen, shares
from pipeline.report.collect import without_secrets
from pipeline.report.figures import Series
from tests import graphs
from tests import pictures as files

PLAIN = {"augment": [], "seed": 17}


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_photograph_is_shown_without_decoding_all_of_it(mode, monkeypatch):
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)).convert(mode)
    photograph = coarse.resize((1200, 900), Image.Resampling.BICUBIC)
    whole = files.encoded(photograph, "JPEG", quality=95)
    shown = _levels(pictures.of_file(whole))
    expected = _levels(pictures.of_pixels(images.prepare(whole).pixels))
    assert shown.shape == expected.shape == (84, 112, 3)
    assert np.abs(shown - expected).mean() < 2
    turned = photograph.getexif()
    turned[0x0112] = 6
    portrait = pictures.of_file(files.encoded(photograph, "JPEG", exif=turned))
    assert (portrait.width, portrait.height) == (84, 112)
    assert pictures.of_file(whole[: len(whole) // 2]) is None
    monkeypatch.setattr(images, "prepare", None)  # decodes everything
    assert pictures.of_file(whole) is not None


def _levels(picture):
    data = base64.b64decode(picture.source.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_records_are_found_by_place_across_shards(tmp_path):
    graphs.write_split(tmp_path, TRAIN, {"blue": 5, "red": 4}, shards=2)
    names = []
    for path in sorted((tmp_path / "Split-train").iterdir()):
        count = 5 if path.name.startswith("data_tfrecord-00000") else 4
        found = records.read(tmp_path, TRAIN, range(len(names), len(names) + count))
        names += [found[place].id for place in sorted(found)]
    assert sorted(names) == sorted(
        f"{label}/{number}".encode()
        for label, count in (("blue", 5), ("red", 4))
        for number in range(count)
    )
    found = records.read(tmp_path, TRAIN, [8, 0, 99])
    assert sorted(found) == [0, 8]
    assert found[8].id == names[8] and found[8].encoded.startswith(b"\x89PNG")
    assert records.read(tmp_path, "test", [0]) == {}


def test_a_truncated_or_foreign_record_does_not_pass_for_an_image(tmp_path):
    graphs.write_split(tmp_path, TRAIN, {"blue": 3}, shards=1)
    [path] = (tmp_path / "Split-train").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 50])
    assert sorted(records.read(tmp_path, TRAIN, range(3))) == [0, 1]
    with pytest.raises((wire.WireError, KeyError)):
        path.write_bytes(whole[:12] + b"\xff" * (len(whole) - 12))
        records.read(tmp_path, TRAIN, [0])


def test_what_the_model_sees_is_its_graphs_and_is_remembered(tmp_path):
    encoded = [graphs.encoded("red", number, size=48) for number in range(2)]
    graph, cache = graphs.transform_graph(size=16), tmp_path / "cache"
    found = seen.of(graph, encoded, cache, PLAIN)
    assert found.augmented == []
    assert [(it.width, it.height, it.pixelated) for it in found.pictures] == [(16, 16, True)] * 2
    assert 0 <= found.low < found.high <= 1
    [kept] = cache.iterdir()
    kept.write_text(kept.read_text().replace('"low": ', '"low": 7'))
    assert seen.of(graph, encoded, cache, PLAIN).low > 7, "it is read back, not made again"
    assert seen.of(graph, encoded[:1], cache, PLAIN).low < 1, "other images are another question"
    assert len(list(cache.iterdir())) == 2


def test_augmentation_is_shown_as_training_does_it_and_remembered_apart(tmp_path):
    encoded = [graphs.encoded("red", number, size=48) for number in range(4)]
    graph, cache = graphs.transform_graph(size=16), tmp_path / "cache"
    turned = {"augment": [{"name": "rotation", "factor": 0.5}], "seed": 17}
    found = seen.of(graph, encoded, cache, turned)
    assert len(found.augmented) == 4
    assert [it.source for it in found.augmented] != [it.source for it in found.pictures]
    assert found.pictures == seen.of(graph, encoded, cache, PLAIN).pictures
    assert seen.of(graph, encoded, cache, turned) == found
    other = seen.of(graph, encoded, cache, {**turned, "seed": 18})
    assert other.augmented != found.augmented
    assert len(list(cache.iterdir())) == 3


def test_only_the_newest_of_what_was_seen_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(seen, "_KEPT", 2)
    graph = graphs.transform_graph(size=16)
    for number in range(3):
        seen.of(graph, [graphs.encoded("red", number)], tmp_path, PLAIN)
    assert len(list(tmp_path.glob("seen-*.json"))) == 2


def test_a_heat_map_has_a_cell_for_each_count():
    drawn = figures.heat_map("A & B", np.array([[0.9, 0.1, 0], [0, 1, 0], [0, 0, 0]]))
    assert drawn.count("M0 0h1") == drawn.count("M1 0h1") == drawn.count("M1 1h1") == 1
    assert drawn.count("h1v1h-1z") == 3
    assert 'class="d5"' in drawn and 'class="h2"' in drawn
    assert "A &amp; B" in drawn


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_enclose_their_values_and_are_few(low, span):
    ticks = drawing.nice_ticks(low, low + span)
    unseen = 1e-9 * max(abs(low), abs(low + span), span, 1)  # thinner than any line drawn
    assert ticks[0] <= low + unseen
    assert ticks[-1] >= low + span - unseen
    assert 2 <= len(ticks) <= 8
    assert all(b > a for a, b in itertools.pairwise(ticks))


def test_a_curve_leaves_out_what_is_no_number():
    line = Series("a & b", [1.0, math.nan, None, 3.0])
    drawn = figures.line_chart("t", [1, 2, 3, 4], [line], formats.short, "epoch")
    assert drawn.count("<circle") == 2 and "a &amp; b" in drawn and "nan" not in drawn
    assert figures.line_chart("t", [1], [Series("a", [None])], formats.short, "epoch") == ""


def test_a_line_without_a_value_moves_no_name_off_the_chart():
    # Accuracies near 1: a line that has none would end at 0, far below what is drawn.
    lines = [Series("champion", [None, None]), Series("model", [0.97, 0.99])]
    drawn = figures.line_chart("t", [0, 1], lines, formats.percent_tick, "strength")
    names = re.findall(r'class="name s(\d)" x="[^"]*" y="([^"]*)">(\w*)', drawn)
    assert [(number, name) for number, _, name in names] == [("1", "model")]
    assert 0 < float(names[0][1]) < drawing.HEIGHT


def test_a_histogram_has_a_bar_for_each_bin_and_a_line_at_zero():
    drawn = figures.histogram("Errors", [1, 0, 4], [-1.0, -0.3, 0.3, 1.0], formats.short)
    bars = re.search(r'class="bars" d="([^"]*)"', drawn)
    assert bars is not None and bars[1].count("M") == 3
    assert 'class="best"' in drawn and 'aria-label="Errors"' in drawn


@pytest.mark.parametrize("highest", [1, 2, 3, 10, 23, 9000])
def test_what_stands_at_a_line_of_a_histogram_is_where_the_line_is(highest):
    drawn = figures.histogram("Errors", [highest, 0], [-1.0, 0.0, 1.0], formats.short)
    ticks = re.findall(r'M44.0 ([\d.]+)H348.0"/><text class="tick"[^>]*>([\d,]+)<', drawn)
    told = {int(text.replace(",", "")): float(y) for y, text in ticks}
    top, base = min(told.values()), told[0]
    assert len(told) == len(ticks) >= 2
    for value, y in told.items():
        assert y == pytest.approx(base + (top - base) * value / max(told), abs=0.11)


def test_a_reliability_diagram_has_a_point_for_each_bin_with_images():
    bins = [diagrams.Bin(0, 0.5, 0.4, 0.5, 10), diagrams.Bin(0.5, 1, None, None, 0)]
    drawn = diagrams.reliability("R & D", bins, formats.percent_tick)
    assert drawn.count("<circle") == 1 and "10 images: 40% sure, 50% right" in drawn
    assert "R &amp; D" in drawn and 'class="best"' in drawn


def test_spreads_are_outlines_over_common_bins():
    named = [("before", [0.5, 0.5]), ("now", [1.0, 0.0])]
    drawn = diagrams.spreads("Moved", [0.0, 1.0, 2.0], named, formats.short)
    assert drawn.count('class="line s') == 2 and "100%" in drawn


def test_shares_have_exact_intervals():
    share = shares.of(9, 10)
    assert (round(share.low, 4), round(share.high, 4)) == (0.5550, 0.9975)
    assert shares.of(0, 0) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.964, "96.4%"), (1.0, "100.0%"), (0.9996, "99.96%"), (0.99999, "> 99.99%"), (0.0, "0.0%")],
)
def test_percent_never_rounds_a_mistake_away(value, text):
    assert formats.percent(value) == text


def test_an_interval_is_rounded_outwards():
    assert formats.interval(0.9437, 0.9712) == "94.3–97.2%"
    assert formats.interval(0.0, 1.0) == "0.0–100.0%"


@pytest.mark.parametrize(
    ("value", "text"), [(0.42, "0.4 s"), (12.4, "12 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_durations_are_short(value, text):
    assert formats.seconds(value).replace("\u202f", " ") == text


def test_passwords_in_urls_are_blotted_out():
    assert without_secrets("mysql://u:p@h/d and http://x") == "mysql://u:***@h/d and http://x"


def test_a_figure_just_below_a_thousand_is_no_power_of_ten():
    assert (formats.short(999.4), formats.short(999.6)) == ("999", "1,000")
    assert formats.size(999_600) == "1\u202fMB" and formats.size(999_400) == "999\u202fkB"
