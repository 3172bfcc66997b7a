"""Streams of a synthesizer on their way to the user; a model may only be asked when they are read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Any

from ibidem._util.concurrency import in_thread
from ibidem.adapter.call import Inquiry
from llama_index_ibidem.spans import within


def passed_on(
    stream: Iterator[str], synthesis: str | None, inquiry: Inquiry[Any], keep: Callable[[str], None]
) -> Generator[str, None, None]:
    """The pieces of the stream, to `keep` as one text if all of them are taken; else the inquiry has failed.

    What is asked for them belongs to the synthesis; not so what their reader does between them.
    """
    return inquiry.ended_with(_passed_on(stream, synthesis, inquiry, keep))


def apassed_on(
    stream: AsyncIterator[str], synthesis: str | None, inquiry: Inquiry[Any], keep: Callable[[str], None]
) -> AsyncGenerator[str, None]:
    """The same for async code; kept in a thread."""
    return inquiry.ended_with(_apassed_on(stream, synthesis, inquiry, keep))


def _passed_on(
    stream: Iterator[str], synthesis: str | None, inquiry: Inquiry[Any], keep: Callable[[str], None]
) -> Generator[str, None, None]:
    pieces = []
    with inquiry:
        try:
            while (piece := _next(stream, synthesis)) is not None:
                pieces.append(piece)
                yield piece
        finally:
            if close := getattr(stream, "close", None):
                close()
        keep("".join(pieces))


async def _apassed_on(
    stream: AsyncIterator[str], synthesis: str | None, inquiry: Inquiry[Any], keep: Callable[[str], None]
) -> AsyncGenerator[str, None]:
    pieces = []
    with inquiry:
        try:
            while (piece := await _anext(stream, synthesis)) is not None:
                pieces.append(piece)
                yield piece
        finally:
            if close := getattr(stream, "aclose", None):
                await close()
        await in_thread(keep, "".join(pieces))


def _next(stream: Iterator[str], synthesis: str | None) -> str | None:
    with within(synthesis):
        return next(stream, None)


async def _anext(stream: AsyncIterator[str], synthesis: str | None) -> str | None:
    with within(synthesis):
        return await anext(stream, None)
