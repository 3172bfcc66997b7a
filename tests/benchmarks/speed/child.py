"""One contender in a process of its own: `fill` makes its folder, `measure` prints what it took as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.speed.contenders import CONTENDERS, Contender, emptied, folder_size
from tests.benchmarks.speed.load import Load, embedded, load, vectors_of
from tests.benchmarks.speed.timing import percentiles, resident_bytes, throughput, times

BATCH = 2_000
WARM = 30  # calls before anything is measured
WIDTH = 384


def main(given: str) -> None:
    """Do what the parent wants; `given` is JSON."""
    wanted = json.loads(given)
    work, entries = Path(wanted["work"]), int(wanted["entries"])
    questions = load(Path(wanted["data"]), entries, wanted["asked"])
    contender = CONTENDERS[wanted["contender"]](work / f"{wanted['contender']}-{entries}", WIDTH)
    if wanted["phase"] == "fill":
        emptied(contender.folder)
        began = time.perf_counter()
        contender.fill(_batches(questions, work), entries)
        told: dict[str, Any] = {"seconds": time.perf_counter() - began, "disk": folder_size(contender.folder)}
    else:
        told = measured(contender, questions, wanted)
    print(json.dumps(told))


def _batches(questions: Load, work: Path) -> Iterator[tuple[list[str], list[str], Any]]:
    from ibidem.embedding import resolve_embedder

    base = embedded(resolve_embedder(None), questions.stored[: questions.distinct], work / "vectors.npy")
    for first in range(0, len(questions.stored), BATCH):
        last = min(first + BATCH, len(questions.stored))
        answers = [questions.answer(number) for number in range(first, last)]
        yield questions.stored[first:last], answers, vectors_of(base, first, last)


def measured(contender: Contender, questions: Load, wanted: dict[str, Any]) -> dict[str, Any]:
    """Start-up, then each kind of call, then many at once."""
    before = resident_bytes()
    contender.open()
    first = questions.stored[questions.asked[0]]
    assert contender.lookup(first) is not None, "what was stored is not found"
    exact_at = time.time() - wanted["started"]
    contender.lookup(questions.reworded(0))
    told: dict[str, Any] = {"first_exact": exact_at, "first_semantic": time.time() - wanted["started"]}
    for at in range(WARM):
        contender.lookup(questions.reworded(at))
        contender.store(questions.new[at], "warm")
    told.update(_calls(contender, questions, wanted["calls"]))
    told["rss"], told["rss_before"] = resident_bytes(), before
    seconds = wanted["seconds"]
    for threads in (1, 8, 32):
        cpu = time.process_time()
        rate = throughput(lambda at: contender.lookup(questions.reworded(at + 7)), threads, seconds)
        told[f"rate_{threads}"] = rate
        told[f"cpu_{threads}"] = (time.process_time() - cpu) / (rate * seconds) * 1000
    contender.close()
    return told


def _calls(contender: Contender, questions: Load, calls: int) -> dict[str, Any]:
    """Times in milliseconds, beside those of the bare encoder in the same seconds."""
    from ibidem.embedding import resolve_embedder

    encode = resolve_embedder(None).embed
    encode(["warm"])
    exact, reworded, missed, encoded = [], [], [], []
    right = wrong = 0
    for at in range(calls):
        number, new = questions.asked[at % len(questions.asked)], questions.new[WARM + at]
        same, asked = questions.stored[number], questions.reworded(at)
        exact += times(contender.lookup, [same])
        encoded += times(encode, [[asked]])
        found: list[str | None] = []
        reworded += times(lambda text, found=found: found.append(contender.lookup(text)), [asked])
        right += found[0] == questions.answer(number)
        wrong += found[0] not in (None, questions.answer(number))
        missed += times(lambda text: _miss(contender, text), [new])
    return {
        "exact": percentiles(exact),
        "reworded": percentiles(reworded),
        "missed": percentiles(missed),
        "encode": percentiles(encoded),
        "hits": (right + wrong) / calls,
        "wrong": wrong / calls,
    }


def _miss(contender: Contender, text: str) -> None:
    contender.lookup(text)
    contender.store(text, "said just now")


if __name__ == "__main__":
    main(sys.argv[1])
