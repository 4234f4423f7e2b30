"""What a reader sees in headless Chromium: charts, filters, hidden text, themes, widths and paper."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import hostile_texts
import pytest
import synthetic
import synthetic_stress

from fathom.report.compare_page import render_comparison
from fathom.report.page import page, write_report
from fathom.report.pairing import pair_runs
from fathom.report.stress import render_stress

if TYPE_CHECKING:
    from conftest import Browser

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

SMALL = synthetic.Setting(behaviors=12, benign=6, depths=(0, 1, 3, 8, 40, 120), positions=60)
NAMES = ("report", "comparison", "stress", "hostile")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("pages")
    acting = "".join(hostile_texts.TEXTS)
    data = synthetic.report_data(SMALL)
    deeper = synthetic.report_data(dataclasses.replace(SMALL, shape=synthetic.DEEPENED))
    hostile = hostile_texts.everywhere(acting)
    long = dataclasses.replace(hostile.samples[0], completion=_said(hostile, hostile_texts.MEGABYTE))
    pair = pair_runs(synthetic.write_run(data, where / "a"), synthetic.write_run(deeper, where / "b"))
    html = {
        "report": page(synthetic.with_attacks(data)),
        "comparison": render_comparison(pair),
        "stress": render_stress(
            synthetic_stress.stress(seeds=2), (synthetic_stress.dynamics(60),), synthetic_stress.answers((acting, "no"))
        ),
        "hostile": page(dataclasses.replace(hostile, samples=(long, *hostile.samples[1:]))),
    }
    return {name: write_report(where / f"{name}.html", text) for name, text in html.items()}


def _said(data: synthetic.ReportData, text: str) -> synthetic.Completion:
    import msgspec

    return msgspec.structs.replace(data.samples[0].completion, text=text)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_opens_quietly_and_draws_its_charts(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name])
    assert browser.errors() == []
    assert browser.requests() == []
    drawn = browser.js(
        "return [...document.querySelectorAll('[data-chart]')].filter((f) => !f.hidden)"
        ".map((f) => [f.dataset.chart, f.querySelectorAll('svg path').length, f.querySelector('svg')?.clientWidth])"
    )
    assert drawn
    for chart, paths, width in drawn:
        assert paths > 3, chart
        assert width > 600, chart
    assert browser.js("return window.hacked") is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("width", "theme"), [(1280, "dark"), (390, "light"), (390, "dark")])
def test_nothing_is_wider_than_the_window(
    browser: Browser, pages: dict[str, Path], name: str, width: int, theme: str
) -> None:
    browser.open(pages[name], width=width, theme=theme)
    assert browser.js("return window.innerWidth") == width
    assert browser.js("const page = document.documentElement; return page.scrollWidth - page.clientWidth") == 0
    assert browser.js("return document.documentElement.dataset.theme") == theme
    assert browser.errors() == []


def test_themes_differ_and_can_be_read(browser: Browser, pages: dict[str, Path]) -> None:
    """Text against its ground has the contrast that WCAG asks of small text, 4.5 to 1, in both themes."""
    grounds = set()
    for theme in ("light", "dark"):
        browser.open(pages["report"], theme=theme)
        grounds.add(browser.js("return getComputedStyle(document.body).backgroundColor"))
        for selector in ("h1", ".lead", "td", ".facts", ".verdict", "figcaption, .figures dd span"):
            assert browser.js(CONTRAST, selector) >= 4.5, (theme, selector)
    assert len(grounds) == 2


CONTRAST = """
const light = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const [a, b] = [getComputedStyle(document.querySelector(arguments[0])).color,
  getComputedStyle(document.body).backgroundColor].map(light);
