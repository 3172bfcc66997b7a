"""What a cache costs inside LangChain, beside LangChain's own caches.

Run as `python -m tests.benchmarks.speed.in_langchain`; `--help` lists the options. All caches hold the same
answers and are asked in turn, in one process. The model says its answer at once, so what is measured is
LangChain and the cache.
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.caches import BaseCache, InMemoryCache
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.tracers.context import _configure_hooks

from langchain_ibidem import IbidemCache
from tests.benchmarks.speed.load import Load, load
from tests.benchmarks.speed.timing import percentiles

DEFAULT_DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
QUESTIONS = 200
TASKS = 64
RAG = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer from the context only.\n\nContext:\n{context}"),
        ("human", "Question: {question}\nAnswer:"),
    ]
)


class Quick(BaseChatModel):
    """Answers at once."""

    name_of_model: str = "quick"
    temperature: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "quick"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.name_of_model, "temperature": self.temperature}

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        message = AIMessage("An answer of some words. " * 8, response_metadata={"finish_reason": "stop"})
        return ChatResult(generations=[ChatGeneration(message=message)])


class Shelf(BaseRetriever):
    """Finds the same documents for every question; `size` characters in all."""

    size: int

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        text = "Goods can be returned within thirty days, with the receipt. " * (self.size // 240 + 1)
        return [
            Document(f"Part {number}: {text}"[: self.size // 4], id=f"terms#{number}") for number in range(4)
        ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.speed.in_langchain", description=__doc__
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--calls", type=int, default=1_000, help="of each kind")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", module="langchain_community")  # it warns of itself at every hit
    if not (options.data / "nq_questions.jsonl").is_file():
        print(f"skipped: there is no {options.data / 'nq_questions.jsonl'}; pass --data DIR with that file")
        return 0
    questions = load(options.data, QUESTIONS, QUESTIONS)
    with tempfile.TemporaryDirectory(prefix="ibidem-speed-") as folder:
        caches = caches_in(Path(folder))
        print_hits(options.calls, caches, questions)
        print_tracker(options.calls)
        for cache in caches.values():
            if isinstance(cache, IbidemCache):
                cache.close()
    return 0


def caches_in(folder: Path) -> dict[str, BaseCache | bool]:
    """By name; False for none. LangChain's SQLite cache is left out if it is not installed."""
    found: dict[str, BaseCache | bool] = {"no cache": False, "InMemoryCache": InMemoryCache()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations of its own
            from langchain_community.cache import SQLiteCache

        found["SQLiteCache"] = SQLiteCache(str(folder / "langchain.db"))
    except ImportError:
        print("left out: SQLiteCache, since langchain-community is not installed (pip install '.[bench]')")
    return {**found, "Ibidem": IbidemCache(path=folder / "ibidem")}


Ask = Callable[[Any], Any]


def print_hits(calls: int, caches: dict[str, BaseCache | bool], questions: Load) -> None:
    """Exact hits through a model and through chains over documents, and reworded ones."""
    print("| hit, ms p50 (p95) | " + " | ".join(caches) + " | Ibidem / SQLiteCache |")
    print("|---" * (len(caches) + 2) + "|")
    ways: dict[str, Callable[[BaseCache | bool], Ask]] = {
        "`model.invoke`": lambda cache: Quick(cache=cache).invoke,
        "RAG chain, 4 KB": lambda cache: chain(cache, 4_000).invoke,
        "RAG chain, 32 KB": lambda cache: chain(cache, 32_000).invoke,
    }
    for name, way in ways.items():
        asks = {label: way(cache) for label, cache in caches.items()}
        for ask in asks.values():  # all is stored, and warm
            for text in questions.stored:
                ask(text)
        for ask in asks.values():
            for text in questions.stored[:20]:
                ask(text)
        print_row(name, in_turn(asks, questions.stored, calls))
    asks = {label: chain(cache, 4_000).ainvoke for label, cache in caches.items()}
    print_row(f"RAG chain, 4 KB, {TASKS} tasks at once, each", asyncio.run(together(asks, questions, calls)))
    only = {"Ibidem": chain(caches["Ibidem"], 4_000).invoke}
    reworded = [questions.reworded(at) for at in range(min(calls, 8 * QUESTIONS))]
    took = percentiles(in_turn(only, reworded, len(reworded))["Ibidem"])
    print(f"\nReworded, RAG chain of 4 KB: Ibidem {took['p50']:.2f} ms ({took['p95']:.2f}).")


def print_row(name: str, took: dict[str, list[float]]) -> None:
    """A line of the table."""
    found = {label: percentiles(one) for label, one in took.items()}
    cells = [f"{one['p50']:.3f} ({one['p95']:.2f})" for one in found.values()]
    ratio = f"{found['Ibidem']['p50'] / found['SQLiteCache']['p50']:.2f}" if "SQLiteCache" in found else ""
    print(f"| {name} | {' | '.join(cells)} | {ratio} |")


def chain(cache: BaseCache | bool, size: int) -> Runnable[str, Any]:
    """As LangChain's documentation has it."""
    shown = RunnableLambda(lambda found: "\n\n".join(document.page_content for document in found))
    return {"context": Shelf(size=size) | shown, "question": RunnablePassthrough()} | RAG | Quick(cache=cache)


def in_turn(asks: dict[str, Ask], texts: Sequence[Any], calls: int) -> dict[str, list[float]]:
    """Milliseconds of each call; all are asked the same, one after the other."""
    took: dict[str, list[float]] = {label: [] for label in asks}
    for at in range(calls):
        for label, ask in asks.items():
            began = time.perf_counter()
            ask(texts[at % len(texts)])
            took[label].append((time.perf_counter() - began) * 1000)
    return took


async def together(asks: dict[str, Any], questions: Load, calls: int) -> dict[str, list[float]]:
    """Milliseconds a call of many tasks at once, each cache for a while, then the next."""
    took: dict[str, list[float]] = {label: [] for label in asks}
    for _ in range(3):
        for label, ask in asks.items():
            for batch in range(max(2, calls // TASKS)):
                texts = (questions.stored[(batch + at) % QUESTIONS] for at in range(TASKS))
                began = time.perf_counter()
                await asyncio.gather(*map(ask, texts))
                took[label].append((time.perf_counter() - began) * 1000 / TASKS)
    return took


def print_tracker(calls: int) -> None:
    """What listening costs a chain that calls no model."""
    step = RunnableLambda(lambda value: value)
    seven = step | step | step | step | step | RAG | step
    given = {"context": "c" * 1_000, "question": "What is it?"}
    listening = next(variable for variable, *_ in _configure_hooks if "ibidem" in variable.name)
    without = contextvars.copy_context()
    without.run(listening.set, None)
    both: dict[str, Ask] = {
        "without": lambda value: without.run(seven.invoke, value),
        "with": seven.invoke,
    }
    for ask in both.values():
        for _ in range(50):
            ask(given)
    _print_times("sync", in_turn(both, [given], calls))

    async def asynchronously() -> dict[str, list[float]]:
        took: dict[str, list[float]] = {"without": [], "with": []}
        for _ in range(calls):
            for label, deaf in (("without", True), ("with", False)):
                token = listening.set(None) if deaf else None
                began = time.perf_counter()
                await seven.ainvoke(given)
                took[label].append((time.perf_counter() - began) * 1000)
                if token is not None:
                    listening.reset(token)
        return took

    _print_times("async", asyncio.run(asynchronously()))


def _print_times(name: str, took: dict[str, list[float]]) -> None:
    without, heard = (float(np.median(took[label])) for label in ("without", "with"))
    print(
        f"\nA chain of seven steps without a model, {name}: {without:.3f} ms without the tracker, "
        f"{heard:.3f} with it: {heard / without - 1:+.1%}."
    )


if __name__ == "__main__":
    sys.exit(main())
