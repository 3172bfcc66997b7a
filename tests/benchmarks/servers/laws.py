"""What an entry costs each engine, and what that comes to far beyond one machine.

    python -m tests.benchmarks.servers.laws --entries 3000 9000
    python -m tests.benchmarks.servers.laws --plan

Each engine is filled to both sizes and looked up by meaning, by one client; what each further entry costs is
the difference between the two. Processor time is counted, of client and server together, since it says about
the same on a busy machine. The plan is arithmetic with what was measured: what a deployment of so many
entries, tenants and hosts asks of each engine, and what of it a large machine does not have.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ibidem
from ibidem.index.pgvector import exact_limit
from ibidem.runtime import open_store
from ibidem.settings import read_settings
from ibidem.storage.engine import KEPT
from tests.benchmarks.servers.filling import fill, request_of, text
from tests.benchmarks.workers.serving import memory_of
from tests.embedders import DenseWords
from tests.helpers import Child
from tests.servers import ChromaServer, PostgresServer, running_chroma, running_postgres_server

LOOKUPS, STORES = 300, 100
CLIENT = """
import json, sys, time
import ibidem
from tests.benchmarks.servers.filling import asked, request_of, text
from tests.embedders import DenseWords

settings, entries = json.loads(sys.argv[1]), int(sys.argv[2])
cache = ibidem.open(embedder=DenseWords(), min_similarity=0.85, **settings)
search = cache._runtime.vectors
while not cache.lookup(request_of(asked(0), 0)) or not cache.flush() or cache.stats().unindexed:
    time.sleep(0.1)
while getattr(search, "_dimensions", 0):  # the HNSW index is being built
    time.sleep(0.1)
print("ready", flush=True)
for line in sys.stdin:
    verb, _, number = line.partition(" ")
    began = time.process_time()
    for n in range(int(number)):
        if verb == "lookup":
            cache.lookup(request_of(asked(n * 7919 % entries), 0))
        else:
            cache.store(request_of(text(entries + n), 0), ibidem.Answer("the answer"))
    cache.flush()
    print(time.process_time() - began, flush=True)
cache.close()
"""


@dataclass(frozen=True)
class Figures:
    """What one engine takes with so many entries: bytes, and microseconds of processor time of a call."""

    entries: int
    disk: float
    client: float
    server: float
    lookup: float
    store: float


def each(small: Figures, large: Figures, what: str) -> float:
    """What each further entry costs."""
    grown = float(getattr(large, what) - getattr(small, what))
    return grown / (large.entries - small.entries)


Running = tuple[dict[str, Any], PostgresServer | ChromaServer | None]


@contextmanager
def memory(folder: Path) -> Iterator[Running]:
    """SQLite, and vectors in the memory of each process."""
    yield {"path": str(folder)}, None


@contextmanager
def chroma(folder: Path) -> Iterator[Running]:
    """SQLite and a Chroma server."""
    with running_chroma(folder / "chroma-server") as server:
        yield {"path": str(folder), "chroma": server.url}, server


@contextmanager
def pgvector(folder: Path) -> Iterator[Running]:
    """PostgreSQL alone."""
    with running_postgres_server() as server:
        yield {"path": str(folder), "database": server.url}, server


ENGINES: dict[str, Callable[[Path], Any]] = {"memory": memory, "chroma": chroma, "pgvector": pgvector}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.servers.laws", description=__doc__)
    parser.add_argument("--engines", nargs="*", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--entries", type=int, nargs=2, default=[3_000, 9_000])
    parser.add_argument("--plan", action="store_true", help="the arithmetic alone")
    options = parser.parse_args(arguments)
    if not options.plan:
        print("| engine | entries | on disk | memory of a client | of the server | a lookup | a store |")
        print("|---|---|---|---|---|---|---|")
        for name in options.engines:
            small, large = (measured(name, entries) for entries in sorted(options.entries))
            print(row(name, small), row(name, large), last_row(name, small, large), sep="\n", flush=True)
        print()
    print("\n".join(plan()))
    return 0


def row(name: str, found: Figures) -> str:
    """What was measured at one size."""
    sizes = " | ".join(f"{size / 1e6:.0f} MB" for size in (found.disk, found.client, found.server))
    return (
        f"| {name} | {found.entries:,} | {sizes} | {found.lookup / 1e3:.1f} ms | {found.store / 1e3:.1f} ms |"
    )


def last_row(name: str, small: Figures, large: Figures) -> str:
    """What each further entry costs."""
    sizes = (f"{each(small, large, what) / 1e3:.2f} KB" for what in ("disk", "client", "server"))
    return f"| {name} | each further | {' | '.join(sizes)} | {each(small, large, 'lookup'):.2f} us | |"


def measured(name: str, entries: int) -> Figures:
    """Fill an engine and measure it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ibidem-laws-")))
        settings, server = stack.enter_context(ENGINES[name](folder))
        prepare(settings, entries)
        client = stack.enter_context(Child(CLIENT, json.dumps(settings), entries))
        assert client.line(600) == "ready"
        used = {}
        for verb, count in (("lookup", LOOKUPS), ("store", STORES)):
            before = _server(server, _cpu_seconds)
            own = float(client.ask(f"{verb} {count}", 600))
            used[verb] = 1e6 * (own + _server(server, _cpu_seconds) - before) / count
        disk = _size(server.directory / "base" if isinstance(server, PostgresServer) else folder)
        own_memory = 1e6 * memory_of(client.process.pid)
        return Figures(
            entries, disk, own_memory, 1e6 * _server(server, memory_of), used["lookup"], used["store"]
        )


