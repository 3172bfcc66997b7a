"""Does a cache stay fast and small? Threads look up and store at full speed while entries expire and go.

    python -m tests.benchmarks.soak --minutes 10 --max-entries 5000

Once a minute a line: requests a second, latency of lookups, entries and their bytes, vectors in the index,
files, memory. The last line says whether memory grew after the warm-up (the first third) and whether sizes
kept their bounds.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

import ibidem
from ibidem.errors import IbidemError
from ibidem.storage import tables
from ibidem.storage.deletion import delete_entries
from ibidem.storage.engine import writing
from tests.embedders import DenseWords
from tests.helpers import answer, question, reworded

COLUMNS = "min req/s p50ms p99ms entries entryMB index dead chromaMB sqliteMB walMB fds rssMB".split()
SLACK = 1.05  # how far over its bound a size may be between two batches


class Load:
    """What the threads share: the cache, the next question's number, latencies of lookups."""

    def __init__(self, cache: Any, entries: int) -> None:
        self.cache, self.entries = cache, entries
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.next = self.requests = 0
        self.seconds: deque[float] = deque(maxlen=20_000)
        self.errors: dict[str, int] = {}

    def run(self, seed: int) -> None:
        """Half new questions, half recent ones reworded; now and then some are deleted."""
        draw = random.Random(seed)
        while not self.stop.is_set():
            with self.lock:
                self.requests += 1
                if fresh := draw.random() < 0.5:
                    self.next += 1
                n = self.next if fresh else max(0, self.next - draw.randrange(self.entries))
            name = "short" if n % 50 == 0 else f"tenant{n % 3}"
            began = time.perf_counter()
            found = self.cache.lookup(ibidem.Request(question(n) if fresh else reworded(n), namespace=name))
            self.seconds.append(time.perf_counter() - began)
            if not found:
                self.count(found.reason)
                self.cache.store(ibidem.Request(question(n), namespace=name), ibidem.Answer(answer(n) * 10))
            if draw.random() < 0.0003:
                self.cache.clear(namespace="short")
            if draw.random() < 0.002:
                self.delete_some(draw)

    def count(self, reason: str) -> None:
        """Count the reason of a miss."""
        with self.lock:
            self.errors[reason] = self.errors.get(reason, 0) + 1

    def delete_some(self, draw: random.Random) -> None:
        """Delete about one entry in 256, as an invalidation does."""
        prefix = f"{draw.randrange(256):02x}"
        try:
            with writing(self.cache._runtime.store._engine) as db:
                delete_entries(db, tables.entries.c.id.startswith(prefix))
        except IbidemError as error:
            self.count(str(error))


def megabytes(path: Path) -> float:
    """Size of a file or folder."""
    files = [path] if path.is_file() else path.rglob("*")
    total = 0
    for file in files:
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue
    return total / 1e6


def rss() -> float:
    """Memory of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def measured(load: Load, path: Path, minute: float, requests: float) -> dict[str, float]:
    """One line of the table."""
    times = sorted(load.seconds) or [0.0]
    load.seconds.clear()
    store, index = load.cache._runtime.store, load.cache._runtime.vectors._index
    count, size = store.evictor.size()
    values = [
        minute,
        requests,
        1e3 * times[len(times) // 2],
        1e3 * times[int(len(times) * 0.99)],
        count,
        size / 1e6,
        index.count() if index else 0,
        load.cache._runtime.vectors.table.count_dead(),
        megabytes(path / "chroma"),
        megabytes(path / "ibidem.sqlite3"),
        megabytes(path / "ibidem.sqlite3-wal"),
        len(os.listdir("/proc/self/fd")),
        rss(),
    ]
    return dict(zip(COLUMNS, values, strict=True))


def soak(path: Path, minutes: float, entries: int, threads: int, every: float) -> list[dict[str, float]]:
    """Run the load; print and return a line per interval."""
    cache = ibidem.open(
        path, embedder=DenseWords(), min_similarity=0.9, ttl=120.0, jitter=0.3, max_entries=entries
    )
    load, lines = Load(cache, entries), []
    workers = [threading.Thread(target=load.run, args=(seed,), daemon=True) for seed in range(threads)]
    for worker in workers:
        worker.start()
    print(" ".join(f"{name:>8}" for name in COLUMNS))
    began = time.monotonic()
    while time.monotonic() - began < minutes * 60:
        before, since = load.requests, time.monotonic()
        time.sleep(min(every, max(1.0, minutes * 60 - (since - began))))
        rate = (load.requests - before) / (time.monotonic() - since)
        lines.append(measured(load, path, (time.monotonic() - began) / 60, rate))
        print(" ".join(f"{value:8.1f}" for value in lines[-1].values()), flush=True)
    load.stop.set()
    for worker in workers:
        worker.join()
    print(f"stored {load.next:,} questions; misses {load.errors}; faults {cache.stats().faults}")
    cache.close()
    return lines


def main() -> None:
    """Print the table and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--max-entries", type=int, default=5_000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two lines")
    parser.add_argument("--data", type=Path, help="folder to use; default: a temporary one")
    given = parser.parse_args()
    folder = given.data or Path(tempfile.mkdtemp())
    try:
        lines = soak(folder / "soak", given.minutes, given.max_entries, given.threads, given.every)
    finally:
        if given.data is None:
            shutil.rmtree(folder, ignore_errors=True)
    warm = lines[len(lines) // 3 :]
    grown = 100.0 * (np.mean([line["rssMB"] for line in warm[-2:]]) / warm[0]["rssMB"] - 1.0)
    bounded = all(line["entries"] <= given.max_entries * SLACK for line in warm)
    print(f"memory after the warm-up {grown:+.1f} %; sizes within bounds: {'yes' if bounded else 'NO'}")


if __name__ == "__main__":
    main()
