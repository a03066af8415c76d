"""The report in a browser: no request, no word on the console, nothing cut off or too faint."""

from __future__ import annotations

import pytest

from pipeline import report
from pipeline.report import judged, render
from pipeline.report.collect import Record
from pipeline.report.page import sections
from tests import reports
from tests.browser import Browser

pytestmark = pytest.mark.browser

# Every text that is seen, against the background behind it, by the formula of WCAG 2.1: AA asks
# for 4.5, or 3 for large text (24 px, or 18.66 px in bold).
CONTRASTS = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return Array.from(canvas.getImageData(0, 0, 1, 1).data).map((v, i) => i < 3 ? v : v / 255);
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const background = (element) => {
    const layers = [];
    for (let it = element; it; it = it.parentElement)
      layers.push(rgba(getComputedStyle(it).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const luminance = (colour) => {
    const part = colour.map((v) => v / 255)
      .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
  };
  document.querySelectorAll('details').forEach((it) => { it.open = true; });
  const low = []; let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, style = getComputedStyle(element);
    if (!walker.currentNode.data.trim() || style.visibility !== 'visible') continue;
    if (!element.getClientRects().length || element.closest('.sr, .skip, title')) continue;
    const behind = background(element);
    const ink = over(rgba(element.closest('svg') ? style.fill : style.color), behind);
    const [a, b] = [luminance(ink), luminance(behind)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    seen += 1;
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5))
      low.push(`${walker.currentNode.data.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return {low, seen};
})()
"""
# What sticks out to the right of the screen, other than in a box that scrolls by itself.
OVERFLOW = """
(() => {
  document.querySelectorAll('details').forEach((it) => { it.open = true; });
  const width = document.documentElement.clientWidth;
  return {
    page: document.documentElement.scrollWidth - width,
    out: Array.from(document.querySelectorAll('main *'))
      .filter((it) => !it.closest('.scroll, svg, .sr'))
      .filter((it) => it.getBoundingClientRect().right > width + 1)
      .map((it) => it.tagName + '.' + it.className + ' ' + it.textContent.trim().slice(0, 30)),
  };
})()
"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def made():
    """A workdir with a complete run, one that failed and one that was killed."""
    workdir, run = reports.shared()
    failed = reports.new_run(workdir, workdir.root, "20250305T000000-bb22")
    reason = "A reason with_a_word_that_is_far_too_long_for_the_screen_of_a_telephone_" + "x" * 80
    failed.write_result(reports.Result(failed.root.name, "failed", reasons=[reason]))
    killed = reports.new_run(workdir, workdir.root, "20250306T000000-cc33")
    paths = [report.write(workdir, it) for it in (run, failed, killed)]
    return Record(workdir, run), [*paths, workdir.index]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_pages_are_whole_and_quiet(browser, made, width, dark):
    for path in made[1]:
        browser.open(path, width=width, dark=dark)
        found = browser.run(OVERFLOW)
        assert found == {"page": 0, "out": []}, path
        seen = browser.run(CONTRASTS)
        assert seen["seen"] > 10 and seen["low"] == [], path
        assert browser.console == []
        outside = [url for url in browser.requests if not url.startswith(("file:", "data:"))]
        assert outside == []
        assert [url for url in browser.requests if url.startswith("file:")] == [path.as_uri()]
        broken = "Array.from(document.images).filter((it) => !it.naturalWidth).length"
        assert browser.run(broken) == 0


def test_long_names_leave_the_counts_on_the_screen(browser, made, tmp_path):
    pair = judged.Pair("American_" + "t" * 40, "Staffordshire_" + "b" * 40, 12, 3)
    page = tmp_path / "report.html"
    told = sections(made[0]) | {"confused": [pair]}
    page.write_text(render.render("report.html.j2", told), encoding="utf-8")
    browser.open(page, width=390)
    beyond = "(() => {const it = document.getElementById('pairs').parentElement; return it."
    assert browser.run(f"{beyond}scrollWidth - it.clientWidth;}})()") == 0


def test_numbers_in_the_dom_are_the_artifacts(browser, made):
    record, (path, *_) = made
    browser.open(path)
    shown = browser.run(
        "Object.fromEntries(Array.from(document.querySelectorAll('[data-metric]'))"
        ".map((it) => [it.dataset.metric, Number(it.querySelector('data').value)]))"
    )
    assert shown == record.verdict["metrics"]
    cells = browser.run(
        "Array.from(document.querySelectorAll('#confusion tbody tr')).map((row) =>"
        "Array.from(row.querySelectorAll('td')).map((cell) => Number(cell.textContent)))"
    )
    assert cells == record.verdict["confusion"]
    assert browser.run("document.title").startswith("Pushed · 20250304T050607-aa11")


def test_the_keyboard_reaches_everything_that_opens_or_scrolls(browser, made):
    browser.open(made[1][0])
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.className") == "skip"
    browser.press("Enter", 13)
    assert browser.run("document.activeElement.id") == "main"
    browser.run("document.querySelector('#training summary').focus()")
    assert browser.run("document.querySelector('#training details').open") is False
    browser.run("document.activeElement.click()")
    assert browser.run("document.querySelector('#training details').open") is True
    assert browser.run(
        "Array.from(document.querySelectorAll('.scroll')).every("
        "(it) => it.tabIndex === 0 && (it.ariaLabel || it.getAttribute('aria-labelledby')))"
    )


def test_the_index_leads_to_each_report_and_back(browser, made):
    record, (path, *_) = made
    browser.open(record.workdir.index)
    links = browser.run("Array.from(document.querySelectorAll('.runs a')).map((it) => it.href)")
    assert path.as_uri() in links and len(links) >= 3
    browser.open(path)
    back = browser.run("document.querySelector('header a').href")
    assert back == record.workdir.index.as_uri()
