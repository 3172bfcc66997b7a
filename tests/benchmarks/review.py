"""Time the page of `ibidem review` with 100,000 entries, 100,000 lookups and 20,000 judgements.

    python -m tests.benchmarks.review [--database URL]

Without a URL on SQLite, in a directory that is deleted. With one: of an empty database.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa
from starlette.testclient import TestClient

from ibidem.settings import read_settings
from ibidem.storage import tables
from ibidem.storage.engine import writing
from ibidem.storage.entries import entry_row
from ibidem.storage.store import Store
from ibidem_lab.review.app import Pages
from ibidem_lab.review.gate import Gate
from ibidem_lab.review.session import ReviewSession, review_queue
from tests import logged

ENTRIES = LOOKUPS = 100_000
JUDGEMENTS = 20_000
TIMES = 5
PORT = 8_000


def fill(store: Store, entries: int = ENTRIES) -> None:
    """Write so many entries, in few transactions, and the logs."""
    stored = [replace(one, semantic=True) for one in logged.entries(entries)]
    for start in range(0, entries, 10_000):
        with writing(store._engine) as db:
            db.execute(sa.insert(tables.entries), [entry_row(one) for one in stored[start : start + 10_000]])
    rows = logged.lookups(LOOKUPS, stored)
    for start in range(0, LOOKUPS, 10_000):
        store.lookups.add(rows[start : start + 10_000])
    store.judgements.add(logged.judgements(JUDGEMENTS, stored))


def client_of(store: Store) -> TestClient:
    """A browser that was given the token."""
    queue = review_queue(store, read_settings(), None)
    address = f"http://127.0.0.1:{PORT}"
    client = TestClient(Gate(Pages(ReviewSession(queue)).app(), "token", PORT), base_url=address)
    client.get("/?token=token")
    return client


def timed(client: TestClient, address: str) -> tuple[float, str]:
    """The median time of a page in seconds, and its text."""
    spent = []
    for _ in range(TIMES):
        began = time.perf_counter()
        answer = client.get(address)
        spent.append(time.perf_counter() - began)
        assert answer.status_code == 200, answer.text
    return sorted(spent)[TIMES // 2], answer.text


def measure(store: Store) -> None:
    """Print the times of the page."""
    client = client_of(store)
    began = time.perf_counter()
    assert client.get("/").status_code == 200
    print(f"judging, the logs read anew   {time.perf_counter() - began:6.3f} s")
    print(f"judging, the next pair        {timed(client, '/')[0]:6.3f} s")


def main() -> None:
    """Fill a database and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database")
    given = parser.parse_args().database
    with tempfile.TemporaryDirectory() as folder:
        store = Store(given or f"sqlite:///{Path(folder) / 'store.sqlite3'}")
        fill(store)
        measure(store)
        store.close()


if __name__ == "__main__":
    main()
