"""The pages as a screen reader has them, and whether what is drawn can be told from what is behind it.

By WCAG 2.2 AA, as far as HTML and style sheets say it; `tests/e2e` looks at the pages in a browser.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from html.parser import HTMLParser
from itertools import pairwise, product
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from ibidem.costs import read_prices
from ibidem.lifecycle.invalidation import Criteria
from ibidem.lifecycle.rules import UNBOUNDED
from ibidem.settings import read_settings
from ibidem.storage.statistics import LogFilter
from ibidem.storage.store import Store
from ibidem_lab.report import charts
from ibidem_lab.report.facts import gather
from ibidem_lab.report.next_steps import NextStep
from ibidem_lab.report.page import page
from ibidem_lab.report.what_if import what_if
from ibidem_lab.review.app import _STATIC, Pages
from ibidem_lab.review.session import ReviewSession, review_queue
from tests import logged, reviewed

STYLE = _STATIC["page.css"].read_text("utf-8") + _STATIC["review.css"].read_text("utf-8")
DARK = re.compile(r"@media screen and \(prefers-color-scheme: dark\) \{(.*?\})\s*\}", re.DOTALL)
NAMED = {"a", "button", "summary", "textarea", "select", "nav", "table"}
NEVER_CLOSED = {"meta", "link", "input", "br"}
STEP = NextStep("few-shot", True, "Some are bad", {"questions": "667"}, "show good ones", "there are none")
TEXT, DRAWN = 4.5, 3.0  # the least contrasts of WCAG AA
BEHIND = ("paper", "card", "soft")  # what text without a background of its own stands on


class Element:
    """An element with the text within it that is read."""

    def __init__(self, tag: str, attributes: dict[str, str | None], within: Element | None) -> None:
        self.tag, self.attributes, self.within, self.text = tag, attributes, within, ""

    @property
    def name(self) -> str:
        """What it is called by; only some may be called by their text."""
        label = self.attributes.get("aria-label") or ""
        return label or ("" if self.tag in ("nav", "table", "textarea", "div") else self.text.strip())

    @property
    def is_focusable(self) -> bool:
        """Whether Tab comes to it, or a script or the page may put the focus there."""
        return "tabindex" in self.attributes or self.tag in ("a", "button", "summary", "textarea")

    def around(self) -> Iterator[Element]:
        """The elements that it is in."""
        if self.within is not None:
            yield self.within
            yield from self.within.around()


class Tree(HTMLParser):
    """The elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(text)
        assert [one.tag for one in self._open] == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), self._open[-1] if self._open else None)
        self.elements.append(element)
        if tag not in NEVER_CLOSED:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs), self._open[-1]))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        if not any(one.attributes.get("aria-hidden") == "true" for one in self._open):
            for one in self._open:
                one.text += data

    def of(self, *tags: str) -> list[Element]:
        """Those of these tags."""
        return [one for one in self.elements if one.tag in tags]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tree]:
    """A report with all its sections, one of an empty log, and the review in each of its states."""
    folder = tmp_path_factory.mktemp("pages")
    found = {name: _report(folder / name, lookups) for name, lookups in (("report", 900), ("empty", 0))}
    with closing(Store(f"sqlite:///{folder / 'review'}")) as store:
        reviewed.fill(store)
        found |= _review(store)
    return {name: Tree(text) for name, text in found.items()}


def _report(file: Path, lookups: int) -> str:
    settings, prices, span = read_settings(), read_prices(), LogFilter()
    with closing(Store(f"sqlite:///{file}")) as store:
        if lookups:
            logged.fill(store, lookups_=lookups, entries_=80, judgements_=300)
        facts = gather(store, settings, prices, span, logged.NOW)
        return page(facts, "1.0", [STEP], what_if(store, settings, prices, span))


def _review(store: Store) -> dict[str, str]:
    """Each page of a session."""
    vetted = store.entries.newest(1, "acme")[0].id
    store.correct(vetted, "Under Orders.", reviewed.AT + 100, UNBOUNDED)
    store.invalidations.invalidate(Criteria(entry=vetted), lambda: reviewed.AT + 200)
    session = ReviewSession(review_queue(store, read_settings(), None))
    client = TestClient(Pages(session).app())
    found = {"vetted": client.get("/vetted").text, "problem": client.get("/static/nothing").text}
    while (pair := session.next()) is not None:
        if pair[0].kind == "hit":
            client.post("/judge", data={"pair": pair[0].id, "verdict": "no"}, follow_redirects=False)
            found["doubted"] = client.get("/").text
        else:
            session.skip(pair[0].id)
        found[f"pair {len(found)}"] = client.get("/").text
    session.undo()
    return {**found, "undone": client.get("/").text}


