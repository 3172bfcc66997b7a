"""What should a full cache forget? Replays token costs of real conversations over Zipf streams.

    python -m tests.benchmarks.eviction --data FOLDER [--requests 200000] [--answers 20000]

FOLDER holds `azure_llm_trace_conv.csv` (an inference trace that Azure published in 2023): each of the
answers costs as much as one of its requests, drawn at random. Requests follow Zipf's law; in the rows with
new favourites, other answers become the most popular every so many requests. The table shows the share of
all cost that hits saved, at a capacity of 1, 5 and 10 % of the answers:

- LRU: least recently used goes first;
- LFU: least hits since it came;
- S3-FIFO: a small queue on probation, a main queue, ghosts (Yang et al., SOSP 2023);
- GDSF: GreedyDual-Size with frequency as published, sizes all 1;
- Ibidem: `ibidem.lifecycle.rules`, evicting one by one as it does in batches.
"""

from __future__ import annotations

import argparse
import csv
import heapq
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ibidem.lifecycle.rules import OUTPUT_WEIGHT, UNBOUNDED

SEED = 7
CAPACITIES = (0.01, 0.05, 0.1)
STREAMS = ((0.7, 0), (0.9, 0), (1.1, 0), (0.9, 20_000), (0.9, 5_000), (1.1, 5_000))
Rank = Callable[[float, int, float, int], float]  # of floor, hits, cost and time


class Ranked:
    """Evicts the lowest rank; the floor rises to it."""

    def __init__(self, capacity: int, cost: Sequence[float], rank: Rank) -> None:
        self._capacity, self._cost, self._rank = capacity, cost, rank
        self._ranks: dict[int, float] = {}
        self._hits: dict[int, int] = {}
        self._heap: list[tuple[float, int, int]] = []
        self._floor, self._now = 0.0, 0

    def asked(self, item: int) -> bool:
        """Whether it is a hit; stored if not."""
        self._now += 1
        hit = item in self._ranks
        self._hits[item] = self._hits[item] + 1 if hit else 0
        self._ranks[item] = self._rank(self._floor, self._hits[item], self._cost[item], self._now)
        heapq.heappush(self._heap, (self._ranks[item], self._now, item))
        while len(self._ranks) > self._capacity:
            rank, _, victim = heapq.heappop(self._heap)
            if self._ranks.get(victim) == rank:
                del self._ranks[victim]
                self._floor = rank
        return hit


class S3Fifo:
    """Small queue, main queue, ghosts; 10 % of the capacity is small."""

    def __init__(self, capacity: int) -> None:
        self._capacity, self._small_size = capacity, max(1, capacity // 10)
        self._small: OrderedDict[int, int] = OrderedDict()
        self._main: OrderedDict[int, int] = OrderedDict()
        self._ghosts: OrderedDict[int, None] = OrderedDict()

    def asked(self, item: int) -> bool:
        """Whether it is a hit; stored if not."""
        for queue in (self._small, self._main):
            if item in queue:
                queue[item] = min(3, queue[item] + 1)
                return True
        while len(self._small) + len(self._main) >= self._capacity:
            self._evict()
        known = item in self._ghosts
        self._ghosts.pop(item, None)
        (self._main if known else self._small)[item] = 0
        return False

    def _evict(self) -> None:
        if len(self._small) >= self._small_size:
            item, hits = self._small.popitem(last=False)
            if hits:
                self._main[item] = 0
                return
            self._ghosts[item] = None
            if len(self._ghosts) > self._capacity - self._small_size:
                self._ghosts.popitem(last=False)
            return
        while self._main:
            item, hits = self._main.popitem(last=False)
            if not hits:
                return
            self._main[item] = hits - 1


RANKS: dict[str, Rank] = {
    "LRU": lambda floor, hits, cost, now: now,
    "LFU": lambda floor, hits, cost, now: hits,
    "GDSF": lambda floor, hits, cost, now: floor + (hits + 1) * cost,
    "Ibidem": lambda floor, hits, cost, now: UNBOUNDED.rank(floor, hits, cost, 1, now),
}


def saved(asked: Callable[[int], bool], stream: Sequence[int], cost: Sequence[float]) -> float:
    """Share of the cost of all requests that hits saved."""
    return sum(cost[item] for item in stream if asked(item)) / sum(cost[item] for item in stream)


def zipf(answers: int, requests: int, exponent: float, renewed: int) -> list[int]:
    """Which answer each request needs; every `renewed` requests other ones become the favourites."""
    rng = np.random.default_rng(SEED)
    weights = 1.0 / np.arange(1, answers + 1) ** exponent
    stream = rng.choice(answers, size=requests, p=weights / weights.sum())
    if renewed:
        stream = (stream + np.arange(requests) // renewed * (answers // 50)) % answers
    return [int(item) for item in stream]


def costs(trace: Path, answers: int) -> list[float]:
    """Of each answer, in input tokens."""
    with trace.open(newline="") as file:
        rows = [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(file)]
    drawn = np.random.default_rng(SEED).integers(0, len(rows), size=answers)
    return [rows[at][0] + OUTPUT_WEIGHT * rows[at][1] for at in drawn]


def compare(cost: Sequence[float], requests: int) -> Table:
    """The table of the module's docstring."""
    table = Table("Zipf", "changes", "room", "LRU", "LFU", "S3-FIFO", "GDSF", "Ibidem", "Ibidem/best")
    for exponent, renewed in STREAMS:
        stream = zipf(len(cost), requests, exponent, renewed)
        for share in CAPACITIES:
            capacity = max(1, int(share * len(cost)))
            shares = {
                name: saved(Ranked(capacity, cost, rank).asked, stream, cost) for name, rank in RANKS.items()
            }
            shares["S3-FIFO"] = saved(S3Fifo(capacity).asked, stream, cost)
            best = max(shares[name] for name in ("LRU", "LFU", "S3-FIFO"))
            cells = [f"{100 * shares[name]:.1f} %" for name in ("LRU", "LFU", "S3-FIFO", "GDSF", "Ibidem")]
            kept = f"{renewed:,}" if renewed else "never"
            table.add_row(f"{exponent}", kept, f"{share:.0%}", *cells, f"{shares['Ibidem'] / best:.2f}")
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with azure_llm_trace_conv.csv")
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--answers", type=int, default=20_000)
    given = parser.parse_args()
    Console().print(compare(costs(given.data / "azure_llm_trace_conv.csv", given.answers), given.requests))


if __name__ == "__main__":
    main()