def prepare(settings: dict[str, Any], entries: int) -> None:
    """Put the entries into the database; the client's cache builds the index."""
    embedder, texts = DenseWords(), [text(n) for n in range(entries)]
    rows = np.concatenate([embedder.embed(texts[at : at + 500]) for at in range(0, entries, 500)])
    with ibidem.open(embedder=embedder, min_similarity=0.85, **settings) as cache:
        cache.lookup(request_of("anything", 0))
    store = open_store(read_settings(**settings))
    fill(store, embedder.fingerprint, texts, rows.astype(np.float16), 1)
    store.close()


def _server(server: PostgresServer | ChromaServer | None, figure: Callable[[int], float]) -> float:
    if server is None or server.process is None:
        return 0.0
    found = 0.0
    for pid in server.pids() if isinstance(server, PostgresServer) else [server.process.pid]:
        with suppress(FileNotFoundError):  # it has just ended
            found += figure(pid)
    return found


def _cpu_seconds(pid: int) -> float:
    """Processor time of a process, and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# What it comes to.

# KB that are in memory of each entry: in PostgreSQL the vector that is searched and the HNSW index.
SEARCHED, HNSW, CHROMA = 1.0, 1.2, 2.1
EXACT_US = 1.0  # of a vector that is compared, as in `ibidem.index.pgvector`
HNSW_US, READ = 30.0, 32  # of a row of the index, and how many rows of the scope a search reads
CHROMA_MS = 0.13  # of a search among n, times the logarithm of n to the base 2: 1.7 ms at 10,000
REBUILD_MS = 1.0  # of each vector that a collection of Chroma is filled with
CLOUD = 5_000_000  # records of a collection of Chroma Cloud; an embedder has one
# A large machine, and PostgreSQL as it is configured by itself.
HAVE = {"connections": 100.0, "GB of memory": 256.0, "cores": 64.0, "ms a lookup": 100.0}


@dataclass(frozen=True)
class Deployment:
    """Entries of so many tenants, and hosts with so many workers and lookups a second each."""

    entries: int
    tenants: int
    hosts: int
    workers: int = 8
    rate: float = 20.0

    def needs(self, kilobytes: float, lookup: float) -> dict[str, float]:
        """What the machine of the vectors needs: KB of each entry, and milliseconds of each lookup."""
        return {
            "connections": float(self.hosts * self.workers * KEPT),
            "GB of memory": self.entries * kilobytes / 1e6,
            "cores": self.hosts * self.rate * lookup / 1e3,
            "ms a lookup": lookup,
        }


DEPLOYMENTS = (
    Deployment(100_000, 10, 2),
    Deployment(1_000_000, 100, 4),
    Deployment(10_000_000, 300, 10),
    Deployment(100_000_000, 1_000, 20),
)


def by_pgvector(what: Deployment, *, parted: bool) -> dict[str, float]:
    """One table, as it is; or one for each tenant, with an index of its own, which Ibidem does not make."""
    of_tenant = what.entries / what.tenants
    entries = of_tenant if parted else what.entries
    if of_tenant <= exact_limit(int(entries)):
        return what.needs(SEARCHED, of_tenant * EXACT_US / 1e3)
    return what.needs(SEARCHED + HNSW, READ * HNSW_US * (entries / of_tenant) / 1e3)


def slowest(entries: int) -> float:
    """Milliseconds of a lookup by pgvector in a scope that is just too large to be compared one by one."""
    return READ * HNSW_US * (entries / exact_limit(entries)) / 1e3


def by_chroma(what: Deployment) -> dict[str, float]:
    """A Chroma server beside the database."""
    return what.needs(CHROMA, CHROMA_MS * math.log2(what.entries))


def plan() -> list[str]:
    """Each deployment with each engine, as lines of a table; what the machine does not have is bold."""
    heads = ("entries, tenants, hosts", "engine", *HAVE)
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for what in DEPLOYMENTS:
        ways = {
            "pgvector": by_pgvector(what, parted=False),
            "pgvector, a table for each tenant": by_pgvector(what, parted=True),
            "Chroma server": by_chroma(what),
        }
        size = f"{what.entries:,}, {what.tenants:,}, {what.hosts}"
        lines += [f"| {size} | {name} | {' | '.join(_cells(needs))} |" for name, needs in ways.items()]
    largest = DEPLOYMENTS[-1].entries
    hours = largest * REBUILD_MS / 3.6e6
    filled = f"A collection of Chroma with {largest:,} vectors is filled in {hours:.0f} hours;"
    most = ", ".join(f"{slowest(what.entries):.0f} ms with {what.entries:,}" for what in DEPLOYMENTS)
    worst = f"The slowest lookup by pgvector, in scopes of middling size: {most}."
    return [*lines, "", f"{filled} one in Chroma Cloud holds {CLOUD:,}.", worst]


def _cells(needs: dict[str, float]) -> list[str]:
    shown = {what: f"{need:,.0f}" if need >= 10 else f"{need:.1f}" for what, need in needs.items()}
    return [f"**{shown[what]}**" if needs[what] > HAVE[what] else shown[what] for what in HAVE]


if __name__ == "__main__":
    raise SystemExit(main())
