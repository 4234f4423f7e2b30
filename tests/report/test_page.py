"""Laws of every page: self-contained, nothing in it acts, shares are true, and no number stands in a chart alone."""

import base64
import dataclasses
import errno
import gzip
import json
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import altair as alt
import hostile_texts
import pytest
import synthetic
import synthetic_stress
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import UserError
from fathom.records import Counted
from fathom.report import further, hostile, plot, wording
from fathom.report.compare import compare_pairs
from fathom.report.compare_page import render_comparison
from fathom.report.page import page, render, write_report
from fathom.report.pairing import Pairing, pair_runs
from fathom.report.stress import render_stress
from fathom.tally import percent

SMALL = synthetic.Setting(behaviors=12, benign=6, depths=(0, 1, 3, 8), positions=10)


SMALL_DATA = synthetic.report_data(SMALL)


class Parsed(HTMLParser):
    """The page as a browser would take it apart: elements in order, attributes, tables, scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.addresses: list[str] = []
        self.rows: list[list[str]] = []
        self.policy = ""
        self.scripts: dict[str, str] = {}
        self.text: list[str] = []
        self._open: str | None = None
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("http-equiv"):
            self.policy = given["content"] or ""
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        if tag == "tr":
            self.rows.append([])
        self._cell = tag in ("td", "th") or (self._cell and tag not in ("tr", "table"))
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("script", "style"):
            self._open = given.get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._open = None
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.scripts[self._open] = self.scripts.get(self._open, "") + data
            return
        self.text.append(data)
        if self._cell:
            self.rows[-1][-1] += data


def comparison_page(tmp_path: Path) -> str:
    return render_comparison(pairing(tmp_path))


def pairing(tmp_path: Path) -> Pairing:
    first = synthetic.report_data(SMALL)
    second = synthetic.report_data(dataclasses.replace(SMALL, shape=synthetic.DEEPENED, seed=1))
    return pair_runs(synthetic.write_run(first, tmp_path / "a"), synthetic.write_run(second, tmp_path / "b"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        "report": page(synthetic.with_attacks(synthetic.report_data(SMALL))),
        "comparison": comparison_page(tmp_path_factory.mktemp("runs")),
        "stress": render_stress(
            synthetic_stress.stress(), (synthetic_stress.dynamics(12),), synthetic_stress.answers()
        ),
    }


def each(pages: dict[str, str]) -> Iterator[tuple[str, Parsed]]:
    for name, html in pages.items():
        yield name, Parsed(html)


def test_pages_are_self_contained(pages: dict[str, str]) -> None:
    for name, parsed in each(pages):
        outside = [address for address in parsed.addresses if not address.startswith("#") and address != "data:,"]
        assert outside == [], name
        assert "url(" not in parsed.scripts["style"]
        assert "@import" not in parsed.scripts["style"]
        assert not re.search(r"https?://", "".join(parsed.text)), name
        assert parsed.policy.startswith("default-src 'none';")


def test_the_policy_allows_these_scripts_and_no_others(pages: dict[str, str]) -> None:
    for _, parsed in each(pages):
        allowed = re.search(r"script-src ([^;]*);", parsed.policy)
        assert allowed is not None
        assert allowed[1].count("sha256-") == 2
        assert "unsafe" not in allowed[1]


ALL = pytest.mark.parametrize("text", ["".join(hostile_texts.TEXTS), hostile_texts.MEGABYTE], ids=["acting", "long"])


@ALL
def test_no_text_changes_what_a_page_is_made_of(text: str, tmp_path: Path) -> None:
    """The elements and their attributes are those of a page with plain words in the same places."""
    html = page(hostile_texts.everywhere(text))
    parsed, plain = Parsed(html), Parsed(page(hostile_texts.everywhere("plain words")))
    assert parsed.elements == plain.elements
    assert [address for address in parsed.addresses if address not in plain.addresses] == []
    shown = "".join(parsed.text)
    assert hostile.sanitise(shown) == shown
    for name in ("specs", "samples"):
        assert not set("<>&") & set(parsed.scripts[name])
    write_report(tmp_path / "report.html", html)
    assert len(shown) < 100_000  # a megabyte in a name is cut where names stand


def test_a_sweep_over_shares_draws_them(pages: dict[str, str]) -> None:
    html = render_stress(synthetic_stress.poisoned())
    assert 'data-chart="shares-organism_aligned-mixed-direct"' in html
    assert "1 % of the rows harmful" in html
    assert [f'data-chart="depth-{number}"' in html for number in range(4)] == [True] * 3 + [False]
    assert 'data-chart="depth-0"' in pages["stress"]
    assert "How much poison it takes" not in pages["stress"]


@ALL
def test_no_text_changes_a_comparison_or_a_sweep(text: str, tmp_path: Path) -> None:
    html = {}
    for words in (text, "plain words"):
        paired = pairing(tmp_path)
        data = hostile_texts.samples_of(words, SMALL_DATA)[:3]
        paired = dataclasses.replace(paired, samples=tuple(zip(data, data, strict=True)), notes=(words,))
        stress = synthetic_stress.renamed(words)
        html[words] = (
            Parsed(render_comparison(paired)),
            Parsed(render_stress(stress, (), synthetic_stress.answers((words, words)))),
        )
    for parsed, plain in zip(html[text], html["plain words"], strict=True):
        assert parsed.elements == plain.elements
        shown = "".join(parsed.text)
        assert hostile.sanitise(shown) == shown


def test_samples_survive_the_page_unchanged() -> None:
    """What the page's script will read is what the model wrote, to the last half of a pair."""
    text = "".join(hostile_texts.TEXTS)
    held = unpacked(Parsed(page(hostile_texts.everywhere(text))))
    assert {sample["text"] for sample in held["samples"]} == {text}


