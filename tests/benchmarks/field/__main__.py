"""Ibidem beside the other semantic caches: what is served of the same, which traps, how fast.

    make bench-field                                    # everything that is here
    make bench-field ONLY=ibidem                        # Ibidem's rows anew, those of others are kept
    python -m tests.benchmarks.field --help             # each option

Figures go to `results.json`, and from there into the tables and the chart of docs/field.md. A set, a cache
or a server that is not here is left out, said, and keeps the rows it has. `--page-only` makes the page
anew from the figures, which takes no time.
"""

from __future__ import annotations

import argparse
import functools
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from ibidem import __version__
from tests.benchmarks.field import contenders, encoders, measure, on_redis, ours, semanticmemo, sets
from tests.benchmarks.field.contenders import Cache, Tools
from tests.benchmarks.field.page import Page
from tests.benchmarks.field.results import Results

CONTENDERS: dict[str, type[Cache]] = {
    "ibidem": ours.Ibidem,
    "cosine": contenders.PlainCosine,
    "cosine-mpnet": contenders.PlainCosineMpnet,
    "gptcache": contenders.GPTCache,
    "redisvl": on_redis.RedisVL,
    "langchain-redis": on_redis.LangChainRedis,
    "betterdb": on_redis.BetterDB,
    "semanticmemo": semanticmemo.SemanticMemoCosine,
    "semanticmemo-net": semanticmemo.SemanticMemo,
    "waggle": contenders.Waggle,
    "langchain": contenders.LangChainExact,
    "langchain-sqlite": contenders.LangChainSQLite,
}
REFERENCE = "cosine"  # whose lookups are the unit of latency
SAMPLE, LATENCY = "gptcache-sample", "latency"
SETS = (*sets.PAIRS, SAMPLE, *sets.STREAMS, LATENCY)
HERE = Path(__file__).parent
DOCS = HERE.parents[2] / "docs"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, keep the figures, make the page."""
    given = parse(arguments)
    results, page = Results.read(given.results), Page(given.page, given.chart, list(CONTENDERS))
    with tempfile.TemporaryDirectory(prefix="ibidem-field-") as folder:
        if not given.page_only:
            run(given, Tools(Path(folder), minilm, _mpnet(given.mpnet), given.redis), results)
    page.write(results)
    print(f"written: {given.results}, {given.page}, {given.chart}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.field", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--data", type=Path, help="folder with streams/*.jsonl")
    parser.add_argument("--meancache", type=Path, help="folder with test.csv (warisgill/MeanCache)")
    parser.add_argument("--gptcache", type=Path, help="folder with mock_data.json (zilliztech/GPTCache)")
    parser.add_argument("--mpnet", type=Path, help="folder with all-mpnet-base-v2, as downloaded")
    parser.add_argument(
        "--redis", help="URL of a Redis or Valkey with search; what is compared is kept there"
    )
    parser.add_argument("--pairs", type=int, default=sets.Where.pairs, help="at most, of a set that is named")
    parser.add_argument("--requests", type=int, default=sets.Where.requests, help="at most, of each stream")
    parser.add_argument("--lookups", type=int, default=100, help="timed, of each cache")
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--page", type=Path, default=DOCS / "field.md")
    parser.add_argument("--chart", type=Path, default=DOCS / "img" / "field.svg")
    return parser.parse_args(arguments)


minilm = functools.cache(encoders.minilm)


def _mpnet(folder: Path | None) -> functools.partial[encoders.Encoder] | None:
    return None if folder is None else functools.partial(_loaded, folder)


@functools.cache
def _loaded(folder: Path) -> encoders.Encoder:
    return encoders.mpnet(folder)


def run(given: argparse.Namespace, tools: Tools, results: Results) -> None:
    """Each cache on each set; what cannot be is said."""
    where = sets.Where(given.data, given.meancache, given.gptcache, given.pairs, given.requests)
    here = {}
    for key in given.only:
        if reason := CONTENDERS[key].missing(tools):
            print(f"left out: {CONTENDERS[key].name}: {reason}", flush=True)
        else:
            here[key] = CONTENDERS[key]
    for name in given.sets:
        try:
            if name == LATENCY:
                _time(here, tools, where, given.lookups, results)
            else:
                _count(name, here, tools, where, results)
        except sets.Missing as missing:
            print(f"left out: the set {name}: {missing}", flush=True)
        results.write()


def _count(
    name: str, here: dict[str, type[Cache]], tools: Tools, where: sets.Where, results: Results
) -> None:
    """All caches on one set."""
    if name in sets.PAIRS:
        given, work = sets.PAIRS[name](where), measure.pairs
    elif name == SAMPLE:
        given, work = sets.gptcache(where), measure.one_cache
    else:
        given, work = sets.stream(name, where), measure.stream
    for key, made in here.items():
        cache = made(_of_its_own(tools, key))
        try:
            rows = work(cache, given)
        finally:
            cache.close()
        results.put(name, key, made.name, _version(made), rows, _today())
        print(f"{name}: {made.name}: {rows}", flush=True)
        results.write()


def _time(
    here: dict[str, type[Cache]], tools: Tools, where: sets.Where, lookups: int, results: Results
) -> None:
    """All caches in turn, and the reference with them."""
    given = [pair for pair in sets.questions(where) if pair.same][:lookups]
    wanted = {REFERENCE: CONTENDERS[REFERENCE], **here}
    caches = {key: made(_of_its_own(tools, key)) for key, made in wanted.items()}
    used = [cache.encode for cache in caches.values() if isinstance(cache, contenders.Encoded)]
    try:
        for cache in caches.values():
            measure.fill(cache, given)
        for encoder in used:
            encoder.remembers = False
        found = measure.latency(caches, given, REFERENCE)
    finally:
        for encoder in used:
            encoder.remembers = True
        for cache in caches.values():
            cache.close()
    machine = f"Python {platform.python_version()}, {platform.machine()}"
    for key in here:
        made = CONTENDERS[key]
        rows = {contenders.first(made): found[key] | {"machine": machine}}
        results.put(LATENCY, key, made.name, _version(made), rows, _today())
        print(f"{LATENCY}: {made.name}: {found[key]}", flush=True)


def _of_its_own(tools: Tools, key: str) -> Tools:
    folder = Path(tempfile.mkdtemp(prefix=f"{key}-", dir=tools.folder))
    return replace(tools, folder=folder)


def _version(made: type[Cache]) -> str:
    if made.package == "sentence-transformers":  # no release of a cache
        return ""
    return __version__ if made is ours.Ibidem else version(made.package)


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


if __name__ == "__main__":
    main()
