"""`ibidem report --what-if`: what it foretells from one log is what caches of each preset then do."""

from __future__ import annotations

from pathlib import Path

import pytest

import ibidem
from ibidem import Answer, Request
from ibidem.costs import read_prices
from ibidem.settings import ERROR_RATES, read_settings
from ibidem.storage.statistics import LogFilter
from ibidem.storage.store import Store
from ibidem_lab.report.what_if import what_if
from tests.shared.test_report import ALLOWED, Reader, run

STORED = (
    "What are your opening hours?",
    "What does express delivery cost?",
    "How do I change my password?",
    "How do I cancel my order?",
    "Do you ship to Norway?",
)
ASKED = (
    "When are you open?",  # default serves it, strict does not
    "is express delivery expensive?",
    "how to reset the password",
    "how can my order be stopped",  # generous only
    "What do I pay for express?",
    "is Norway among the countries you deliver to?",
    "opening hours please",  # all
    "What's the way to cancel an order?",
    "What is the price of express shipping?",
    "Do you ship to Norway?",
    "Do you ship to Sweden?",  # none: a guard
    "deadline for returns",  # none: too far
)
ANSWER = Answer("It is so.", model="gpt-4o-mini", input_tokens=900, output_tokens=100, seconds=2.0)


def ask(directory: Path, rate: str) -> int:
    """Ask all questions of a cache that holds the stored ones; return how many were hits."""
    with ibidem.open(directory, max_error_rate=rate) as cache:
        for question in STORED:
            cache.store(Request(question, scope="a shop"), ANSWER)
        return sum(bool(cache.lookup(Request(question, scope="a shop"))) for question in ASKED)


def test_what_a_log_foretells_is_what_each_preset_serves(tmp_path: Path, monkeypatch) -> None:
    """Whichever preset wrote the log; nothing is stored while they are asked, which no log could foretell."""
    hits = {name: ask(tmp_path / name, name) for name in ERROR_RATES}

    assert 0 < hits["strict"] < hits["default"] < hits["generous"] < len(ASKED)
    for name in ERROR_RATES:
        store = Store(f"sqlite:///{tmp_path / name / 'ibidem.sqlite3'}")
        found = what_if(store, read_settings(), read_prices(), LogFilter())
        store.close()
        assert found is not None
        foretold = {one.name: one for one in found.presets}

        assert {one.name: one.saved.hits for one in found.presets} == hits
        assert foretold["default"].hits.low < hits["default"] / len(ASKED) < foretold["default"].hits.high
        assert foretold["generous"].saved.tokens == 1_000 * hits["generous"]
        costs = read_prices().cost("gpt-4o-mini", 900, 100)
        assert foretold["strict"].saved.money == pytest.approx(hits["strict"] * costs)
        assert (found.kept, found.repeats.value, found.answers.hits) == (len(ASKED), 0.0, len(STORED))

    told = run(
        "report", "--what-if", "--path", str(tmp_path / "strict"), "--out", str(tmp_path / "page.html")
    )
    assert "strict (0.5 %)" in told
    assert "Each of 5 stored answers costs 1,000 tokens" in told
    shown = Reader((tmp_path / "page.html").read_text("utf-8"))
    assert {tag for tag, _ in shown.elements} <= ALLOWED
    assert "Is it worth it?" in shown.text
    assert "generous (5.0 %)" in shown.text


def test_nothing_asked_nothing_foretold(tmp_path: Path) -> None:
    """And no table of zeros."""
    with ibidem.open(tmp_path / "cache") as cache:
        cache.store(Request("How long?"), ANSWER)
    out = str(tmp_path / "page.html")

    assert "Nothing was asked" in run("report", "--what-if", "--path", str(tmp_path / "cache"), "--out", out)
