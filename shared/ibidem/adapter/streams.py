"""Keep the scope of streams, and split stored texts to repeat them as streams.

A stream keeps the scope in which it was asked for, whoever reads it, wherever and whenever. A generator has
no context of its own: what it does, it does in the context of its reader, step by step. A web handler returns
a stream from within `ibidem.scope`, and the server reads it outside; or, with several tenants in one thread,
within the scope of another. So the generator is wrapped where it is asked for: each step of it runs in the
scope in force there, and between the steps its reader is in his own.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Mapping,
)
from contextlib import AbstractContextManager, suppress
from contextvars import Token
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, TypeVar

from ibidem.adapter.method_wrappers import MethodWrappers
from ibidem.scope import current, enter, leave
from ibidem.types import Scope

Stream = TypeVar("Stream")
Chunk = TypeVar("Chunk")


def keep_scope(stream: Stream) -> Stream:
    """The generator or coroutine, run in the scope in force now; anything else as it is.

    A scope that its own code enters counts for the stream only, also where it yields within.
    """
    found: Any = stream
    if isinstance(found, GeneratorType):
        return found if found.gi_code is _SYNC else _steps(found, current())  # type: ignore[return-value]
    if isinstance(found, AsyncGeneratorType):
        return found if found.ag_code is _ASYNC else _asteps(found, current())  # type: ignore[return-value]
    if isinstance(found, CoroutineType):
        return _awaited(found, current())  # type: ignore[return-value]
    return stream


def _steps(stream: Generator[Any, Any, Any], scope: Scope) -> Generator[Any, Any, Any]:
    step: Callable[[Any], Any] = stream.send
    given: Any = None
    try:
        while True:
            token = enter(scope)
            try:
                piece = step(given)
            except StopIteration as end:
                return end.value
            finally:
                scope = current()
                leave(token)
            try:
                step, given = stream.send, (yield piece)
            except GeneratorExit:
                raise
            except BaseException as error:
                step, given = stream.throw, error
    finally:
        token = enter(scope)
        try:
            stream.close()
        finally:
            leave(token)


async def _asteps(stream: AsyncGenerator[Any, Any], scope: Scope) -> AsyncGenerator[Any, Any]:
    step: Callable[[Any], Any] = stream.asend
    given: Any = None
    try:
        while True:
            token = enter(scope)
            try:
                piece = await step(given)
            except StopAsyncIteration:
                return
            finally:
                scope = current()
                _leave(token)
            try:
                step, given = stream.asend, (yield piece)
            except GeneratorExit:
                raise
            except BaseException as error:
                step, given = stream.athrow, error
    finally:
        token = enter(scope)
        try:
            await stream.aclose()
        finally:
            _leave(token)


async def _awaited(call: Coroutine[Any, Any, Any], scope: Scope) -> Any:
    token = enter(scope)
    try:
        return keep_scope(await call)
    finally:
        _leave(token)


def _leave(token: Token[Scope]) -> None:
    with suppress(ValueError):  # a task that was abandoned is closed in another context
        leave(token)


def step_within(
    stream: Iterable[Chunk], context: Callable[[], AbstractContextManager[object]]
) -> Generator[Chunk, None, None]:
    """The stream, with each step of it in a new `context()`, which its reader is not in between two steps."""
    steps = iter(stream)
    try:
        while True:
            with context():
                chunk = next(steps, _END)
            if chunk is _END:
                return
            yield chunk  # type: ignore[misc]
    finally:
        if close := getattr(steps, "close", None):
            close()


async def astep_within(
    stream: AsyncIterable[Chunk], context: Callable[[], AbstractContextManager[object]]
) -> AsyncGenerator[Chunk, None]:
    """As `step_within`, for async code."""
    steps = aiter(stream)
    try:
        while True:
            with context():
                chunk = await anext(steps, _END)
            if chunk is _END:
                return
            yield chunk  # type: ignore[misc]
    finally:
        if close := getattr(steps, "aclose", None):
            await close()


_END = object()
_SYNC, _ASYNC = _steps.__code__, _asteps.__code__


class StreamMethods(MethodWrappers):
    """The methods of a framework that return streams, wrapped so that these keep their scope, and back.

    Args:
        names: The names of methods by class.
    """

    def __init__(self, names: Mapping[type, Iterable[str]]) -> None:
        super().__init__(names, lambda name, method, of, args, given: keep_scope(method(*args, **given)))


# A few words with the blanks after them; of a longer word, or a script without blanks, as many characters.
_FEW_WORDS = re.compile(r"(?s).{1,24}(?:\s+|$)|.{1,24}")
_MAX_CHUNKS = 1_000  # of a text; a longer one has larger chunks, as some frameworks repeat all before in each
_JOINER = "\u200d"
_VIRAMA = 9  # the combining class of signs that join two letters of an Indic script


def split_text(text: str) -> list[str]:
    """Split the text into chunks that add up to it, never within what a reader takes for one character."""
    chunks: list[str] = []
    start = 0
    while (found := _FEW_WORDS.match(text, start)) is not None:
        end = found.end()
        while end < len(text) and _is_one_character(text[end - 1], text[end]):
            end += 1
        chunks.append(text[start:end])
        start = end
    at_once = -(-len(chunks) // _MAX_CHUNKS)
    if at_once < 2:
        return chunks
    return ["".join(chunks[at : at + at_once]) for at in range(0, len(chunks), at_once)]


def _is_one_character(before: str, after: str) -> bool:
    """Whether two code points belong together: accents, emoji of several parts, flags, syllables."""
    if after < "\u0300":
        return before == "\r" and after == "\n"
    return (
        unicodedata.category(after) in ("Mn", "Mc", "Me")
        or _JOINER in (before, after)
        or unicodedata.combining(before) == _VIRAMA
        or "\u1160" <= after <= "\u11ff"  # the vowel or the end of a Korean syllable
        or "\U0001f3fb" <= after <= "\U0001f3ff"  # the colour of a skin
        or "\U000e0020" <= after <= "\U000e007f"  # a region's flag
        or (_is_flag_letter(before) and _is_flag_letter(after))
    )


def _is_flag_letter(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
