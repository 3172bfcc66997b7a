"""How long does a report take, and how large is it? Makes a log up and writes its page.

    python -m tests.benchmarks.report [--lookups 50000] [--database URL] [--out FILE]

The log is that of the tests (`tests/logged.py`): four weeks, a stored answer for ten lookups, a judgement for
twenty, and twice as many examples. The budget is 5 seconds and 2 MB for 50,000 lookups. A database that is
given must be empty.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from ibidem import __version__
from ibidem.costs import read_prices
from ibidem.settings import read_settings
from ibidem.storage.statistics import LogFilter
from ibidem.storage.store import Store
from ibidem_lab.report.facts import gather
from ibidem_lab.report.page import page
from tests import logged

SECONDS, BYTES = 5.0, 2_000_000  # the budget
Result = TypeVar("Result")


def timed(step: Callable[[], Result]) -> tuple[Result, float]:
    """What the step returns, and its seconds."""
    begun = time.perf_counter()
    return step(), time.perf_counter() - begun


def fill(store: Store, lookups: int) -> None:
    """Write the log."""
    logged.fill(
        store,
        lookups_=lookups,
        entries_=max(20, lookups // 10),
        judgements_=lookups // 20,
        examples_=2 * lookups,
    )


def measure(url: str, lookups: int) -> tuple[str, dict[str, str]]:
    """The page of so many lookups, and what it cost."""
    store = Store(url)
    _, filling = timed(lambda: fill(store, lookups))
    facts, gathering = timed(lambda: gather(store, read_settings(), read_prices(), LogFilter(), logged.NOW))
    text, drawing = timed(lambda: page(facts, __version__))
    store.close()
    size = len(text.encode())
    return text, {
        "lookups": f"{lookups:,}",
        "filling the log, s": f"{filling:.1f}",
        "reading the figures, s": f"{gathering:.2f}",
        "drawing and writing, s": f"{drawing:.2f}",
        "report in all, s": f"{gathering + drawing:.2f} (budget {SECONDS:g})",
        "page, KB": f"{size / 1000:,.0f} (budget {BYTES / 1000:,.0f})",
        "within the budget": "yes" if gathering + drawing < SECONDS and size < BYTES else "no",
    }


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lookups", type=int, default=50_000)
    parser.add_argument("--database", help="SQLAlchemy URL; default: a SQLite file for the moment")
    parser.add_argument("--out", type=Path, help="where the page is kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text, found = measure(given.database or f"sqlite:///{folder}/ibidem.sqlite3", given.lookups)
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    table = Table("what", "measured", title=f"Ibidem {__version__}, a report")
    for row in found.items():
        table.add_row(*row)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
