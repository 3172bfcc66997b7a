"""How the cost of a lookup grows.

Run as `python -m tests.benchmarks.speed.growth`; `--help` lists the options. One thing grows at a time.
`entries` fills caches as `python -m tests.benchmarks.speed` does, each in processes of its own; the others
grow in a cache of 1,000 entries. Sizes just below 10,000 are not asked for: there the vectors move from
memory into the index while the calls are measured.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import ibidem
from ibidem import Answer, Document, Request
from ibidem.embedding import resolve_embedder
from ibidem.storage.logs import LookupRow
from langchain_ibidem import IbidemCache
from tests.benchmarks.speed.__main__ import DEFAULT_DATA, child
from tests.benchmarks.speed.in_langchain import chain, in_turn
from tests.benchmarks.speed.load import Load, load
from tests.benchmarks.speed.timing import percentiles, times

AXES = ("entries", "scopes", "documents", "prompt", "log")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = parse(arguments)
    if not (options.data / "nq_questions.jsonl").is_file():
        print(f"skipped: there is no {options.data / 'nq_questions.jsonl'}; pass --data DIR with that file")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="ibidem-growth-", dir=options.work))
    try:
        for axis in options.axes:
            {"entries": entries, "scopes": scopes, "documents": documents, "prompt": prompts, "log": log}[
                axis
            ](options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.speed.growth", description=__doc__)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 9_000, 100_000])
    parser.add_argument("--few", type=int, default=1_000, help="entries where something else grows")
    parser.add_argument("--calls", type=int, default=300, help="of each kind; at most as many as `--few`")
    parser.add_argument("--most", type=int, default=100_000, help="lines of the log")
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement of throughput")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--work", type=Path, help="where caches are built; default: the temporary directory")
    parser.add_argument("--plot", type=Path, help="an SVG to write, of the growth with entries")
    return parser.parse_args(arguments)


def entries(options: argparse.Namespace, folder: Path) -> None:
    """The number of answers in one scope."""
    told_of: dict[int, dict[str, Any]] = {}
    print(
        "\n| entries | exact ms p50 (p95) | by meaning | less the bare encode | miss and store "
        "| first hit s | by meaning s | MB | disk MB | fill s |\n" + "|---" * 10 + "|"
    )
    for count in options.entries:
        filled = child(options, folder, "ibidem", count, "fill")
        told = child(options, folder, "ibidem", count, "measure")
        less = told["reworded"]["p50"] - told["encode"]["p50"]
        cells = [f"{told[kind]['p50']:.3f} ({told[kind]['p95']:.2f})" for kind in ("exact", "reworded")]
        missed = f"{told['missed']['p50']:.2f} ({told['missed']['p95']:.2f})"
        print(
            f"| {count:,} | {' | '.join(cells)} | {less:.2f} | {missed} | {told['first_exact']:.2f} "
            f"| {told['first_semantic']:.2f} | {told['rss'] / 1e6:.0f} | {filled['disk'] / 1e6:.0f} "
            f"| {filled['seconds']:.0f} |",
            flush=True,
        )
        shutil.rmtree(folder / f"ibidem-{count}")
        told_of[count] = {**told, "search": less}
    if options.plot:
        options.plot.write_text(plotted(told_of), encoding="utf-8")


def plotted(told_of: dict[int, dict[str, Any]]) -> str:
    """An SVG: milliseconds at the median over the number of entries, both logarithmic."""
    from ibidem_lab.report.drawing import draw

    kinds: dict[str, Callable[[dict[str, Any]], float]] = {
        "exact hit": lambda told: told["exact"]["p50"],
        "hit by meaning": lambda told: told["reworded"]["p50"],
        "bare encode": lambda told: told["encode"]["p50"],
        "by meaning less the encode": lambda told: told["search"],
    }
    values = [
        {"entries": count, "ms": max(of(told), 0.01), "what": kind}
        for count, told in told_of.items()
        for kind, of in kinds.items()
    ]
    axes = {"x": ("entries", "stored answers"), "y": ("ms", "ms at the median")}
    return draw(
        {
            "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
            "width": 520,
            "height": 300,
            "padding": 12,
            "background": "#fff",
            "data": {"values": values},
            "mark": {"type": "line", "point": True},
            "encoding": {
                "color": {
                    "field": "what",
                    "type": "nominal",
                    "title": None,
                    "sort": list(kinds),
                    "legend": {"orient": "top"},
                },
                **{
                    axis: {
                        "field": field,
                        "type": "quantitative",
                        "scale": {"type": "log"},
                        "title": title,
                        "axis": {"format": "~s" if axis == "x" else "~g"},
                    }
                    for axis, (field, title) in axes.items()
                },
            },
        }
    )


def scopes(options: argparse.Namespace, folder: Path) -> None:
    """The number of scopes: system prompts, models, histories."""
    questions = load(options.data, options.few, options.few)
    _heading("scopes")
    for count in (1, 10, 100, 1_000):
        with _filled(folder / f"scopes-{count}", questions, lambda at, n=count: {"scope": f"s{at % n}"}) as c:

            def ask(at: int, count: int = count) -> Request:
                number = questions.asked[at]
                return Request(questions.reworded(at), scope=f"s{number % count}")

            _row(f"{count:,}", c, map(ask, range(options.calls)))


def documents(options: argparse.Namespace, folder: Path) -> None:
    """The number of documents behind each answer and in each request, of 1,000 characters."""
    questions = load(options.data, options.few, options.few)
    _heading("documents")
    for count in (0, 4, 16, 64):
        texts = [Document(f"d{at}", f"Document {at}. " + "Some words of it. " * 55) for at in range(count)]
        with _filled(folder / f"documents-{count}", questions, lambda _, d=texts: {"documents": d}) as cache:
            asked = (
                Request(questions.reworded(at), documents=(*texts[1:], *texts[:1]))
                for at in range(options.calls)
            )
            _row(str(count), cache, asked)


def prompts(options: argparse.Namespace, folder: Path) -> None:
    """The length of the prompt of a RAG chain in LangChain; the share of the cache is the difference."""
    questions = load(options.data, min(100, options.few), min(100, options.few))
    print("\n| prompt KB | chain without cache, ms p50 | exact hit | the cache's own, less the chain |")
    print("|---|---|---|---|")
    with IbidemCache(path=folder / "prompts") as cache:
        for size in (1, 4, 16, 64, 256):
            bare, cached = chain(False, size * 1_000).invoke, chain(cache, size * 1_000).invoke
            for text in questions.stored * 2:
                cached(text)
            took = in_turn({"bare": bare, "cached": cached}, questions.stored, options.calls)
            both = [percentiles(took[label])["p50"] for label in ("bare", "cached")]
            print(f"| {size} | {both[0]:.2f} | {both[1]:.2f} | {both[1] - both[0]:.2f} |", flush=True)


def log(options: argparse.Namespace, folder: Path) -> None:
    """The number of lines in the log of lookups."""
    questions = load(options.data, options.few, options.few)
    _heading("lines of the log")
    with _filled(folder / "log", questions, lambda _: {}) as cache:
        written = 0
        for count in (0, options.most // 10, options.most):
            row = LookupRow(time.time(), "", "s", "q", "exact", "", "e", 1.0, 0.001, 100)
            if count > written:
                cache._runtime.store.lookups.add([row] * (count - written))
            written = count
            asked = (Request(questions.reworded(at + written)) for at in range(options.calls))
            _row(f"{count:,}", cache, asked)


def _filled(folder: Path, questions: Load, given: Callable[[int], dict[str, Any]]) -> ibidem.SemanticCache:
    cache = ibidem.open(folder)
    for at, text in enumerate(questions.stored):
        cache.store(Request(text, **given(at)), Answer(questions.answer(at)))
    cache.flush()
    return cache


def _heading(grows: str) -> None:
    print(f"\n| {grows} | exact ms p50 (p95) | by meaning | less the bare encode |\n|---|---|---|---|")


def _row(label: str, cache: ibidem.SemanticCache, asked: Iterable[Request]) -> None:
    """Requests by meaning, each twice stored beforehand so that it is asked exactly as well."""
    encode = resolve_embedder(None).embed
    encode(["warm"])
    meaning, exact, bare = [], [], []
    for request in asked:
        bare += times(encode, [[request.question]])
        meaning += times(cache.lookup, [request])
        cache.store(request, Answer("said just now"))
        exact += times(cache.lookup, [request])
    found = [percentiles(took) for took in (exact, meaning)]
    less = found[1]["p50"] - percentiles(bare)["p50"]
    cells = " | ".join(f"{one['p50']:.3f} ({one['p95']:.2f})" for one in found)
    print(f"| {label} | {cells} | {less:.2f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
