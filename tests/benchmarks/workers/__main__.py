"""Workers of a server on one directory: what they see of each other, how long they take, what they weigh.

    python -m tests.benchmarks.workers --servers uvicorn gunicorn --entries 1000 9000

Each server runs with one worker and with four, each on a copy of the same answers. In turn both get the same
requests at the same rate, half of what one worker does at most; so what else the machine does meets both.
`--kill MINUTES` kills a worker every ten seconds under load instead, and counts what is lost.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import ibidem
from ibidem import Request
from ibidem.embedding import resolve_embedder
from tests.benchmarks.scopes import DEFAULT_DATA
from tests.benchmarks.speed.filling import fill
from tests.benchmarks.speed.load import REWORDINGS, Load, embedded, load, vectors_of
from tests.benchmarks.workers.serving import SERVERS, Call, Clients, Server, ask

CLIENTS = 16
KNOWN = 1_000  # questions that are asked
MEANING, STORE = "by meaning", "store"
FIGURES = ("p50", "p95", "in50", "in95", "cpu")


class Workload:
    """Requests by number: stored questions in other words, another wording each time, or new ones to store.

    Args:
        questions: What is stored.
        stores: Share of the requests that store a new question.
        first: Number of the first request; the wordings begin anew after eight times as many questions.
    """

    def __init__(self, questions: Load, stores: float, first: int = 0) -> None:
        self._questions, self._stores, self._first = questions, stores, first

    def __call__(self, at: int) -> tuple[str, str | None]:
        """Question and answer of a request; the answer is None where it is looked up."""
        if self.kind(at) == STORE:
            return self.new(at)
        return self._questions.reworded(at + self._first), None

    def kind(self, at: int) -> str:
        """What a request is."""
        return STORE if random.Random(at + self._first).random() < self._stores else MEANING

    def new(self, at: int) -> tuple[str, str]:
        """A question that nobody asked before, and its answer."""
        new, number = self._questions.new, at + self._first
        text = f"{new[number % len(new)]} in part {number}"
        return text, f"answer to {text}"

    def answer(self, at: int) -> str:
        """The right answer to a question in other words."""
        return self._questions.answer(self._questions.asked[(at + self._first) % len(self._questions.asked)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = parse(arguments)
    if not (options.data / "nq_questions.jsonl").is_file():
        print(f"skipped: there is no {options.data / 'nq_questions.jsonl'}; pass --data DIR with that file")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="ibidem-workers-", dir=options.work))
    try:
        for entries in options.entries:
            questions = load(options.data, entries, min(KNOWN, entries))
            fill_once(folder, questions)
            for kind in options.servers:
                print(f"\n{kind}, {entries:,} answers")
                if find_spec(kind.split()[0]) is None:
                    print("not installed, left out")
                elif options.kill:
                    kill(kind, folder, questions, options)
                else:
                    compare(kind, folder, questions, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.workers", description=__doc__)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 9_000])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6, help="of each of both, in turn")
    parser.add_argument("--seconds", type=float, default=8, help="of each round")
    parser.add_argument("--stores", type=float, default=0.1, help="share of the requests")
    parser.add_argument("--bare", action="store_true", help="also the same work without a cache")
    parser.add_argument("--kill", type=float, default=0.0, metavar="MINUTES")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two kills")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second while workers are killed")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--work", type=Path, help="where caches are built; default: the temporary directory")
    return parser.parse_args(arguments)


def fill_once(folder: Path, questions: Load) -> None:
    """Make the cache that the others are copies of, and the file of its vectors."""
    shutil.rmtree(folder / "filled", ignore_errors=True)
    count = len(questions.stored)
    base = embedded(resolve_embedder(None), questions.stored[: questions.distinct], folder / "base.npy")
    vectors = vectors_of(base, 0, count)
    np.save(folder / "vectors.npy", vectors)
    requests = [Request(text) for text in questions.stored]
    answers = [questions.answer(number) for number in range(count)]
    fill(folder / "filled", [(requests, answers, vectors)], indexed=count > 10_000)


def copied(folder: Path, name: str) -> Path:
    """A fresh copy of the cache."""
    shutil.rmtree(folder / name, ignore_errors=True)
    return Path(shutil.copytree(folder / "filled", folder / name))


# one worker beside several ------------------------------------------------------------------------------


def compare(kind: str, folder: Path, questions: Load, options: argparse.Namespace) -> None:
    """What several see of each other; how long they take, and what they weigh, beside one."""
    count = options.workers
    with (
        Server(kind, 1, copied(folder, "one")) as one,
        Server(kind, count, copied(folder, "several")) as several,
    ):
        warm_up(one, questions)
        warm_up(several, questions)
        see(several, questions)
        measure("with a cache", one, several, questions, options)
        for server in (one, several):
            whole, each = server.memory(), server.memory_each()
            print(f"memory with {server.workers}: {whole:.0f} MB, {each:.0f} of a worker")
    if options.bare:
        vectors = folder / "vectors.npy"
        with Server(kind, 1, folder, vectors) as one, Server(kind, count, folder, vectors) as several:
            warm_up(one, questions)
            warm_up(several, questions)
            measure("the same work without one", one, several, questions, options)


def warm_up(server: Server, questions: Load) -> None:
    """Have each worker read the vectors."""
    Clients(server.port, Workload(questions, 0.0), CLIENTS).run(None, 2.0)


def see(server: Server, questions: Load, stores: int = 16) -> None:
    """Store; ask all workers at once in other words; say whether each found the answer."""
    workload, pids = Workload(questions, 1.0, 50_000), set(server.pids())
    late, missed = list[float](), 0
    with ThreadPoolExecutor(CLIENTS) as clients:
        for at in range(stores):
            text, answer = workload.new(at)
            assert ask(server.port, text, answer)["outcome"] == "stored"
            stored, waiting = time.perf_counter(), set(pids)
            while waiting:
                asked = [f"please tell me {text}"] * CLIENTS
                for said in clients.map(lambda question: ask(server.port, question), asked):
                    missed += said["answer"] != answer
                    waiting.discard(said["pid"])
            late.append(time.perf_counter() - stored)
    print(
        f"{stores} answers stored, then asked of all {len(pids)} in other words: not found {missed} times; "
        f"all had been asked {statistics.median(late):.2f} s later (median), {max(late):.2f} s at most"
    )


def measure(what: str, one: Server, several: Server, questions: Load, options: argparse.Namespace) -> None:
    """Send both the same requests at the same rate, in turn; print medians and ratios of the rounds."""
    sides = (one, several)
    most = Clients(one.port, Workload(questions, options.stores, 100_000), 4).run(None, 5.0)
    rate, draw = len(most) / 5.0 / 2, random.Random(1)
    found: tuple[list[dict[str, float]], ...] = ([], [])
    for turn in range(options.rounds):
        due = moments(rate, options.seconds, draw)
        for side in (turn % 2, 1 - turn % 2):
            workload = Workload(questions, options.stores, 200_000 + 1_000 * turn)
            before = sides[side].cpu_seconds()
            calls = Clients(sides[side].port, workload, CLIENTS).run(due, options.seconds)
            used = 1_000 * (sides[side].cpu_seconds() - before) / len(calls)
            found[side].append(figures(calls) | {"cpu": used})
    print(f"\n| {what}, {rate:.0f} requests a second | p50 ms | p95 | within, p50 | p95 | CPU ms each |")
    print("|---|---|---|---|---|---|")
    for label, rounds in zip(("one worker", f"{options.workers} workers"), found, strict=True):
        cells = (f"{statistics.median(one[name] for one in rounds):.1f}" for name in FIGURES)
        print(f"| {label} | {' | '.join(cells)} |")
    ratios = [sorted(b[name] / a[name] for a, b in zip(*found, strict=True)) for name in FIGURES]
    cells = (f"{statistics.median(each):.2f} ({each[0]:.2f} to {each[-1]:.2f})" for each in ratios)
    print(f"| ratio within a round, median (range) | {' | '.join(cells)} |\n", flush=True)


def moments(rate: float, seconds: float, draw: random.Random) -> list[float]:
    """When requests are due that come at random, so many a second; seconds from now."""
    found, at = list[float](), 0.0
    while (at := at + draw.expovariate(rate)) < seconds:
        found.append(at)
    return found


def figures(calls: Sequence[Call]) -> dict[str, float]:
    """Milliseconds of the lookups, for the client from when they were due, and within the cache."""
    assert not any(call.failed for call in calls), "a request failed"
    lookups = [call for call in calls if call.said["seconds"]]
    whole = np.percentile([1_000 * call.took for call in lookups], [50, 95])
    within = np.percentile([1_000 * call.said["seconds"] for call in lookups], [50, 95])
    return dict(zip(FIGURES, map(float, (*whole, *within)), strict=False))


# workers that are killed --------------------------------------------------------------------------------


def kill(kind: str, folder: Path, questions: Load, options: argparse.Namespace) -> None:
    """Kill a worker now and then under load; say what was lost, and when the next one found by meaning."""
    path, seconds, draw = copied(folder, "killed"), 60 * options.kill, random.Random(1)
    workload, calls = Workload(questions, options.stores), list[Call]()
    killed = list[float]()
    with Server(kind, options.workers, path) as server:
        warm_up(server, questions)
        due = moments(options.rate, seconds, draw)
        load = threading.Thread(
            target=lambda: calls.extend(Clients(server.port, workload, CLIENTS).run(due, seconds))
        )
        load.start()
        end = time.perf_counter() + seconds
        while time.perf_counter() + options.every < end:
            time.sleep(options.every)
            server.kill(draw.choice(server.pids()))
            killed.append(time.perf_counter())
        load.join()
    print(f"{len(killed)} workers killed in {options.kill:g} minutes; {len(calls):,} requests")
    print_outcomes(calls, workload)
    print_starts(calls, workload, killed)
    print_lost(calls, workload, path)


def print_outcomes(calls: Sequence[Call], workload: Workload) -> None:
    """What came of the requests."""
    outcomes = Counter((workload.kind(call.number), call.said.get("outcome", "cut off")) for call in calls)
    print(", ".join(f"{kind}: {outcome} {count:,}" for (kind, outcome), count in outcomes.most_common()))


def print_starts(calls: Sequence[Call], workload: Workload, killed: Sequence[float]) -> None:
    """How long each process went on without finding by meaning, and how long until there was another one."""
    answered = sorted((call.due + call.took, call) for call in calls if call.said)
    by_process: dict[int, list[tuple[float, str]]] = {}
    for ended, call in answered:
        if workload.kind(call.number) == MEANING:
            by_process.setdefault(call.said["pid"], []).append((ended, call.said["outcome"]))
    without, first = list[float](), list[float]()
    for seen in by_process.values():
        bad = [ended for ended, outcome in seen if outcome in ("no_index", "error", "empty")]
        without.append(max(bad) - seen[0][0] if bad else 0.0)
        first.append(next((ended for ended, outcome in seen if outcome == "semantic"), math.inf))
    began = sorted(first)[-len(killed) :] if killed else []
    later = [min((moment - at for moment in began if moment > at), default=math.inf) for at in killed]
    print(
        f"{len(by_process)} processes; the longest without meaning after a first answer: {max(without):.2f} s"
    )
    if later:
        print(
            f"from a kill until the next process found by meaning: {statistics.median(later):.1f} s (median)"
        )


def print_lost(calls: Sequence[Call], workload: Workload, path: Path) -> None:
    """Which answers were acknowledged and are not there; which lookups had a wrong one."""
    stored = [call for call in calls if call.said.get("outcome") == "stored"]
    hits = [call for call in calls if call.said.get("outcome") == "semantic"]
    wrong = sum(call.said["answer"] != workload.answer(call.number) for call in hits)
    lost, unfound = 0, 0
    with ibidem.open(path) as cache:
        for call in stored:
            text, answer = workload.new(call.number)
            lost += not _says(cache.lookup(Request(text)), answer)
        some = stored[:: max(1, len(stored) // 200)]
        for call in some:
            text, answer = workload.new(call.number)
            unfound += not _says(cache.lookup(Request(REWORDINGS[0].format(text))), answer)
        damage = cache._runtime.store.check()
    print(f"acknowledged: {len(stored):,}, lost: {lost}; of {len(some)} in other words not found: {unfound}")
    print(
        f"hits by meaning: {len(hits):,}, wrong: {wrong}; damage to the database: {damage or 'none'}",
        flush=True,
    )


def _says(found: Any, answer: str) -> bool:
    return isinstance(found, ibidem.Hit) and found.answer.text == answer


if __name__ == "__main__":
    sys.exit(main())
