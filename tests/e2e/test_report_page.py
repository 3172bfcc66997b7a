"""The report in a real browser: nothing runs, nothing overflows, nothing overlaps, in light and dark."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ibidem.costs import read_prices
from ibidem.settings import read_settings
from ibidem.storage.statistics import LogFilter
from ibidem.storage.store import Store
from ibidem_lab.report.facts import gather
from ibidem_lab.report.page import page
from tests import logged
from tests.logged import NOW

pytestmark = pytest.mark.slow
PLANTED = "<script>document.title='ran'</script>\"><img src=x onerror=\"document.title='ran'\">" + "W" * 300

# The charts that are seen, and where their labels are.
CHARTS = """() => {
  const seen = svg => svg.getClientRects().length
  const place = text => {
    const {left, right, top, bottom} = text.getBoundingClientRect()
    return {text: text.textContent, left, right, top, bottom}
  }
  const chart = svg => ({
    width: svg.getBoundingClientRect().width,
    height: svg.getBoundingClientRect().height,
    marks: svg.querySelectorAll("[class*=role-mark] path, [class*=role-mark] line").length,
    labels: [...svg.querySelectorAll("text:not([opacity='0'])")].map(place),
  })
  return [...document.querySelectorAll("figure")].map(
    figure => [...figure.querySelectorAll("svg")].filter(seen).map(chart))
}"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages on a cache of weeks, on one of few lookups and hostile texts, and on an empty one."""
    return {
        name: write(tmp_path_factory.mktemp(name), lookups, name == "hostile")
        for name, lookups in (("weeks", 4_000), ("hostile", 60), ("empty", 0))
    }


def write(folder: Path, lookups: int, hostile: bool) -> Path:
    """The page of a cache with so many lookups."""
    store = Store(f"sqlite:///{folder / 'store.sqlite3'}")
    if lookups:
        stored = logged.fill(store, lookups_=lookups, entries_=lookups // 10, judgements_=lookups // 5)
        if hostile:
            rows = logged.lookups(30, stored)
            odd = {"question": PLANTED, "namespace": PLANTED}
            reason = "question_not_covered"  # the longest
            store.lookups.add([replace(row, reason=row.reason and reason, **odd) for row in rows])
            judged = logged.judgements(30, stored)
            store.judgements.add([replace(one, asked=PLANTED, namespace=PLANTED) for one in judged])
    facts = gather(store, read_settings(), read_prices(), LogFilter(), NOW)
    store.close()
    file = folder / "report.html"
    file.write_text(page(facts, "1.0"), encoding="utf-8")
    return file


@pytest.mark.parametrize("name", ["weeks", "hostile", "empty"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_sound(
    browser: Any, reports: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    """No error on the console, no overflow, each chart seen once and whole, its labels apart."""
    said: list[str] = []
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: said.append(request.url))
    tab.goto(reports[name].as_uri())
    charts = tab.evaluate(CHARTS)

    assert said == [reports[name].as_uri()]
    assert tab.title().startswith("Ibidem report")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    paper = {"light": "rgb(252, 252, 251)", "dark": "rgb(20, 22, 26)"}[scheme]
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == paper
    assert [len(seen) for seen in charts] == [1] * len(charts)
    assert bool(charts) == (name != "empty")
    for (chart,) in charts:
        assert min(chart["width"], chart["height"]) > 100
        assert chart["marks"] > 0
        assert not [one for one in chart["labels"] if one["left"] < 0 or one["right"] > width]
        assert overlapping(chart["labels"]) == []
    tab.close()


def overlapping(labels: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of labels that are drawn over each other."""
    return [
        (one["text"], other["text"])
        for at, one in enumerate(labels)
        for other in labels[:at]
        if min(one["right"], other["right"]) - max(one["left"], other["left"]) > 1
        and min(one["bottom"], other["bottom"]) - max(one["top"], other["top"]) > 3
    ]
