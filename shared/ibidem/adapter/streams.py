"""Keep the scope of streams, and split stored texts to repeat them as streams.

A stream keeps the scope in which it was asked for, whoever reads it, wherever and whenever. A generator has
no context of its own: what it does, it does in the context of its reader, step by step. A web handler returns
a stream from within `ibidem.scope`, and the server reads it outside; or, with several tenants in one thread,
within the scope of another. So the generator is wrapped where it is asked for: each step of it runs in the
scope in force there, and between the steps its reader is in his own.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import suppress
from contextvars import Token
from types import AsyncGeneratorType, CoroutineType, GeneratorType, MethodType
from typing import Any, TypeVar
from weakref import WeakSet

from ibidem._util.concurrency import ForkSafeLock
from ibidem.scope import current, enter, leave
from ibidem.types import Scope

Stream = TypeVar("Stream")


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


_SYNC, _ASYNC = _steps.__code__, _asteps.__code__
_HOOK = "__init_subclass__"


class StreamMethods:
    """The methods of a framework that return streams, wrapped so that these keep their scope, and back.

    They are wrapped while somebody holds them. What is wrapped are the methods of these names of these
    classes and of all that inherit from them, also of those that are defined later.

    Args:
        names: The names of methods by class.
    """

    def __init__(self, names: Mapping[type, Iterable[str]]) -> None:
        self._names = {base: frozenset(several) for base, several in names.items()}
        self._holders: WeakSet[Any] = WeakSet()
        self._lock = ForkSafeLock()
        self._hooks: dict[type, tuple[Any, Any]] = {}  # what was there before, and ours
        self.active = False

    def hold(self, holder: object) -> None:
        """Wrap them, if they are not; they stay so at least until the holder releases them."""
        with self._lock:
            self._holders.add(holder)
            if not self.active:
                self.active = True
                for base, names in self._names.items():
                    self._hook(base, names)
                    for kind in _family(base):
                        self._wrap(kind, names)

    def release(self, holder: object) -> None:
        """Unwrap them if nobody else holds them. One under what others put there since does nothing then."""
        with self._lock:
            self._holders.discard(holder)
            if self.active and not len(self._holders):
                self.active = False
                for base, names in self._names.items():
                    self._unhook(base)
                    for kind in _family(base):
                        _unwrap(kind, names)

    def _wrap(self, kind: type, names: Iterable[str]) -> None:
        for name in names:
            method = vars(kind).get(name)
            if not isinstance(method, _StreamMethod) and _is_method(method):
                setattr(kind, name, _StreamMethod(method, self))

    def _hook(self, base: Any, names: frozenset[str]) -> None:
        """Wrap the methods of classes that are defined from now on."""
        own = vars(base).get(_HOOK)

        def defined(cls: Any, /, **given: Any) -> None:
            inherited = super(base, cls).__init_subclass__ if own is None else own.__get__(None, cls)
            inherited(**given)
            if self.active:
                self._wrap(cls, names)

        self._hooks[base] = own, classmethod(defined)
        setattr(base, _HOOK, self._hooks[base][1])

    def _unhook(self, base: Any) -> None:
        own, ours = self._hooks.pop(base)
        if vars(base).get(_HOOK) is not ours:
            return  # somebody's is over it
        if own is None:
            delattr(base, _HOOK)
        else:
            setattr(base, _HOOK, own)


class _StreamMethod:
    """A method whose streams keep their scope. To `inspect` it is the (generator) function it wraps."""

    def __init__(self, method: Any, methods: StreamMethods) -> None:
        functools.update_wrapper(self, method)
        self._method, self._methods = method, methods
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            if hasattr(method, name):
                setattr(self, name, getattr(method, name))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For pickle, by its name; for those who send a class of the program itself, the plain method."""
        found: Any = sys.modules.get(self.__module__) if self.__module__ != "__main__" else None
        name = str(getattr(self, "__qualname__", ""))
        for part in name.split("."):
            found = getattr(found, part, None)
        return name if found is self else (_itself, (self._method,))

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __call__(self, instance: Any, *args: Any, **given: Any) -> Any:
        stream = self._method.__get__(instance, type(instance))(*args, **given)
        return keep_scope(stream) if self._methods.active else stream


def unwrapped(member: Any) -> Any:
    """What stands in a class, as its author wrote it."""
    return member._method if isinstance(member, _StreamMethod) else member


def _itself(method: Any) -> Any:
    return method


def _is_method(value: object) -> bool:
    callable_ = callable(value) and hasattr(value, "__get__")
    return callable_ and not isinstance(value, (type, staticmethod, classmethod))


def _unwrap(kind: type, names: Iterable[str]) -> None:
    for name in names:
        if isinstance(wrapped := vars(kind).get(name), _StreamMethod):
            setattr(kind, name, wrapped._method)


def _family(base: type) -> set[type]:
    """The class and all that inherit from it."""
    found, left = set[type](), [base]
    while left:
        if (kind := left.pop()) not in found:
            found.add(kind)
            left += kind.__subclasses__()
    return found


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