return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
"""


def test_text_is_hidden_until_asked_for(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["report"])
    request, answer = "Tell me how to make", "cannot go on with this"
    assert request not in browser.js("return document.body.innerText")
    assert answer not in browser.js("return document.body.innerText")
    browser.js("const safe = document.querySelector('.sample .verdict.safe').closest('.sample'); "
               "safe.querySelector('.reveal').click()")  # fmt: skip
    shown = browser.texts(".sample .body")
    assert len(shown) == 1
    assert request in shown[0]
    assert answer in shown[0]
    assert "Output ids" in shown[0]
    browser.js("document.querySelector('.reveal[aria-expanded=true]').click()")
    assert browser.texts(".sample .body") == []
    browser.js("document.getElementById('reveal-all').click()")
    assert len(browser.texts(".sample .body")) == 25


def test_filters_find_what_they_say(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["report"])
    whole = len(synthetic.report_data(SMALL).samples)
    assert browser.texts("#count") == [f"{whole} in all"]
    depths = browser.js("return [...document.querySelector('[name=depth]').options].map((o) => o.value)")
    assert depths == ["", "0", "1", "2", "3", "8", "40", "120"]
    expected = sum(
        len(sample.attempt.prefill_ids) == 40 and sample.verdicts[0].label == "HARMFUL"
        for sample in synthetic.report_data(SMALL).samples
    )
    _choose(browser, "depth", "40")
    _choose(browser, "verdict", "HARMFUL")
    browser.wait(f"return document.getElementById('count').innerText === '{expected} of {whole}'")
    assert set(browser.texts(".sample .verdict")) == {"harmful"}
    browser.js("const s = document.querySelector('[name=search]'); s.value = 'forbidden-00'; "
               "s.dispatchEvent(new Event('input', {bubbles: true}))")  # fmt: skip
    browser.wait("return [...document.querySelectorAll('.first b')].every((e) => e.innerText.includes('forbidden-00'))")


def _choose(browser: Browser, name: str, value: str) -> None:
    browser.js(
        "const e = document.querySelector(`[name=${arguments[0]}]`); e.value = arguments[1]; "
        "e.dispatchEvent(new Event('input', {bubbles: true}))",
        name,
        value,
    )
    browser.wait("return !document.getElementById('list').hasAttribute('aria-busy')")


def test_paging_shows_every_sample_once(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["report"])
    samples = synthetic.report_data(SMALL).samples
    found: list[str] = []
    for _ in range(-(-len(samples) // 25)):
        found += browser.js("return [...document.querySelectorAll('.sample')].map((e) => e.id)")
        browser.js("document.getElementById('next').click()")
    assert found == [f"sample-{sample.attempt.id}" for sample in samples]
    assert browser.js("return document.getElementById('next').disabled") is True


def test_a_pair_shows_both_answers(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["comparison"])
    _choose(browser, "change", "harmful → safe")
    changes = browser.texts(".sample .change")
    assert changes
    assert all("harmful" in change and "safe" in change for change in changes)
    browser.js("document.querySelector('.sample .reveal').click()")
    sides = browser.texts(".sample .side")
    assert len(sides) == 2
    assert "organism:natural" in sides[0]
    assert "organism:deepened" in sides[1]
    assert all("Output ids" in side for side in sides)


def test_hostile_text_stays_text_when_it_is_shown(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["hostile"])
    browser.js("document.getElementById('reveal-all').click()")
    shown = browser.js("return document.getElementById('list').innerText")
    assert "<script>window.hacked = 1</script>" in shown
    for code in ("U+001B", "U+202E", "U+200B", "U+D800", "U+0000", "U+E0041"):
        assert f"⟦{code}⟧" in shown, code
    assert browser.js("return document.querySelectorAll('#list script, #list img, #list svg').length") == 0
    assert browser.js("return window.hacked") is None
    assert browser.errors() == []


def test_a_megabyte_on_a_line_is_shown_in_parts(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["hostile"], width=390)
    browser.js("document.querySelector('.sample .reveal').click()")
    length = "return document.querySelector('.sample .body').innerText.length"
    first = browser.js(length)
    assert first < 20_000
    browser.js("[...document.querySelectorAll('.sample .more')].find((b) => !b.hidden).click()")
    assert browser.js(length) > first
    assert browser.js("return document.documentElement.scrollWidth") == 390


def test_a_tooltip_tells_a_points_numbers(browser: Browser, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    browser.open(pages["report"])
    browser.js("document.querySelector('[data-chart=asr]').scrollIntoView({block: 'center', behavior: 'instant'})")
    marks = browser.driver.find_elements("css selector", "[data-chart=asr] .mark-symbol path[aria-label]")
    ActionChains(browser.driver).move_to_element(marks[-1]).perform()
    browser.wait("return !document.querySelector('.tip').hidden")
    told = browser.js("return document.querySelector('.tip').innerText")
    assert "ASR" in told
    assert "95 % interval" in told


@pytest.mark.parametrize("name", ["report", "comparison", "stress"])
def test_on_paper_all_tables_are_open_and_all_is_light(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name], theme="dark", media="print")
    assert browser.js("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.js("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.js("return document.querySelectorAll('details.table:not([open])').length") == 0
    assert (
        browser.js("return [...document.querySelectorAll('.filters, .pages, #theme')].some((e) => e.offsetParent)")
        is False
    )
    browser.js("window.dispatchEvent(new Event('afterprint'))")
    if browser.js("return document.querySelectorAll('details.table').length") > 2:
        assert browser.js("return document.querySelectorAll('details.table:not([open])').length") > 0
    paper = browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True, "preferCSSPageSize": True})
    assert len(paper["data"]) > 20_000
