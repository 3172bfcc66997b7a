"""How often PostgreSQL finds the nearest questions, and how fast: all compared, and by the HNSW index.

Run as `python -m tests.benchmarks.servers.search`; `--help` lists the options. The truth is a comparison with
all vectors of the scope in numpy. Vectors are random ones around 5,000 centres, or those of a file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ibidem.index.pgvector import exact_limit
from ibidem.storage.pgvector import Place
from ibidem.storage.store import Store
from ibidem.types import point_of
from tests.benchmarks.servers.filling import fill, request_of
from tests.servers import running_postgres_server

K, ASKED, DIMENSION, CENTRES = 8, 300, 384, 5_000
HEAD = (
    f"{'entries':>8} {'scopes':>7} {'in scope':>9}  {'search':<9} {'recall@8':>9} {'p50 ms':>7} {'p95 ms':>7}"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.servers.search", description=__doc__)
    parser.add_argument("--entries", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--scopes", type=int, nargs="*", default=[1, 10, 1_000])
    parser.add_argument("--vectors", type=Path, help="an .npy file of unit vectors, some more than entries")
    options = parser.parse_args(arguments)
    print(HEAD)
    with running_postgres_server() as server:
        for entries in options.entries:
            rows = _vectors(options.vectors, entries + ASKED)
            for scopes in options.scopes:
                name = f"{entries} in {scopes}"
                with closing(Store(server.url, pgvector=True)) as store:
                    fill(store, name, [f"question {n}" for n in range(entries)], rows[:entries], scopes)
                    measure(store, name, rows[:entries], rows[entries:], scopes)
                    store.clear()
    return 0


def _vectors(file: Path | None, count: int) -> NDArray[np.float16]:
    """Unit vectors, shuffled."""
    draw = np.random.default_rng(0)
    if file is not None:
        rows = np.load(file)
        return np.asarray(rows[draw.permutation(len(rows))[:count]])
    centres = draw.normal(size=(CENTRES, DIMENSION)).astype(np.float32)
    made = centres[draw.integers(0, CENTRES, count)]
    made += 0.7 * draw.normal(size=made.shape).astype(np.float32)
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), dtype=np.float16)


def measure(
    store: Store, embedder: str, rows: NDArray[np.float16], asked: NDArray[np.float16], scopes: int
) -> None:
    """Print a row for each way to search; the one that Ibidem chooses has an asterisk."""
    table, wide = store.vectors(embedder).embeddings(), rows.astype(np.float32)
    names = [request_of("any", scope).scope_digest for scope in range(min(scopes, len(asked)))]
    truth = [_nearest(wide, n % scopes, scopes, names, vector) for n, vector in enumerate(asked)]
    by_index = len(rows) // scopes > exact_limit(len(rows))
    for way in ("all", "index"):
        if way == "index":
            began = time.perf_counter()
            table.index.build(rows.shape[1])
            print(f"{'':>27} index built in {time.perf_counter() - began:.0f} s")
        hits, took = 0, []
        for n, vector in enumerate(asked.astype(np.float32)):
            began = time.perf_counter()
            place = Place("place", names[n % scopes], by_index=way == "index")
            points = table.nearest("", [place], vector, K)
            took.append(1000 * (time.perf_counter() - began))
            hits += len(truth[n] & set(points))
        share = hits / sum(map(len, truth))
        mark = way + "*" * (by_index == (way == "index"))
        sizes = f"{len(rows):>8,} {scopes:>7,} {len(rows) // scopes:>9,}"
        times = f"{np.percentile(took, 50):>7.2f} {np.percentile(took, 95):>7.2f}"
        print(f"{sizes}  {mark:<9} {share:>9.4f} {times}", flush=True)


def _nearest(
    rows: NDArray[np.float32], scope: int, scopes: int, names: Sequence[str], vector: NDArray[np.float16]
) -> set[str]:
    """The points of the nearest in a scope, by comparing all."""
    here = rows[scope::scopes]
    best = np.argsort(-(here @ vector.astype(np.float32)))[:K]
    return {point_of("", names[scope], here[at]) for at in best}


if __name__ == "__main__":
    raise SystemExit(main())
