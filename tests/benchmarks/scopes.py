"""Many scopes in one index: how often the right entry is found, how fast, and what Chroma's filter costs.

Run as `python -m tests.benchmarks.scopes`; `--help` lists the options.

Each question is stored in 20 scopes, and what will be asked (the question, worded otherwise) is itself stored
in 5 scopes that are not asked: so for every lookup entries of other scopes are nearer than the right one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ibidem
from ibidem import Answer, Request
from ibidem.embedding import resolve_embedder
from ibidem.index import search as vectors
from ibidem.index.memory import with_scope_code
from ibidem.pipeline import NEIGHBOURS
from ibidem.runtime import index_opener, open_store, registry_of
from ibidem.settings import Settings, read_settings
from ibidem.storage.engine import open_engine, sqlite_url
from ibidem.storage.entries import entry_row
from ibidem.storage.store import Store
from ibidem.storage.tables import entries as entries_table
from ibidem.storage.tables import entry_vectors
from ibidem.storage.vectors import embedder_id, vector_row
from ibidem.types import Entry, to_bytes, to_vector
from tests.embedders import BagOfWords

COPIES = 20  # scopes that hold one question
DECOYS = 5  # other scopes that hold the very words asked
FILTERED = 100  # lookups through Chroma's filter, which is slow
DEFAULT_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@dataclass(frozen=True)
class Stored:
    """One entry to be: the scope it belongs to and the number of its text."""

    scope: str
    text: int


@dataclass
class Workload:
    """`texts` with one vector each, `stored` entries, and `asked`: (text asked, the entry that answers)."""

    texts: list[str]
    stored: list[Stored]
    asked: list[tuple[int, Stored]]
    vectors: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = parse(arguments)
    file = options.data / "nq_questions.jsonl"
    if not file.is_file():
        print(f"skipped: there is no {file}; pass --data DIR with nq_questions.jsonl (`question` per line)")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="ibidem-scopes-", dir=options.work))
    try:
        run(options, file, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scopes", description=__doc__)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--scopes", type=int, default=1_000)
    parser.add_argument("--lookups", type=int, default=1_000)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--embedder", choices=["minilm", "words"], default="minilm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds", type=float, default=600, help="stop filling the indexes in time for this"
    )
    parser.add_argument(
        "--work", type=Path, help="where the index is built; default: the temporary directory"
    )
    parser.add_argument("--quick", action="store_true", help="5,000 entries, 100 scopes, 200 lookups")
    options = parser.parse_args(arguments)
    if options.quick:
        options.entries, options.scopes, options.lookups = 5_000, 100, 200
    return options


def run(options: argparse.Namespace, file: Path, folder: Path) -> None:
    """Make the workload, fill database and indexes, measure, print."""
    deadline = time.monotonic() + options.seconds
    embedder: Any = BagOfWords() if options.embedder == "words" else resolve_embedder(None)
    load = workload(read_questions(file), options)
    began = time.monotonic()
    load.vectors = embed(embedder, load.texts)
    embedded = time.monotonic()
    vectors.EXACT_LIMIT = 0  # this measures the index at every size
    settings = read_settings(path=folder / "cache", embedder=embedder)
    indexed = fill(settings, embedder, load, began + 0.5 * (deadline - began))
    coded_at = time.monotonic()
    plain = PlainCollection(folder / "plain")
    held = plain.fill(load, load.stored[:indexed], deadline - 0.15 * options.seconds)
    filled_at = time.monotonic()
    kept = set(load.stored[:indexed])
    load.asked = [(text, right) for text, right in load.asked if right in kept]
    print_workload(options, file, load, indexed, held)
    print(
        f"Embedding {embedded - began:.0f} s, filling the cache {coded_at - embedded:.0f} s, "
        f"filling a collection without codes for comparison {filled_at - coded_at:.0f} s."
    )
    measure(settings, embedder, load, plain, set(load.stored[:held]))


# workload ---------------------------------------------------------------------------------------------


def read_questions(file: Path) -> list[str]:
    """The questions of the file, each once."""
    with file.open(encoding="utf-8") as lines:
        return list(dict.fromkeys(json.loads(line)["question"] for line in lines))


def workload(questions: list[str], options: argparse.Namespace) -> Workload:
    """Draw the entries and the lookups; the same for the same seed."""
    draw = random.Random(options.seed)
    scopes = [f"scope {number}" for number in range(options.scopes)]
    lookups = min(options.lookups, options.entries // (2 * DECOYS))
    distinct = min(len(questions), (options.entries - lookups * DECOYS) // COPIES)
    texts = draw.sample(questions, distinct)
    stored = [
        Stored(scope, text)
        for text in range(distinct)
        for scope in draw.sample(scopes, min(COPIES, len(scopes)))
    ]
    holding: dict[int, set[str]] = {}
    for one in stored:
        holding.setdefault(one.text, set()).add(one.scope)
    asked = []
    for text in draw.sample(range(distinct), min(lookups, distinct)):
        right = Stored(draw.choice(sorted(holding[text])), text)
        texts.append(reword(texts[right.text], draw))
        others = [scope for scope in scopes if scope not in holding[right.text]]
        stored += [Stored(scope, len(texts) - 1) for scope in draw.sample(others, DECOYS)]
        asked.append((len(texts) - 1, right))
    draw.shuffle(stored)
    return Workload(texts, list(dict.fromkeys(stored)), asked)


def reword(question: str, draw: random.Random) -> str:
    """The same question as another user would type it; never the same string."""
    ways: list[Callable[[str], str]] = [
        lambda q: f"please tell me {q}",
        lambda q: f"{q} please",
        lambda q: f"can you tell me {q}?",
        lambda q: f"hello, {q}?",
        lambda q: q.upper(),
        lambda q: f"{q[0].upper()}{q[1:]}?",
        lambda q: typo(q, draw),
    ]
    changed = draw.choice(ways)(question)
    return changed if changed != question else f"{question} ?"


def typo(question: str, draw: random.Random) -> str:
    """Two neighbouring letters of the longest word swapped."""
    word = max(question.split(), key=len)
    at = draw.randrange(1, max(2, len(word) - 2))
    return question.replace(word, word[:at] + word[at : at + 2][::-1] + word[at + 2 :], 1)


def embed(embedder: Any, texts: list[str]) -> NDArray[np.float32]:
    """Each distinct text once."""
    rows = [embedder.embed(texts[at : at + 256]) for at in range(0, len(texts), 256)]
    return np.concatenate(rows)


# filling ----------------------------------------------------------------------------------------------


def batches(stored: Sequence[Stored], size: int) -> Iterator[Sequence[Stored]]:
    for at in range(0, len(stored), size):
        yield stored[at : at + size]


def fill(settings: Settings, embedder: Any, load: Workload, deadline: float) -> int:
    """Database and index, in bulk but as the cache fills them; returns how many entries came in in time."""
    ibidem.open(settings.path, embedder=embedder).close()  # makes the tables
    index, engine = (
        index_opener(settings, registry_of(settings, embedder.fingerprint, open_store(settings)))(),
        open_engine(sqlite_url(settings.path / "ibidem.sqlite3")),
    )
    done = 0
    for batch in batches(load.stored, 2_000):
        made = [entry(load, stored) for stored in batch]
        rows = [entry_row(one) for one, _ in made]
        number = embedder_id(embedder.fingerprint)
        vectors = [{**vector_row(one, number), "indexed_in": index.generation} for one, _ in made]
        points = {str(one.point): where for one, where in made}  # one for wordings with one vector
        index.upsert(list(points), np.stack(list(points.values())))
        with engine.begin() as db:
            db.execute(entries_table.insert().prefix_with("OR IGNORE"), rows)
            db.execute(entry_vectors.insert().prefix_with("OR IGNORE"), vectors)
        done += len(batch)
        if time.monotonic() > deadline:
            break
    index.close()
    engine.dispose()
    return done


def request_of(load: Workload, text: int, scope: str) -> Request:
    return Request(load.texts[text], scope=scope)


def entry(load: Workload, stored: Stored) -> tuple[Entry, NDArray[np.float32]]:
    """The entry with an answer that tells where it came from, and its vector in the index."""
    request, vector = request_of(load, stored.text, stored.scope), load.vectors[stored.text]
    made = Entry(
        id=request.key,
        namespace="",
        scope=request.scope_digest,
        question=request.question,
        documents=request.documents_digest,
        semantic=True,
        answer=Answer(f"{stored.scope}|{stored.text}"),
        created=time.time(),
        vector=vector,
    )
    return made, with_scope_code(to_vector(to_bytes(vector)), "", request.scope_digest)


class PlainCollection:
    """The same entries in Chroma as one would store them without Ibidem: vectors, and the scope beside."""

    def __init__(self, directory: Path) -> None:
        import chromadb

        settings = chromadb.Settings(anonymized_telemetry=False)
        self.client = chromadb.PersistentClient(path=str(directory), settings=settings)
        hnsw = {"space": "cosine", "ef_search": 200, "sync_threshold": 1000}
        self.collection = self.client.create_collection(
            "plain", configuration={"hnsw": hnsw}, embedding_function=None
        )

    def fill(self, load: Workload, stored: Sequence[Stored], deadline: float) -> int:
        """Returns how many came in in time."""
        done = 0
        for batch in batches(stored, 2_000):
            self.collection.add(
                ids=[f"{one.scope}|{one.text}" for one in batch],
                embeddings=load.vectors[[one.text for one in batch]],
                metadatas=[{"s": one.scope} for one in batch],
            )
            done += len(batch)
            if time.monotonic() > deadline:
                break
        return done

    def search(self, vector: NDArray[np.float32], scope: str | None, k: int) -> list[str]:
        """The nearest, of one scope by Chroma's `where`, or of all."""
        where = None if scope is None else {"s": scope}
        found = self.collection.query(query_embeddings=[vector], n_results=k, where=where, include=[])
        return list(found["ids"][0])


