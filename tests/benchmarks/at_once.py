"""Requests that come at once on one event loop, with servers: how long they take, and whether the loop waits.

    python -m tests.benchmarks.at_once --requests 1000

Answers are in PostgreSQL, vectors there too (pgvector) or on a Chroma server, all on this machine. "within"
is the time in the cache, waiting for servers included, as `Hit.seconds` has it; "whole" also the time until
one of the cache's threads is free. "late" is how much later than due a timer of the event loop fires. The
questions are of made-up words, embedded as bags of words: what a model takes is the same without servers.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import ibidem
from ibidem import Answer, Hit, Miss, Request
from ibidem.cache import SemanticCache
from tests.embedders import BagOfWords
from tests.helpers import answer, eventually, question, reworded
from tests.servers import ChromaServer, PostgresServer, running_chroma, running_postgres_server

TICK = 0.005  # seconds between two looks at the event loop
ASKING = 0.5  # seconds that the model takes
UNKNOWN = 1_000_000  # number of the first question that nobody has stored

COLUMNS = ("whole: p50 / p95 / p99 / most", "within: p50 / p99 / most", "late: p99 / most", "threads")

Call = Callable[[int], Awaitable[object]]


class Burst:
    """Requests at once, and what each took."""

    def __init__(self) -> None:
        self.whole, self.within, self.late = list[float](), list[float](), list[float]()
        self.outcomes, self.threads = Counter[str](), 0

    async def run(self, call: Call, requests: int) -> None:
        """Make the requests, all at once."""
        watching = asyncio.create_task(self._watch())
        await asyncio.gather(*(self._one(call, number) for number in range(requests)))
        watching.cancel()

    async def _one(self, call: Call, number: int) -> None:
        started = time.perf_counter()
        found = await call(number)
        self.whole.append(time.perf_counter() - started)
        if isinstance(found, (Hit, Miss)):
            self.within.append(found.seconds)
        self.outcomes[_outcome(found)] += 1

    async def _watch(self) -> None:
        while True:
            due = time.perf_counter() + TICK
            await asyncio.sleep(TICK)
            self.late.append(time.perf_counter() - due)
            self.threads = max(self.threads, threading.active_count())

    def row(self, name: str) -> str:
        """As a line of a table."""
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.most_common())
        whole, within = _figures(self.whole, (50, 95, 99, 100)), _figures(self.within, (50, 99, 100))
        late = _figures(self.late, (99, 100))
        return f"| {name} | {outcomes} | {whole} | {within} | {late} | {self.threads} |"


def _outcome(found: object) -> str:
    if isinstance(found, Hit):
        return str(found.tier)
    return found.reason if isinstance(found, Miss) else type(found).__name__.lower()


def _figures(times: Sequence[float], at: Sequence[int]) -> str:
    """Percentiles in milliseconds."""
    if not times:
        return ""
    return " / ".join(f"{1000 * figure:.0f}" for figure in np.percentile(times, at))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.at_once", description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000)
    options = parser.parse_args(arguments)
    for vectors in ("pgvector", "a Chroma server"):
        print(f"\nPostgreSQL and {vectors}, {options.requests:,} requests at once; milliseconds\n")
        print(f"| | outcomes | {' | '.join(COLUMNS)} |")
        print("|---|---|---|---|---|---|")
        with tempfile.TemporaryDirectory() as folder, running(Path(folder), vectors) as servers:
            measure(Path(folder), options.requests, *servers)
    return 0


@contextmanager
def running(folder: Path, vectors: str) -> Iterator[tuple[PostgresServer, ChromaServer | None]]:
    """The servers."""
    with running_postgres_server() as postgres:
        if vectors == "pgvector":
            yield postgres, None
            return
        with running_chroma(folder / "server") as chroma:
            yield postgres, chroma


def measure(folder: Path, requests: int, postgres: PostgresServer, chroma: ChromaServer | None) -> None:
    """Print a row for each kind of request, with healthy servers and with frozen ones."""
    where = {"database": postgres.url, "chroma": chroma.url if chroma else None}
    with ibidem.open(folder / "cache", embedder=BagOfWords(), min_similarity=0.9, **where) as cache:
        cache.lookup(Request("warm up, please"))
        for name, call in kinds(cache).items():
            print(burst(name, call, requests), flush=True)
            cache.flush()
        for server in filter(None, (chroma, postgres)):
            server.freeze()
            name = f"lookup by meaning, {type(server).__name__.removesuffix('Server')} frozen"
            print(burst(name, kinds(cache)["lookup by meaning"], requests), flush=True)
            server.thaw()
            assert eventually(lambda: bool(cache.lookup(Request(reworded(1)))), 30)


def kinds(cache: SemanticCache) -> dict[str, Call]:
    """The kinds of requests, in the order in which they find what they need."""

    async def ask(_: Request) -> Answer:
        await asyncio.sleep(ASKING)
        return Answer("from the model")

    return {
        "store": lambda n: cache.astore(Request(question(n)), Answer(answer(n))),
        "lookup of the same question": lambda n: cache.alookup(Request(question(n))),
        "lookup by meaning": lambda n: cache.alookup(Request(reworded(n))),
        "`aanswer`, by meaning": lambda n: cache.aanswer(Request(reworded(n)), ask),
        f"`aanswer`, of a model that takes {ASKING} s": lambda n: cache.aanswer(
            Request(question(UNKNOWN + n)), ask
        ),
    }


def burst(name: str, call: Call, requests: int) -> str:
    """Run requests at once on an event loop of their own; return the row."""
    found = Burst()
    asyncio.run(found.run(call, requests))
    return found.row(name)


if __name__ == "__main__":
    raise SystemExit(main())