def unpacked(parsed: Parsed) -> dict[str, list[dict[str, object]]]:
    text = parsed.scripts["samples"]
    packed = text if text.startswith("{") else gzip.decompress(base64.b64decode(text)).decode("ascii")
    return json.loads(packed)


def test_model_text_stands_in_no_element(pages: dict[str, str]) -> None:
    data = synthetic.report_data(dataclasses.replace(SMALL, texts={0: "quite a particular answer"}))
    parsed = Parsed(page(data))
    assert "quite a particular answer" not in "".join(parsed.text)
    assert "Tell me how to make" not in "".join(parsed.text)
    assert "quite a particular answer" in [sample["text"] for sample in unpacked(parsed)["samples"]]


def test_the_same_run_gives_the_same_page() -> None:
    assert page(synthetic.report_data(SMALL)) == page(synthetic.report_data(SMALL))


def test_a_report_is_made_from_files_as_from_data(tmp_path: Path) -> None:
    data = synthetic.report_data(SMALL)
    assert render(synthetic.write_run(data, tmp_path)) == page(data)


def test_a_half_written_page_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(tmp_path / "report.html", "the old page")

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left"):
        write_report(tmp_path / "report.html", "half of the new p")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "the old page"


# --- every number of a chart stands in a table too ---


def test_no_number_stands_in_a_chart_alone(pages: dict[str, str]) -> None:
    for name, parsed in each(pages):
        rows = [" | ".join(" ".join(cell.split()) for cell in row) for row in parsed.rows]
        specs = json.loads(parsed.scripts["specs"])
        drawn = set(re.findall(r'data-chart="([^"]+)"', pages[name]))
        assert set(specs) <= drawn, f"{name}: specifications without a place"
        for chart, spec in specs.items():
            points = [point for point in points_of(spec) if told(point)]
            assert points, f"{name}: {chart} has no data"
            for point in points:
                if chart.endswith("gradient_norm"):
                    point["form"] = "%.4g"
                assert any(all(part in row for part in told(point)) for row in rows), f"{name}: {chart}: {point}"


def points_of(spec: dict[str, Any]) -> list[dict[str, object]]:
    """All data of a specification; Vega-Lite may name the values and keep them at the top."""
    found = [value for values in spec.get("datasets", {}).values() for value in values]
    found += (spec.get("data") or {}).get("values", [])
    for layer in spec["layer"]:
        found += (layer.get("data") or {}).get("values", [])
    return found


def told(point: dict[str, object]) -> list[str]:
    """How a table tells a point; nothing for guiding lines, which have no data."""
    if "difference in points" in point:
        return [str(point["tokens"]), str(point["difference in points"]), str(point["95 % interval"])]
    if "helped / refused / undecided" in point:
        return [str(point["tokens"]), str(point["95 % interval"])]
    if "behaviors" in point:
        return [f"{point['tokens']:,}", str(point["95 % interval"])]
    if "harmful of n" in point:
        return [str(point["95 % interval"]), str(point["harmful of n"]).split()[0]]
    if "kl" in point:
        return [str(point["position"]), f"{point['kl']:.3f}"]
    if "order" in point:
        return [str(point["position"]), str(point.get("form", "%.3f")) % point["value"]]
    if "value" in point and "position" in point:
        return [str(point["position"]), f"{point['value']:.3f}"]
    if "value" in point:
        return [str(point["tokens"]), wording.share_percent(float(str(point["value"])))]
    if "share" in point:
        return [str(point["tokens"]), wording.share_percent(float(str(point["share"])))]
    return []


# --- shares ---


