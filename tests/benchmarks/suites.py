"""Pairs of questions that must never share an answer, and pairs that should.

    python -m tests.benchmarks.suites [--max-error-rate SHARE] [--without-model]

Written for this project, in `suites/*.json`: nothing is trained on them. One question of each pair is
stored, the other asked. The targets: of the must-miss pairs at most 1 % are served, of the must-hit pairs at
least 70 %.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

import ibidem
from ibidem_lab.replay import Share, share

FOLDER = Path(__file__).parent / "suites"
MUST_MISS, MUST_HIT = "must_miss", "must_hit"
MOST_WRONG, LEAST_RIGHT = 0.01, 0.70


class Pair(NamedTuple):
    """Two questions and the kind of difference between them."""

    a: str
    b: str
    kind: str


def load(name: str) -> list[Pair]:
    """The pairs of a suite."""
    held = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return [Pair(one["a"], one["b"], one["kind"]) for one in held]


def by_kind(pairs: list[Pair], **options: Any) -> dict[str, tuple[int, int]]:
    """(served, pairs) of each kind, by a new cache with these options."""
    counted: dict[str, list[bool]] = defaultdict(list)
    with TemporaryDirectory() as folder, ibidem.open(folder, **options) as cache:
        for pair, decision in zip(pairs, cache.decide((pair.a, pair.b) for pair in pairs), strict=True):
            counted[pair.kind].append(decision.served)
    return {kind: (sum(served), len(served)) for kind, served in sorted(counted.items())}


def total(counted: dict[str, tuple[int, int]]) -> Share:
    """The share served over all kinds."""
    return share(sum(served for served, _ in counted.values()), sum(pairs for _, pairs in counted.values()))


def table(counted: dict[str, dict[str, tuple[int, int]]], title: str) -> Table:
    """A line per kind."""
    shown = Table("suite", "kind", "served", "of", "share", title=title)
    for suite, kinds in counted.items():
        for kind, (served, pairs) in kinds.items():
            shown.add_row(suite, kind, str(served), str(pairs), f"{served / pairs:.0%}")
        shown.add_row(suite, "all", "", "", str(total(kinds)), end_section=True)
    return shown


def odd_pairs() -> list[Pair]:
    """Questions of attackers and accidents: alike to the eye or to a model, but never one question."""
    draw = random.Random(11)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(3, 9))) for _ in range(400)]

    def salad(count: int) -> str:
        return " ".join(draw.choices(words, k=count))

    rtl = "right to left"
    long = "Please summarise this: " + salad(3_000)
    return [
        Pair("how do I reset my paypal password", "how do I reset my p\u0430yp\u0430l password", "homoglyph"),
        Pair("is apple.com safe to log in to", "is \u0430pple.com safe to log in to", "homoglyph"),
        Pair("how do I log in to google", "how do I log in to g\u043e\u043egle", "homoglyph"),
        Pair("can I eat this mushroom", "can I n\u200bo\u200bt eat this mushroom", "zero-width"),
        Pair("transfer to account 12", "transfer to account 1\u200b3", "zero-width"),
        Pair("is it safe to drink", "is it un\u200dsafe to drink", "zero-width"),
        Pair(long, long + " and translate it", "very long"),
        Pair("x" * 20_000, "y" * 20_000, "very long"),
        Pair("?", "!", "empty-ish"),
        Pair(".", "\u200b", "empty-ish"),
        Pair("\u3164", "\u2800", "empty-ish"),
        Pair("\U0001f600", "\U0001f622", "emoji"),
        Pair("is this \U0001f44d", "is this \U0001f44e", "emoji"),
        Pair("\u202eevil is this file", "is this file evil", rtl),
        Pair("\u05de\u05d4 \u05e9\u05dc\u05d5\u05de\u05da", "\u05de\u05d4 \u05d4\u05e9\u05e2\u05d4", rtl),
        Pair("\u0643\u064a\u0641 \u062d\u0627\u0644\u0643", "\u0643\u0645 \u0633\u0627\u0639\u0629", rtl),
        *(Pair(salad(80), salad(80), "word salad") for _ in range(20)),
        *(Pair("what is the capital of France " + salad(60), salad(60), "word salad") for _ in range(5)),
    ]  # fmt: skip


def main() -> None:
    """Print the tables."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--max-error-rate", default="default", help="a share, or its name")
    options.add_argument("--without-model", action="store_true", help="decide by the rule of 0.1")
    given = options.parse_args()
    chosen = {"max_error_rate": given.max_error_rate} | ({"verifier": None} if given.without_model else {})
    suites = {MUST_MISS: load(MUST_MISS), MUST_HIT: load(MUST_HIT), "odd": odd_pairs()}
    counted = {name: by_kind(pairs, **chosen) for name, pairs in suites.items()}
    Console(width=100).print(table(counted, str(chosen)))


if __name__ == "__main__":
    main()
