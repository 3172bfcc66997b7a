"""The report as a page: what it says, and that nothing stored can do harm in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ibidem import Answer
from ibidem.audits.ledger import AuditStats
from ibidem.cli.commands import app
from ibidem.cli.formatting import amount, duration, money, shown, size
from ibidem.costs import read_prices, savings
from ibidem.settings import read_settings
from ibidem.storage.statistics import LogFilter
from ibidem.storage.store import Store
from ibidem.types import digest
from ibidem_lab.html import prose
from ibidem_lab.report.facts import DAY, HOUR, Facts, boundary_of, gather, width_of
from ibidem_lab.report.page import page
from tests import logged
from tests.logged import NOW, WEEKS

ALL = LogFilter()
HOSTILE = (
    "<script>document.title='ran'</script>",
    '"><img src=x onerror="document.title=\'ran\'">',
    "</style></svg></title><svg/onload=document.title='ran'>",
    "\u202ereversed\u2066 \x07\x1b[31m {{ 7 * 7 }} `code`",
    "\N{ARABIC LETTER ALEF}\N{HEBREW LETTER BET}" * 20 + "W" * 3_000,
)
ALLOWED = frozenset(
    "html head meta title link style body header main nav a footer section p h1 h2 h3 dl div dt dd span bdi "
    "code ul li figure details summary table thead tbody tr th td svg g path line rect text defs "
    "clippath".split()
)


class Reader(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        """With blanks as they are seen."""
        return " ".join(" ".join(self.texts).replace("\N{NO-BREAK SPACE}", " ").split())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty database where a cache in `cache` keeps it."""
    (tmp_path / "cache").mkdir()
    made = Store(f"sqlite:///{tmp_path / 'cache' / 'ibidem.sqlite3'}")
    yield made
    made.close()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts take most of the time: where only words matter they are left out."""
    monkeypatch.setattr("ibidem_lab.report.page.draw", lambda _: "<svg></svg>")


def facts_of(store: Store, span: LogFilter = ALL, **settings: Any) -> Facts:
    """What a report tells of these store."""
    return gather(store, read_settings(**settings), read_prices(), span, NOW)


def read(store: Store, span: LogFilter = ALL, **settings: Any) -> Reader:
    """Its page; no page does what must not be."""
    source = page(facts_of(store, span, **settings), "1.0")
    found = Reader(source)
    assert {tag for tag, _ in found.elements} <= ALLOWED
    for _, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style")]
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))
    return found


def run(*arguments: str, code: int = 0) -> str:
    """What `ibidem` says to these arguments."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return " ".join(result.output.replace("\N{NO-BREAK SPACE}", " ").split())


@pytest.mark.usefixtures("undrawn")
def test_the_page_tells_the_figures_of_the_log(store: Store) -> None:
    """Hit rate, tokens, money, audits, reasons, namespaces, models."""
    stored = logged.fill(store, lookups_=900, entries_=80, judgements_=300)
    rows = logged.lookups(900, stored)
    found = read(store).text
    hits = [row for row in rows if row.tier]
    saved = savings(store.statistics.lookups(LogFilter()), read_prices())

    assert f"The cache answered {len(hits)} of 900 lookups: {len(hits) / 9:.1f} %." in found
    assert f"saved {sum(row.tokens_saved for row in hits):,} tokens, USD {saved.money:.2f}" in found
    exact = sum(row.tier == "exact" for row in hits) / len(hits)
    assert f"{exact:.1%}".replace("%", " %") + " repeat the very question" in found
    assert "our-own-7b has none" in found
    judged = [one for one in logged.judgements(300, stored) if one.source == "audit"]
    wrong = sum(not one.right for one in judged)
    assert f"Of {len(judged)} audited hits {wrong} were wrong" in found
    for name in (
        *logged.NAMESPACES[1:],
        *logged.MODELS[:4],
        "guard:numbers",
        "Most valuable",
        "Called wrong",
    ):
        assert name in found
    assert "It holds 80 answers, about" in found


@pytest.mark.usefixtures("undrawn")
def test_a_span_is_all_that_is_told(store: Store) -> None:
    """Since, and of one namespace."""
    rows = logged.lookups(900, logged.fill(store, lookups_=900, entries_=80, judgements_=0))
    since = NOW - 5 * DAY
    mine = [row for row in rows if row.namespace == "acme" and row.at >= since]
    found = read(store, LogFilter(since, "acme")).text

    assert f"of {len(mine)} lookups: " in found
    assert "namespace acme" in found
    assert "globex" not in found


