"""What a stream of LangChain costs on its way through the cache: asked, stored and replayed.

A model that takes no time sends chunks of one word, so what is left are the times of LangChain and, with the
cache, ours. Of each the best of several runs, turn by turn, since a busy machine only adds to them. Questions
are embedded as bags of words; the default embedder takes some milliseconds more before the first chunk.

    python -m tests.benchmarks.langchain_streams [--chunks 500] [--runs 15]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from rich.console import Console
from rich.table import Table

import ibidem
from langchain_ibidem import install, uninstall
from tests.embedders import BagOfWords

Times = tuple[float, float, float]  # until the first chunk; per chunk; from the last one to the end


class Words(BaseChatModel):
    """Sends `chunks` words, the last of them marked."""

    chunks: int

    @property
    def _llm_type(self) -> str:
        return "words"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": "words"}

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for number in range(1, self.chunks + 1):
            position: Any = "last" if number == self.chunks else None
            yield ChatGenerationChunk(message=AIMessageChunk(f"word{number} ", chunk_position=position))

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream():
            yield chunk


def timed(model: Words, question: str) -> Times:
    """One stream."""
    seen = [time.perf_counter()]
    seen += [time.perf_counter() for _ in model.stream(question)]
    return _times([*seen, time.perf_counter()])


def timed_in_async(model: Words, question: str) -> Times:
    """The same of `astream`."""

    async def read() -> Times:
        seen = [time.perf_counter()]
        seen += [time.perf_counter() async for _ in model.astream(question)]
        return _times([*seen, time.perf_counter()])

    return asyncio.run(read())


def _times(seen: list[float]) -> Times:
    start, first, last, end = seen[0], seen[1], seen[-2], seen[-1]
    return first - start, (last - first) / max(1, len(seen) - 3), end - last


def measure(chunks: int, runs: int, cache: ibidem.cache.SemanticCache) -> dict[str, Times]:
    """The best times of each case."""
    cached = Words(chunks=chunks)
    plain = Words(chunks=chunks, cache=False)
    found: dict[str, list[Times]] = {}
    for run in range(runs):
        question = f"What is said in run {run}?"
        for name, read in (("stream", timed), ("astream", timed_in_async)):
            found.setdefault(f"{name}, no cache", []).append(read(plain, question))
            found.setdefault(f"{name}, stored", []).append(read(cached, question))
            found.setdefault(f"{name}, replayed", []).append(read(cached, question))
            cache.clear()
    return {name: (min(a), min(b), min(c)) for name, (a, b, c) in _columns(found)}


def _columns(found: dict[str, list[Times]]) -> Iterator[tuple[str, Any]]:
    return ((name, zip(*times, strict=True)) for name, times in found.items())


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--chunks", type=int, default=500)
    arguments.add_argument("--runs", type=int, default=15)
    given = arguments.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        ibidem.open(folder, embedder=BagOfWords(), examples=False) as cache,
    ):
        install(cache)
        measured = measure(given.chunks, given.runs, cache)
        uninstall()
    table = Table("", "first chunk ms", "per chunk us", "end ms", title=f"{given.chunks} chunks of a word")
    for name, (first, each, end) in measured.items():
        table.add_row(name, f"{first * 1e3:.2f}", f"{each * 1e6:.1f}", f"{end * 1e3:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
