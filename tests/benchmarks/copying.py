"""The rate of `ibidem copy` while both places are in use, and what it costs those who use them.

    python -m tests.benchmarks.copying --entries 100000

A cache in SQLite is copied to PostgreSQL, and that copy to another SQLite file. Meanwhile the old place looks
up and stores at a fixed rate, and the new one looks up. All rows are compared at the end. The answers are
made up, each over two documents, with vectors of 384 numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

import ibidem
from ibidem import Answer, Document, Request
from ibidem.storage import tables
from ibidem.storage.engine import writing
from ibidem.storage.entries import entry_row
from ibidem.storage.meta import COPY_FROM
from ibidem.storage.store import Store
from ibidem.storage.vectors import embedder_id, vector_row
from ibidem.types import Entry, Source, to_bytes, to_vector
from tests.embedders import BagOfWords
from tests.helpers import answer, eventually, question
from tests.servers import running_postgres

AT_ONCE = 5_000
DIMENSION = 384


def request(n: int) -> Request:
    """The n-th request."""
    documents = tuple(Document(f"file{n % 1000}#{part}", f"text {n % 1000} {part}") for part in (1, 2))
    return Request(question(n), scope="the prompt of a program", documents=documents)


def fill(url: str, count: int) -> None:
    """Write so many answers, as `store` would, with made-up vectors."""
    embedder, draw = BagOfWords(DIMENSION), np.random.default_rng(0)
    ibidem.open(database=url, embedder=embedder, min_similarity=0.9).close()
    number = embedder_id(embedder.fingerprint)
    with closing(Store(url)) as store:
        for first in range(0, count, AT_ONCE):
            rows = draw.normal(size=(min(AT_ONCE, count - first), DIMENSION))
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            made = [entry(first + n, row) for n, row in enumerate(rows)]
            with writing(store.engine) as db:
                db.execute(sa.insert(tables.entries), list(map(entry_row, made)))
                db.execute(sa.insert(tables.entry_vectors), [vector_row(one, number) for one in made])
                db.execute(sa.insert(tables.entry_documents), [row for one in made for row in documents(one)])


def entry(n: int, vector: Any) -> Entry:
    """The n-th answer as it is stored."""
    asked, now = request(n), time.time()
    return Entry(
        id=asked.key,
        namespace="",
        scope=asked.scope_digest,
        question=asked.question,
        documents=asked.documents_digest,
        semantic=True,
        answer=Answer(answer(n) * 10, model="made-up", input_tokens=500, output_tokens=100),
        created=now,
        expires=None,
        ttl=None,
        used=now,
        sources=tuple(Source(one.id, one.digest, True) for one in asked.documents),
        requested=now,
        vector=to_vector(to_bytes(vector)),
    )


def documents(one: Entry) -> list[dict[str, Any]]:
    """The rows of the documents of an answer."""
    return [
        {"entry_id": one.id, "digest": s.digest, "document_id": s.id, "supports": True, "source": ""}
        for s in one.sources
    ]


class Use:
    """Calls something at a fixed rate in a thread, and keeps how long each call took."""

    def __init__(self, call: Callable[[int], object], rate: float) -> None:
        self._call, self._pause, self.seconds = call, 1.0 / rate, list[float]()
        self.refused = 0  # calls that returned nothing
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        n = 0
        while not self._stop.wait(self._pause):
            began, n = time.perf_counter(), n + 1
            self.refused += not self._call(n)
            self.seconds.append(time.perf_counter() - began)

    def __enter__(self) -> Use:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def told(self) -> str:
        """Median and 95th percentile in milliseconds."""
        if len(self.seconds) < 2:
            return "-"
        twentieths = statistics.quantiles(self.seconds, n=20)
        refused = f", {self.refused} refused" if self.refused else ""
        return f"{1000 * statistics.median(self.seconds):.1f} / {1000 * twentieths[-1]:.1f}{refused}"


def measured(source: str, target: str, count: int, rate: float, before_seconds: float) -> list[str]:
    """Copy and return a row of the table."""
    settings = {"embedder": BagOfWords(DIMENSION), "min_similarity": 0.9}
    with ibidem.open(database=source, **settings) as old:

        def use(n: int) -> bool:
            found = old.lookup(request(7 * n % count))
            stored = old.store(Request(f"{n} asked while {source} is copied"), Answer("made meanwhile"))
            return bool(found and stored)

        with Use(use, rate) as before:
            time.sleep(before_seconds)
        run = "from ibidem.cli import main; main()"
        began = time.perf_counter()
        command = [sys.executable, "-c", run, "copy", source, target, "--json"]
        copying = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        with closing(Store(target)) as store:  # which is used as soon as the copy has begun
            assert eventually(lambda: store.meta.get(COPY_FROM), 60)
        with (
            Use(use, rate) as during,
            ibidem.open(database=target, **settings) as new,
            Use(lambda n: new.lookup(request(7 * n % count)) is not None, rate) as there,
        ):
            out, _ = copying.communicate()
        seconds, done = time.perf_counter() - began, json.loads(out)
    assert copying.returncode == 0, out
    rows = {one["table"]: one for one in done["checked"]}
    answers = rows["entries"]["target"]
    checked = sum(one["target"] for one in done["checked"])
    way = " to ".join(url.split(":")[0].partition("+")[0] for url in (source, target))
    rated = f"{answers / seconds:,.0f}"
    same = f"{checked:,} rows, {'all the same' if done['same'] else 'NOT the same'}"
    return [way, f"{answers:,}", f"{seconds:.0f}", rated, same, before.told(), during.told(), there.told()]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second in each place")
    parser.add_argument("--before", type=float, default=10.0, help="seconds to measure FROM before the copy")
    given = parser.parse_args()
    head = ["way", "answers", "seconds", "a second", "compared", "before, ms", "during, ms", "in TO, ms"]
    table = Table(*head, title="ibidem copy while both places are in use; ms: p50 / p95 of a call")
    with tempfile.TemporaryDirectory() as folder, running_postgres() as postgres:
        first, last = (f"sqlite:///{Path(folder) / name}.sqlite3" for name in ("first", "last"))
        fill(first, given.entries)
        table.add_row(*measured(first, postgres, given.entries, given.rate, given.before))
        table.add_row(*measured(postgres, last, given.entries, given.rate, given.before))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