def test_charts_are_drawn_for_wide_and_narrow_screens(store: Store) -> None:
    """Eight of them, each twice; ids are those of one drawing only."""
    logged.fill(store, lookups_=900, entries_=80, judgements_=300)
    found = read(store)
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]

    assert len([tag for tag, _ in found.elements if tag == "svg"]) == 2 * 9
    assert len(ids) == len(set(ids))


def test_nothing_may_run_and_nothing_is_loaded(store: Store) -> None:
    """A strict policy that allows the one style of the page, by its digest."""
    logged.fill(store, lookups_=100, entries_=20, judgements_=0)
    source = page(facts_of(store), "1.0")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', source)
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL)
    assert policy
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()

    assert policy[1].startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert source.count("<style") == 1
    assert "http:" not in re.sub(r'xmlns(:xlink)?="http:[^"]+"', "", source).replace("https:", "http:")
    assert len(source) < 2_000_000


def plant(store: Store, text: str) -> None:
    """Store it as question, namespace, model, reason, and as what was judged."""
    plain = logged.entries(30)
    stored = [
        replace(
            one,
            id=digest(text + one.id),
            question=text,
            namespace=text,
            answer=replace(one.answer, model=text),
        )
        for one in plain
    ]
    for one in stored:
        store.entries.put(one, "embedder")
    lookups = logged.lookups(300, stored)
    store.lookups.add(
        [replace(row, question=text, namespace=text, reason=row.reason and text) for row in lookups]
    )
    judged = logged.judgements(60, stored)
    store.judgements.add(
        [replace(one, asked=text, stored=text, namespace=text, right=False) for one in judged]
    )


def test_hostile_text_is_text(store: Store) -> None:
    """Wherever it stands: in tables, sentences, charts."""
    for text in HOSTILE:
        plant(store, text)
    source = page(facts_of(store), "1.0")
    found = Reader(source)

    assert {tag for tag, _ in found.elements} <= ALLOWED
    for text in HOSTILE:
        assert shown(text, 60) in found.texts
    assert "{{ 7 * 7 }}" in found.text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", source)


@pytest.mark.usefixtures("undrawn")
def test_an_empty_cache_says_so(store: Store) -> None:
    """No chart, no table of nothing, what to do."""
    found = read(store)

    assert not [tag for tag, _ in found.elements if tag in ("svg", "table")]
    assert "The lookup log is empty" in found.text
    assert "there were no audits" in found.text
    assert "No answers are stored." in found.text


@pytest.mark.usefixtures("undrawn")
def test_without_tokens_nothing_is_counted(store: Store) -> None:
    """Unknown is not zero, and no chart shows it."""
    stored = [
        replace(one, answer=Answer("a", model="gpt-4o"), created=NOW - 2 * WEEKS)
        for one in logged.entries(20)
    ]
    for one in stored:
        store.entries.put(one, "embedder")
    store.lookups.add(logged.lookups(300, stored))
    found = read(store)

    assert "an unknown number of tokens" in found.text
    assert "No tokens are known: have the model tell them" in found.text
    assert "Tokens saved unknown" in found.text
    assert "Money saved unknown" in found.text
    assert "Time saved unknown" in found.text
    assert "USD saved" not in found.text


@pytest.mark.usefixtures("undrawn")
def test_few_lookups_are_not_judged(store: Store) -> None:
    """A hit rate of ten lookups says little, and those of one moment have no course of time."""
    rows = logged.lookups(10, logged.entries(5))
    store.lookups.add([replace(row, at=NOW - 1) for row in rows])
    found = read(store)

    assert "Wait: below 200 lookups a hit rate says little." in found.text
    assert "All lookups are of one minute" in found.text
    assert len([tag for tag, _ in found.elements if tag == "svg"]) == 2 * 2


@pytest.mark.usefixtures("undrawn")
def test_what_misses_often_has_a_remedy(store: Store) -> None:
    """With what to do about it."""
    rows = logged.lookups(400, logged.entries(20))
    store.lookups.add([replace(row, tier="", reason="question_unknown", tokens_saved=0) for row in rows])
    found = read(store).text

    assert '(100.0 % of the lookups): name the template variable: question_keys=["..."]' in found
    assert "Nothing was served yet" in found