def test_a_screen_reader_finds_its_way(trees: dict[str, Tree]) -> None:
    """Landmarks, headings in order, a name for each control, chart and table, and messages that are read."""
    for where, tree in trees.items():
        assert tree.of("html")[0].attributes["lang"] == "en"
        assert [len(tree.of(tag)) for tag in ("header", "main", "title", "h1")] == [1, 1, 1, 1], where
        assert tree.of("title")[0].text.strip()
        levels = [int(one.tag[1]) for one in tree.of("h1", "h2", "h3", "h4")]
        assert levels[0] == 1
        assert all(below - above <= 1 for above, below in pairwise(levels)), where
        for one in tree.elements:
            role = one.attributes.get("role")
            if one.tag in NAMED or one.is_focusable or role in ("img", "group", "region"):
                assert one.name, (where, one.tag, one.attributes)
        ids = Counter(one.attributes["id"] for one in tree.elements if "id" in one.attributes)
        assert ids.total() == len(ids), ids.most_common(3)
        led = {str(one.attributes["href"]) for one in tree.of("a")}
        assert {one[1:] for one in led if one.startswith("#")} <= ids.keys()
        for one in tree.of("th"):
            assert one.attributes["scope"] in ("col", "row"), (where, one.text)
            assert one.text.strip()
    titles = {tree.of("title")[0].text.partition(":")[0] for tree in trees.values()}
    assert {"7 pairs wait", "All is judged", "That did not work", "Vetted answers"} <= titles


def test_every_chart_is_an_image_with_its_figures_in_a_table(trees: dict[str, Tree]) -> None:
    """A picture says what it shows; its inner texts are not read one by one; the table is in its section."""
    tree = trees["report"]
    figures = tree.of("figure")
    assert len(figures) == 9
    for one in figures:
        section = next(outer for outer in one.around() if outer.tag == "section")
        tables = [table for table in tree.of("table") if section in table.around()]
        label = str(one.attributes["aria-label"])
        assert one.attributes["role"] == "img"
        assert one.text.strip() == ""
        assert tables if label.endswith("below") else label.endswith("under What was saved")
    assert {"What was saved"} <= {one.text for one in tree.of("h2")}


def test_a_message_has_the_focus_once(trees: dict[str, Tree]) -> None:
    """So that it is read when the page has come, as a live region that was there from the start is not."""
    said = {
        name: [one.text for one in tree.elements if "autofocus" in one.attributes]
        for name, tree in trees.items()
    }
    assert said.pop("undone") == ["Undone."]
    (doubted,) = said.pop("doubted")
    assert doubted.startswith("Noted: not the same answer.")
    assert [texts for texts in said.values() if texts] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_that_is_said_can_be_read(scheme: str) -> None:
    """Texts have 4.5 : 1 to whatever they stand on; edges of controls, the focus and charts 3 : 1."""
    palette = colors(scheme)
    texts, drawn = set(), set()
    for selector, body in re.findall(r"([^{}]+)\{([^{}]*)\}", re.sub(r"/\*.*?\*/|@[^{;]*\{", "", STYLE)):
        color = re.search(r"(?<![\w-])color: var\(--(\w+)\)", body)
        ground = re.search(r"background: var\(--(\w+)\)", body)
        grounds = (ground[1],) if ground else BEHIND
        if (color or ground) and "::" not in selector:
            texts |= set(product([color[1] if color else "ink"], grounds))
        if re.search(r"\b(button|textarea)|:focus", selector):
            lines = re.findall(r"(?:border|border-color|outline):[^;]*var\(--(\w+)\)", body)
            drawn |= set(product(lines, ("paper", "card")))
    drawn |= {(one[6:-1], "paper") for one in (charts.ACCENT, charts.MIDDLE, charts.INK)}
    drawn.add((charts.MIDDLE[6:-1], charts.HOLLOW[6:-1]))  # the edge of what is hollow

    assert {("quiet", "paper"), ("paper", "accent"), ("ink", "mark"), ("bad", "card")} <= texts
    assert {("accent", "paper"), ("middle", "card")} <= drawn
    assert {pair for pair in texts if contrast(*(palette[one] for one in pair)) < TEXT} == set()
    assert {pair for pair in drawn if contrast(*(palette[one] for one in pair)) < DRAWN} == set()


def colors(scheme: str) -> dict[str, str]:
    """The variables of the style sheets; the dark scheme overrides those of the light one."""
    dark, light = "".join(DARK.findall(STYLE)), DARK.sub("", STYLE)
    found = dict(re.findall(r"--(\w+): (#\w{6})\b", light))
    return found if scheme == "light" else {**found, **dict(re.findall(r"--(\w+): (#\w{6})\b", dark))}


def contrast(one: str, other: str) -> float:
    """The contrast of two colors as WCAG defines it, 1 to 21."""
    darker, lighter = sorted(map(_luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: str) -> float:
    parts = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_contrast_is_that_of_the_standard() -> None:
    """At both ends, and at the gray that just fails on white."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#ffffff", "#ffffff") == 1.0
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