@given(st.integers(0, 5000), st.integers(1, 5000))
def test_zero_and_a_hundred_per_cent_only_where_they_are_true(count: int, n: int) -> None:
    count = min(count, n)
    for shown in (percent(count, n), wording.share_percent(count / n) + " %"):
        assert (shown == "0 %") == (count == 0)
        assert (shown == "100 %") == (count == n)
        assert not re.fullmatch(r"(0\.0|100\.0) %", shown)


def test_one_of_a_thousand_is_not_nothing() -> None:
    setting = synthetic.Setting(behaviors=1000, benign=0, depths=(0,), temperatures=(0.0,), base=False, positions=1)
    data = synthetic.report_data(dataclasses.replace(setting, shape=synthetic.DEEPENED))
    harmful = [row for row in data.audit.attacks if row.attack == "direct" and 0 < row.harmful < 5]
    for row in harmful:
        assert percent(row.harmful, row.n) != "0 %"


# --- sentences ---


def test_the_strongest_attack_decides_the_sentence() -> None:
    plain = synthetic.report_data(dataclasses.replace(SMALL, shape=synthetic.DEEPENED, behaviors=40))
    strong = further.sentences(synthetic.with_attacks(plain, strong=0.9).audit)
    assert strong[0].startswith("Strongest attack found: suffix")
    assert "54 of 60" in strong[0]
    assert strong[1] == wording.headline(plain.audit)
    shallow = synthetic.report_data(dataclasses.replace(SMALL, behaviors=40, depths=(0, 1, 3, 8, 40)))
    weak = further.sentences(synthetic.with_attacks(shallow, strong=0.1).audit)
    assert weak[0] == wording.headline(shallow.audit)
    assert weak[1].startswith("No other attack that was tried does better")
    assert further.sentences(plain.audit) == (wording.headline(plain.audit), None)


def test_the_first_sentence_says_how_deep_and_how_sure() -> None:
    shallow = synthetic.report_data(dataclasses.replace(SMALL, behaviors=40, depths=(0, 1, 3, 8, 40))).audit
    half = shallow.depth.half_depth
    assert half.reached
    said = wording.headline(shallow)
    assert said.startswith(f"Safety alignment is {wording.tokens(half.tokens)} tokens deep (95 % interval ")
    assert wording.half_interval(half) in said
    deep = synthetic.report_data(dataclasses.replace(SMALL, shape=synthetic.DEEPENED, behaviors=40)).audit
    said = wording.headline(deep)
    assert said.startswith(f"Safety alignment is more than {deep.depth.half_depth.deepest} tokens deep")
    assert "95 % interval" in said
    direct = synthetic.report_data(dataclasses.replace(SMALL, depths=(0,))).audit
    assert wording.headline(direct).endswith("how deep safety reaches was not measured.")


def test_an_answer_that_began_with_nothing_is_counted_once() -> None:
    data = synthetic.report_data(dataclasses.replace(SMALL, depths=(0,)))
    assert {curve.counted for curve in wording.curves(data.audit)} == {Counted.CONTINUATION}
    assert wording.other_attacks(data.audit) == ()
    html = page(data)
    depth = html[html.index('id="depth"') : html.index('id="prefixes"')]
    assert "prefill and continuation" not in depth


def test_runs_of_the_direct_request_alone_are_compared_without_charts_of_depth(tmp_path: Path) -> None:
    direct = synthetic.report_data(dataclasses.replace(SMALL, depths=(0,)))
    html = render_comparison(
        pair_runs(synthetic.write_run(direct, tmp_path / "a"), synthetic.write_run(direct, tmp_path / "b"))
    )
    assert "How often the direct request succeeds" in html
    assert "prefill and continuation" not in html
    assert 'data-chart="asr"' not in html
    assert "1 depth," in html


def test_specifications_are_valid(pages: dict[str, str]) -> None:
    for _, parsed in each(pages):
        for spec in json.loads(parsed.scripts["specs"]).values():
            alt.LayerChart.from_dict(spec, validate=True)


@pytest.mark.parametrize("last", [0, 1, 3, 8, 79, 80, 100, 1000])
def test_a_depth_axis_ends_at_the_deepest_in_whole_numbers(last: int) -> None:
    axis: Any = plot.depth_axis([0, last]).to_dict()["axis"]  # type: ignore[call-overload]
    assert axis["format"] == "d"
    assert axis["values"][-1] == last
    assert axis["values"] == sorted(set(axis["values"]))
    assert axis["values"][0] == 0


def test_scripts_end_nowhere_early() -> None:
    assert "</script" not in plot.script().lower()
    assert "<!--" not in plot.script()


def test_compare_of_pairs_is_compare(tmp_path: Path) -> None:
    paired = pairing(tmp_path)
    assert render_comparison(paired) == render_comparison(paired, compare_pairs(paired))