def test_the_boundary_is_where_answers_are_served(store: Store) -> None:
    """The threshold without audits; else that of the budgets, none while they prove too little."""

    def audits(*thresholds: float | None) -> list[AuditStats]:
        return [AuditStats("", 9, 0, 0, 0.0, (0.0, 0.1), at, 0) for at in thresholds]

    labels_of_a_fit = AuditStats("", 0, 0, 900, None, (0.0, 1.0), 0.9, 0)

    store.embedders.register("another")

    assert boundary_of(store, read_settings(), ()) == 0.955
    assert boundary_of(store, read_settings(min_similarity=0.9), ()) == 0.9
    assert boundary_of(store, read_settings(), audits(None, 0.97, 0.96)) == 0.96
    assert boundary_of(store, read_settings(), audits(None)) is None
    assert boundary_of(store, read_settings(), [labels_of_a_fit]) == 0.955
    assert boundary_of(store, read_settings(audit_rate=0.1), ()) is None


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (0.4, "The budget is kept"),
        (0.1, "not proved everywhere: leave audits on"),
        (0.001, "The budget is overrun in"),
    ],
)
def test_what_audits_say_is_held_against_the_budget(store: Store, budget: float, said: str) -> None:
    """Kept, not proved, overrun: by the intervals of the namespaces."""
    stored = logged.fill(store, lookups_=50, entries_=20, judgements_=0)
    half = [
        replace(one, source="audit", right=at % 12 > 0)
        for at, one in enumerate(logged.judgements(400, stored))
    ]
    store.judgements.add([replace(one, scorer="scorer") for one in half])

    assert said in read(store, max_error_rate=budget, audit_rate=0.1).text


def test_periods_fit_the_log() -> None:
    """Hours of a day, days of a month, weeks of a year; never many more than can be seen."""
    assert width_of(0.0) == width_of(HOUR) == HOUR / 60
    assert width_of(2 * DAY) == HOUR
    assert width_of(28 * DAY) == DAY
    assert width_of(365 * DAY) == 7 * DAY
    assert width_of(30 * 365 * DAY) == 28 * DAY


@pytest.mark.usefixtures("undrawn")
def test_dates_far_apart_do_not_fill_the_page(store: Store) -> None:
    """One lookup of a wrong clock, fifty years ago, makes no thousand periods."""
    rows = logged.lookups(50, logged.entries(20))
    store.lookups.add([replace(rows[0], at=1.0), *rows[1:]])
    facts = facts_of(store)

    assert len(facts.periods) <= 3
    assert sum(group.lookups for group in facts.periods) == 50


@pytest.mark.parametrize(
    ("tell", "value", "told"),
    [
        (amount, 999, "999"),
        (amount, 12_345, "12,345"),
        (amount, 12_345_678, "12.3 M"),
        (amount, 2e9, "2 bn"),
        (duration, 0.25, "0.2 s"),
        (duration, 7_200, "2.0 h"),
        (duration, 4 * DAY, "4.0 days"),
        (size, 999, "999 bytes"),
        (size, 1_300_000, "1.3 MB"),
        (lambda value: money(value, read_prices()), 0.0012, "USD 0.0012"),
        (lambda value: money(value, read_prices()), 1234.5, "USD 1,234"),
        (shown, " a \n b\tc ", "a b c"),
        (shown, "x" * 500, "x" * 159 + "\N{HORIZONTAL ELLIPSIS}"),
        (prose, "a `<b>` & c", "a <code>&lt;b&gt;</code> &amp; c"),
    ],
)
def test_figures_are_told_as_people_read_them(tell: Callable[[Any], str], value: Any, told: str) -> None:
    """Short, with their unit."""
    assert tell(value).replace("\N{NO-BREAK SPACE}", " ") == told


