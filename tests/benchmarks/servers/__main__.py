"""Many processes on one cache: what each way to share it sustains, how long a call waits, what others see.

Run as `python -m tests.benchmarks.servers`; `--help` lists the options. Of the calls 5 % store an answer,
0.5 % invalidate one, 25 % ask a question in the same words and the rest in other words, 5,000 questions by
Zipf's law; the cache is full, so that each store evicts an answer. A stubbed search returns at once what the
search would find. By default questions and vectors are made up and no model
computes anything, so that the search is as large a part of a call as it can be; with `--corpus` the default
models do. All set-ups are asked in turn, in one run: on a machine that does much else their ratios count.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ibidem
from ibidem.embedding import resolve_embedder
from ibidem.pipeline import NEIGHBOURS
from ibidem.runtime import open_store
from ibidem.settings import read_settings
from ibidem.types import point_of
from tests.benchmarks.servers.filling import Corpus, fill, request_of
from tests.benchmarks.workers.serving import memory_of
from tests.helpers import Child
from tests.servers import ChromaServer, PostgresServer, running_chroma, running_postgres_server

WORKER = "from tests.benchmarks.servers.worker import main; main()"
ASKED = 5_000  # of the answers, which are the first
ROOM = 200  # answers that are stored before the first is evicted
THREADS = 2  # of each worker
OPTIONS = ("-c", "shared_buffers=512MB")  # its tables and indexes fit in
COLUMNS = (
    *("set-up", "workers", "calls/s", "of stubbed", "p50 ms", "p95 ms", "p99 ms", "failed", "MB a worker"),
    *("MB servers", "others that found a store", "within ms (median, 95 %, most)"),
)


Servers = list[PostgresServer | ChromaServer]
Setup = Callable[[ExitStack, Path], tuple[dict[str, Any], Servers]]


def directory(stack: ExitStack, path: Path) -> tuple[dict[str, Any], Servers]:
    """SQLite, and vectors in the memory of each process."""
    return {"path": str(path)}, []


def pgvector(stack: ExitStack, path: Path) -> tuple[dict[str, Any], Servers]:
    """PostgreSQL alone."""
    server = stack.enter_context(running_postgres_server(options=OPTIONS))
    return {"path": str(path), "database": server.url}, [server]


def chroma(stack: ExitStack, path: Path) -> tuple[dict[str, Any], Servers]:
    """SQLite and a Chroma server."""
    server = stack.enter_context(running_chroma(path.with_name(f"{path.name}-server")))
    return {"path": str(path), "chroma": server.url}, [server]


def postgres_chroma(stack: ExitStack, path: Path) -> tuple[dict[str, Any], Servers]:
    """PostgreSQL and a Chroma server, which is the one that is restarted."""
    settings, servers = chroma(stack, path)
    return {**settings, "database": (two := pgvector(stack, path))[0]["database"]}, [*servers, *two[1]]


SETUPS: dict[str, Setup] = {
    "directory": directory,
    "pgvector": pgvector,
    "chroma": chroma,
    "postgres+chroma": postgres_chroma,
}


@dataclass
class Running:
    """A set-up with its workers, and what was measured of it."""

    name: str
    servers: Servers
    workers: list[Child]
    calls: Counter[str] = field(default_factory=Counter)  # of "searched" and "stubbed" rounds
    seconds: Counter[str] = field(default_factory=Counter)
    took: list[float] = field(default_factory=list)  # at the common rate
    failed: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)  # of all its workers, by operation and exception
    seen: list[float] = field(default_factory=list)
    missed: int = 0

    def all(self, line: str) -> list[Any]:
        """Tell all workers the same; returns what each replied."""
        for worker in self.workers:
            worker.tell(line)
        return [json.loads(worker.line(300)) for worker in self.workers]

    def run(self, seconds: float, rate: float = 0.0, *, stub: bool = False) -> list[float]:
        """Have all workers call for so long; returns the milliseconds of each call."""
        each = {"seconds": seconds, "rate": rate / len(self.workers), "threads": THREADS, "stub": stub}
        said = self.all(f"run {json.dumps(each)}")
        for one in said:
            wrong = {kind: count for kind, count in one["outcomes"].items() if kind in WRONG}
            self.failed.update(wrong)
        self.faults = sum((Counter(one["faults"]) for one in said), Counter())
        return [took for one in said for took in one["took"]]


WRONG = ("wrong", "error", "no_index", "identical: error", "Rejected(reason='error')")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.servers", description=__doc__)
    parser.add_argument("--setups", nargs="*", choices=SETUPS, default=list(SETUPS))
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--entries", type=int, default=90_000)
    parser.add_argument("--scopes", type=int, default=1)
    parser.add_argument(
        "--corpus", default="", help="folder of texts.json and vectors.npy of the default model"
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stores", type=int, default=40, help="that the others look for")
    parser.add_argument("--restart", action="store_true", help="restart a server in the middle of a round")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ibidem-servers-")))
        running = [start(stack, folder, name, options) for name in options.setups]
        measure(running, options)
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        for one in running:
            print(row(one), flush=True)
        for one in running:
            print(f"{one.name}, kept from the callers: {dict(one.faults) or 'nothing'}")
        if options.restart:
            for one in running:
                restart(one, options.seconds)
    return 0


def start(stack: ExitStack, folder: Path, name: str, options: argparse.Namespace) -> Running:
    """Fill a set-up and start its workers."""
    began = time.perf_counter()
    settings, servers = SETUPS[name](stack, folder / name)
    found = prepare(folder, settings, options)
    workers = []
    for number in range(options.workers):
        told = {"number": number, "entries": options.entries, "scopes": options.scopes}
        told |= {"nearest": str(found), "corpus": options.corpus}
        config = folder / f"{name}-{number}.json"
        bounded = {**settings, "max_entries": options.entries + ROOM, "eviction": "lru"}
        config.write_text(json.dumps({**told, "settings": bounded}), "utf-8")
        workers.append(stack.enter_context(Child(WORKER, config)))
    for worker in workers:
        assert json.loads(worker.line(600)) == "ready"
    print(f"{name}: {options.entries:,} answers and {options.workers} workers in "
          f"{time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
    return Running(name, servers, workers)


def prepare(folder: Path, settings: dict[str, Any], options: argparse.Namespace) -> Path:
    """Fill the cache and have it build its index; returns the file of what a search finds."""
    corpus, entries, file = Corpus(options.corpus), range(options.entries), folder / "nearest.npy"
    embedder = None if options.corpus else corpus
    fingerprint = resolve_embedder(None).fingerprint if embedder is None else corpus.fingerprint
    rows = np.stack([corpus.vector(n) for n in entries]).astype(np.float16)
    if not file.exists():
        np.save(file, nearest(rows, options.scopes))
    with closing(open_store(read_settings(**settings))) as store:
        fill(store, fingerprint, [corpus.text(n) for n in entries], rows, options.scopes)
    if not {"database", "chroma"} & settings.keys():
        return file
    least = {} if embedder is None else {"min_similarity": 0.85}
    with ibidem.open(**settings, embedder=embedder, **least) as cache:
        search: Any = cache._runtime.vectors
        cache.lookup(request_of(corpus.asked(1), 0))
        while not cache.flush() or cache.stats().unindexed:
            time.sleep(0.2)
        while getattr(search, "_dimensions", 0):  # the HNSW index is being built
            time.sleep(0.2)
    return file


def nearest(rows: NDArray[np.float16], scopes: int) -> NDArray[np.bytes_]:
    """Return the points that a search finds for each question that is asked."""
    names, exact = [request_of("any", n).scope_digest for n in range(scopes)], rows.astype(np.float32)
    points = np.array([point_of("", names[n % scopes], row) for n, row in enumerate(exact)], dtype="S32")
    found = []
    for n in range(min(ASKED, len(rows))):
        cosines = exact[n % scopes :: scopes] @ exact[n]
        found.append(points[n % scopes :: scopes][np.argsort(-cosines)[:NEIGHBOURS]])
    return np.stack(found)


def measure(running: Sequence[Running], options: argparse.Namespace) -> None:
    """Fill in what each set-up does, in turn."""
    for one in running:
        look_for_stores(one, options.stores, options.entries)
        one.run(options.seconds / 2)  # warms up
    for _ in range(options.rounds):
        for one in running:
            for how in ("searched", "stubbed"):
                began = time.perf_counter()
                one.calls[how] += len(one.run(options.seconds, stub=how == "stubbed"))
                one.seconds[how] += time.perf_counter() - began
    rate = running[0].calls["searched"] / running[0].seconds["searched"] / 2
    print(f"p50 to p99 at {rate:.0f} calls/s, half of what {running[0].name} sustains")
    for _ in range(options.rounds):
        for one in running:
            one.took += one.run(options.seconds, rate)


def look_for_stores(one: Running, stores: int, entries: int) -> None:
    """Each worker stores in turn, and all others look up what it has stored, as soon as it says so."""
    with ThreadPoolExecutor(len(one.workers)) as threads:
        for n in range(entries, entries + stores):
            storing = one.workers[n % len(one.workers)]
            said, at = json.loads(storing.ask(f"store {n}"))
            if said != "stored":  # within a second, on a machine that does much else
                one.failed[said] += 1
                continue
            others = [worker for worker in one.workers if worker is not storing]
            asked = threads.map(lambda worker, n=n: json.loads(worker.ask(f"ask {n}")), others)
            found = [(outcome, 1000 * (when - at)) for outcome, when in asked]
            if json.loads(storing.ask(f"ask {n}"))[0] != "hit":
                continue  # in these words it is another question for the decision, whoever asks
            one.missed += sum(outcome != "hit" for outcome, _ in found)
            one.seen += [after for _, after in found]


def row(one: Running) -> str:
    """A line of the table."""
    rate = {how: one.calls[how] / one.seconds[how] for how in one.calls}
    p50, p95, p99 = np.percentile(one.took, (50, 95, 99))
    median, most_of, most = np.percentile(one.seen, (50, 95, 100))
    memory = sum(memory_of(worker.process.pid) for worker in one.workers) / len(one.workers)
    of_servers = sum(memory_of(pid) for server in one.servers for pid in server.pids())
    searched, stubbed = rate["searched"], rate["stubbed"]
    figures = (
        *(one.name, f"{len(one.workers)}", f"{searched:.0f}", f"{searched / stubbed:.2f}"),
        *(f"{p50:.1f}", f"{p95:.1f}", f"{p99:.1f}", f"{dict(one.failed) or 0}"),
        *(f"{memory:.0f}", f"{of_servers:.0f}", f"{len(one.seen) - one.missed} of {len(one.seen)}"),
        f"{median:.0f}, {most_of:.0f}, {most:.0f}",
    )
    return f"| {' | '.join(figures)} |"


def restart(one: Running, seconds: float) -> None:
    """Restart the server of a set-up while its workers call; say what failed, and until when."""
    if not one.servers:
        return
    one.failed.clear()
    with ThreadPoolExecutor(1) as threads:
        calling = threads.submit(one.run, seconds)
        time.sleep(seconds / 2)
        one.servers[0].stop()
        one.servers[0].start()
        up = time.monotonic()
        took = calling.result()
    said = f"{len(took):,} calls, {dict(one.failed)}, {dict(one.faults)}, slowest {max(took):.0f} ms"
    print(f"{one.name}, restarted in the middle: {said}")
    while one.failed:
        one.failed.clear()
        one.run(1.0)
    print(f"{one.name}: nothing failed any more {time.monotonic() - up:.0f} s after it was up")


if __name__ == "__main__":
    raise SystemExit(main())