# measuring --------------------------------------------------------------------------------------------


class Timed:
    """Milliseconds of each call."""

    def __init__(self) -> None:
        self.took: list[float] = []

    def __call__(self, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        self.took.append((time.perf_counter() - began) * 1000)
        return result

    def row(self, name: str, unit: float) -> str:
        """A line of the table."""
        p50, p95 = np.percentile(self.took, [50, 95])
        return f"| {name} | {p50:.2f} | {p95:.2f} | {p50 / unit:.1f} | {len(self.took)} |"


def measure(
    settings: Settings, embedder: Any, load: Workload, plain: PlainCollection, in_plain: set[Stored]
) -> None:
    """Ask everything, time each part by itself, and print."""
    with ibidem.open(settings.path, embedder=embedder) as cache:
        cache.lookup(Request("opens the index and the model", scope="none"))
        whole, hits, right, leaks = ask(cache, load)
        assert cache.stats().faults == {}, cache.stats().faults
        parts = search_parts(cache, embedder, load)
    store = Store(sqlite_url(settings.path / "ibidem.sqlite3"))
    try:
        print_found(load, store, parts)
    finally:
        store.close()
    compare(load, plain, in_plain, whole, parts)
    wrong = hits - right
    requests = len(load.asked)
    print(f"\nHits {hits} of {requests} ({hits / requests:.1%}) at the default threshold; wrong {wrong}:")
    print(f"{wrong / max(1, hits):.2%} of hits, {wrong / requests:.2%} of requests; other scopes': {leaks}.")


def ask(cache: ibidem.SemanticCache, load: Workload) -> tuple[Timed, int, int, int]:
    """Every lookup through the front door; (times, hits, right ones, answers of another scope)."""
    whole, hits, right, leaks = Timed(), 0, 0, 0
    for text, wanted in load.asked:
        request = request_of(load, text, wanted.scope)
        found = whole(lambda request=request: cache.lookup(request))
        if found:
            scope, _, number = found.answer.text.partition("|")
            hits += 1
            leaks += scope != wanted.scope
            right += (scope, int(number)) == (wanted.scope, wanted.text)
    return whole, hits, right, leaks


@dataclass
class Parts:
    """Times of embedding and search, and the points found by each lookup."""

    embedding: Timed
    search: Timed
    found: list[list[str]]


def search_parts(cache: ibidem.SemanticCache, embedder: Any, load: Workload) -> Parts:
    """The two dear steps of a lookup, one by one."""
    parts = Parts(Timed(), Timed(), [])
    nearest = cache._runtime.vectors.nearest
    for text, wanted in load.asked:
        words, scope = load.texts[text], request_of(load, text, wanted.scope).scope_digest
        vector = parts.embedding(lambda words=words: embedder.embed([words]))[0]
        found = parts.search(lambda scope=scope, vector=vector: nearest("", scope, vector, NEIGHBOURS))
        parts.found.append(found)
    return parts


def print_found(load: Workload, store: Store, parts: Parts) -> None:
    """How often the right entry is among what the coded search returns."""
    first = somewhere = 0
    for (_, wanted), found in zip(load.asked, parts.found, strict=True):
        made, _ = entry(load, wanted)
        somewhere += made.point in found
        first += found[:1] == [made.point]
    n = len(load.asked)
    print(f"\n| right entry | top 1 | top {NEIGHBOURS} |\n|---|---|---|")
    print(f"| with scope code, unfiltered (Ibidem) | {first / n:.1%} | {somewhere / n:.1%} |")


def compare(
    load: Workload, plain: PlainCollection, in_plain: set[Stored], whole: Timed, parts: Parts
) -> None:
    """Without the code, with Chroma's filter; and the table of times."""
    asked = [(text, wanted) for text, wanted in load.asked if wanted in in_plain]
    bare, filtered = Timed(), Timed()
    seen = {"bare": [0, 0], "where": [0, 0]}
    for number, (text, wanted) in enumerate(asked):
        vector, name = load.vectors[text], f"{wanted.scope}|{wanted.text}"
        ids = bare(lambda vector=vector: plain.search(vector, None, NEIGHBOURS))
        seen["bare"] = _counted(seen["bare"], ids, name)
        if number < FILTERED:
            ids = filtered(lambda v=vector, s=wanted.scope: plain.search(v, s, NEIGHBOURS))
            seen["where"] = _counted(seen["where"], ids, name)
    for (first, somewhere), label, n in (
        (seen["bare"], "without scope code, unfiltered", len(bare.took)),
        (seen["where"], "without scope code, Chroma's `where`", len(filtered.took)),
    ):
        print(f"| {label} | {first / n:.1%} | {somewhere / n:.1%} |")
    unit = float(np.percentile(parts.search.took, 50))
    print("\n| ms | p50 | p95 | p50 / Ibidem's search | n |\n|---|---|---|---|---|")
    print(whole.row("whole SemanticCache.lookup", unit))
    print(parts.embedding.row("bare embedding", unit))
    print(parts.search.row("Ibidem's search (VectorSearch.nearest)", unit))
    print(bare.row("Chroma, no filter, no code", unit))
    print(filtered.row("Chroma's `where` filter", unit))


def _counted(counts: list[int], ids: list[str], name: str) -> list[int]:
    return [counts[0] + (ids[:1] == [name]), counts[1] + (name in ids)]


def print_workload(options: argparse.Namespace, file: Path, load: Workload, indexed: int, held: int) -> None:
    """What was measured, on what."""
    names = ("chromadb", "numpy", "onnxruntime", "sqlalchemy", "ibidem-cache")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    distinct = len(load.texts) - len(load.asked)
    print(
        f"{indexed:,} entries ({held:,} in the comparison) of {distinct:,} questions x {COPIES} of "
        f"{options.scopes:,} scopes, {len(load.asked):,} lookups reworded, the words asked stored in "
        f"{DECOYS} other scopes; embedder {options.embedder}; seed {options.seed}."
    )
    print(f"Questions: {file.name} (Natural Questions, CC BY-SA 3.0, if that is what it is).")
    print(f"{versions}; Python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.system()}.")


if __name__ == "__main__":
    sys.exit(main())