@pytest.mark.usefixtures("undrawn")
def test_the_command_writes_a_page_for_its_user_only(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the place that is asked for, and shows it if asked to."""
    logged.fill(store, lookups_=300, entries_=40, judgements_=0)
    shown_: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: shown_.append(url) or True)
    file, cache = tmp_path / "report.html", str(tmp_path / "cache")
    said = run(
        "report", "--path", cache, "--out", str(file), "--open", "--namespace", "acme", "--since", "9000d"
    )

    assert said.startswith("Wrote ")
    assert "namespace acme" in Reader(file.read_text(encoding="utf-8")).text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert shown_ == [file.as_uri()]
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    assert "No browser was found" in run("report", "--path", cache, "--out", str(file), "--open")


def test_the_command_says_what_is_wrong(store: Store, tmp_path: Path) -> None:
    """A sentence, and code 2."""
    cache = str(tmp_path / "cache")

    assert "cannot write" in run("report", "--path", cache, "--out", str(tmp_path / "no" / "r.html"), code=2)
    assert "--since must be a time" in run("report", "--path", cache, "--since", "yesterday", code=2)
    assert "cannot read the prices" in run("report", "--path", cache, "--prices", "nowhere.json", code=2)
    assert "there is no cache in" in run("report", "--path", str(tmp_path / "nothing"), code=2)


def test_the_extra_is_named_if_it_is_not_installed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is the command to install it."""
    for module in ("page", "drawing"):
        monkeypatch.delitem(sys.modules, f"ibidem_lab.report.{module}")
    monkeypatch.setitem(sys.modules, "vl_convert", None)

    assert "pip install 'ibidem-cache[report]'" in run("report", "--path", str(tmp_path / "cache"), code=2)


def test_stats_tell_what_was_saved(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With prices of the user's from an option or the environment, and of how many hits they are known."""
    logged.fill(store, lookups_=300, entries_=40, judgements_=0)
    cache, file = str(tmp_path / "cache"), tmp_path / "mine.json"
    models = {name: {"input": 1.0, "output": 2.0} for name in logged.MODELS}
    file.write_text(json.dumps({"currency": "EUR", "models": models}), encoding="utf-8")
    rows = [row for row in store.statistics.lookups(LogFilter()) if row.tier]
    spent = sum(row.input + 2 * row.output for row in rows) / 1e6
    shipped = json.loads(run("stats", "--path", cache, "--json"))["saved"]
    given = json.loads(run("stats", "--path", cache, "--json", "--prices", str(file)))["saved"]
    monkeypatch.setenv("IBIDEM_PRICES", str(file))

    assert json.loads(run("stats", "--path", cache, "--json"))["saved"] == given
    assert (given["currency"], shipped["currency"]) == ("EUR", "USD")
    assert given["money"] == pytest.approx(spent)
    assert given["priced"] == sum(row.priced for row in rows) > shipped["priced"] > 0
    known = given["priced"] / given["hits"]
    assert f"money saved, known of {100 * known:.0f} % of the hits" in run("stats", "--path", cache)


def test_a_namespace_is_told_of_however_many_were_audited_since(store: Store) -> None:
    """Of all, the twenty judged last; of one, that one."""
    one = next(row for row in logged.judgements(50, logged.entries(20)) if row.source == "audit")
    store.judgements.add([replace(one, namespace=f"tenant {n}") for n in range(30)])

    assert len(facts_of(store).audits) == 20
    assert [found.namespace for found in facts_of(store, LogFilter(namespace="tenant 0")).audits] == [
        "tenant 0"
    ]


def test_the_money_of_an_answer_that_was_replaced_is_unknown(store: Store) -> None:
    """Its hits are of another one, of other tokens. Those of a long prompt have a price as any other."""
    (one,) = logged.entries(1)
    kept = replace(one, answer=Answer("a", model="gpt-4o", input_tokens=1_000_000, output_tokens=0))
    short = replace(
        one, id="b" * 32, answer=Answer("a", model="gpt-4o", input_tokens=10_000, output_tokens=0)
    )
    served = next(row for row in logged.lookups(300, [kept]) if row.entry_id == kept.id and row.tier)
    for entry in (kept, short):
        store.entries.put(entry, "embedder")
    hits = [
        replace(served, entry_id=id_, tokens_saved=tokens)
        for id_, tokens in ((short.id, 10_000), (short.id, 10_000), (kept.id, 1_000_000))
    ]
    store.lookups.add(hits)
    costs = {found.entry_id: cost for found, cost in facts_of(store).valuable}

    assert costs == {kept.id: pytest.approx(2.5), short.id: pytest.approx(2 * 0.025)}
    store.lookups.add([replace(served, entry_id=short.id, tokens_saved=12_000)])
    assert {found.entry_id: cost for found, cost in facts_of(store).valuable}[short.id] is None
