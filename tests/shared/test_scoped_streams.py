"""Generators that keep their scope are the same generators in all else; methods are wrapped and unwrapped."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ibidem
from ibidem.adapter.method_wrappers import MethodWrappers
from ibidem.adapter.streams import StreamMethods, keep_scope
from ibidem.scope import EMPTY_SCOPE, NOT_GIVEN, current
from ibidem.types import Scope

# a generator that keeps its scope is a generator -------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.just("next"), st.just("close"), st.just("throw"), st.tuples(st.just("send"), st.integers(0, 3))
    ),
    max_size=8,
)


class Odd(Exception):
    """Thrown into generators."""


def talking(length: int, log: list[Any]) -> Generator[Any, Any, str]:
    """Tells what it is sent, survives one exception, and cleans up."""
    try:
        for number in range(length):
            try:
                log.append((yield number))
            except Odd:
                log.append("survived")
                yield "caught"
        return "returned"
    finally:
        log.append("closed")


async def atalking(length: int, log: list[Any]) -> Any:
    try:
        for number in range(length):
            await asyncio.sleep(0)
            try:
                log.append((yield number))
            except Odd:
                log.append("survived")
                yield "caught"
    finally:
        await asyncio.sleep(0)
        log.append("closed")


def what(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except BaseException as error:
        return repr(error)


def do(stream: Any, step: Any) -> Any:
    if step == "next":
        return next(stream)
    if step == "close":
        return stream.close()
    return stream.throw(Odd()) if step == "throw" else stream.send(step[1])


@given(length=st.integers(0, 3), steps=STEPS)
def test_it_does_what_the_generator_does(length: int, steps: list[Any]) -> None:
    told: list[Any] = []
    for wrap in (keep_scope, lambda stream: stream):
        log: list[Any] = []
        stream = wrap(talking(length, log))
        told.append(([what(lambda s=step, g=stream: do(g, s)) for step in steps], log))  # type: ignore[misc]
        assert inspect.isgenerator(stream)
        stream.close()
    assert told[0] == told[1]
    assert current() is EMPTY_SCOPE


async def ado(stream: Any, step: Any) -> Any:
    try:
        if step == "next":
            return await anext(stream)
        if step == "close":
            return await stream.aclose()
        return await (stream.athrow(Odd()) if step == "throw" else stream.asend(step[1]))
    except BaseException as error:
        return repr(error)


@given(length=st.integers(0, 3), steps=STEPS)
def test_so_it_does_in_async_code(length: int, steps: list[Any]) -> None:
    async def run() -> list[Any]:
        told = []
        for wrap in (keep_scope, lambda stream: stream):
            log: list[Any] = []
            stream = wrap(atalking(length, log))
            told.append(([await ado(stream, step) for step in steps], log))
            assert inspect.isasyncgen(stream)
            await stream.aclose()
        return told

    told = asyncio.run(run())
    assert told[0] == told[1]


# the scope --------------------------------------------------------------------------------------------


def scopes(count: int, inner: str = "") -> Iterator[Scope]:
    """The scope of each step, the last of them when it is closed."""
    for _ in range(count):
        yield current()
    with ibidem.scope(namespace=inner or NOT_GIVEN):
        yield current()
        yield current()
    yield current()


def test_each_step_is_in_the_scope_of_the_asker() -> None:
    """In any context; what its code enters begins and ends within it."""
    with ibidem.scope(namespace="asker"):
        stream = keep_scope(scopes(2, "inner"))
    told = [next(stream).namespace]
    with ibidem.scope(namespace="reader"):
        told += [copy_context().run(next, stream).namespace, next(stream).namespace]
        assert current().namespace == "reader"
        thread = threading.Thread(target=lambda: told.append(next(stream).namespace))
        thread.start()
        thread.join()
        told.append(next(stream).namespace)
        assert current().namespace == "reader"
    assert told == ["asker", "asker", "inner", "inner", "asker"]


def test_a_scope_around_a_plain_generator_is_not_its_readers() -> None:
    """Entered in one context and left in another, it changes neither's scope."""
    stream = scopes(0, "inner")
    assert copy_context().run(next, stream).namespace == "inner"
    with ibidem.scope(namespace="reader"):
        next(stream)
        next(stream)
        assert current().namespace == "reader"


def test_the_innermost_has_the_last_word() -> None:
    """A stream that keeps a scope is passed on as it is."""
    with ibidem.scope(namespace="inner"):
        stream = keep_scope(scopes(1))
    with ibidem.scope(namespace="outer"):
        assert keep_scope(stream) is stream
    assert next(stream).namespace == "inner"


async def test_a_call_keeps_its_scope_and_that_of_its_stream() -> None:
    async def stream() -> AsyncIterator[Scope]:
        yield current()

    async def call() -> Any:
        assert current().namespace == "asker"
        return stream()

    with ibidem.scope(namespace="asker"):
        begun = keep_scope(call())
    found = await begun
    assert [scope.namespace async for scope in found] == ["asker"]
    assert current() is EMPTY_SCOPE


@pytest.mark.parametrize("other", [None, "text", [1], iter([1]), map(str, [1]), object()])
def test_anything_else_is_passed_on(other: object) -> None:
    assert keep_scope(other) is other


async def test_an_abandoned_stream_does_no_harm() -> None:
    """A task that reads it is cancelled in the midst of a step."""

    async def endless() -> AsyncIterator[int]:
        await asyncio.sleep(60)
        yield 1

    with ibidem.scope(namespace="asker"):
        stream = keep_scope(endless())
    task = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [one async for one in stream] == []
    assert current() is EMPTY_SCOPE


# methods ----------------------------------------------------------------------------------------------


def family() -> Any:
    """A base class, with a hook of its own for those that inherit from it."""

    class Base:
        known: ClassVar[list[str]] = []

        def __init_subclass__(cls, **given: Any) -> None:
            super().__init_subclass__(**given)
            cls.known.append(cls.__name__)

        def stream(self) -> Iterator[str]:
            yield current().namespace

        async def astream(self) -> AsyncIterator[str]:
            yield current().namespace

    return Base


class Holder:
    """Somebody who needs them."""


def told(thing: Any) -> str:
    with ibidem.scope(namespace="asker"):
        stream = thing.stream()
    return next(stream)  # type: ignore[no-any-return]


def test_methods_are_wrapped_while_somebody_holds_them() -> None:
    base = family()

    class Before(base):  # type: ignore[misc]
        def stream(self) -> Iterator[str]:
            yield from super().stream()

    methods, one, two = StreamMethods({base: ("stream", "astream", "missing")}), Holder(), Holder()
    found = [dict(vars(base)), dict(vars(Before))]
    assert (told(base()), told(Before())) == ("", "")
    methods.hold(one)
    methods.hold(one)
    methods.hold(two)

    class After(Before):
        stream = Before.stream
        astream = None

    assert [told(kind()) for kind in (base, Before, After)] == ["asker"] * 3
    assert inspect.isgeneratorfunction(Before.stream)
    assert inspect.isgeneratorfunction(Before().stream)
    assert inspect.isasyncgenfunction(base().astream)
    assert str(inspect.signature(Before().stream)) == "() -> 'Iterator[str]'"
    methods.release(one)
    assert told(After()) == "asker"
    methods.release(two)
    assert [dict(vars(base)), dict(vars(Before))] == found
    assert [told(kind()) for kind in (base, Before, After)] == [""] * 3
    assert base.known == ["Before", "After"]
    methods.release(two)


def test_two_may_wrap_the_same_method_and_be_released_in_any_order() -> None:
    """Over and over, without a layer that is left."""
    base, called = family(), list[str]()
    found = dict(vars(base))

    def around(by: str) -> Any:
        def noted(name: str, method: Any, instance: Any, args: Any, given: Any) -> Any:
            called.append(f"{by} {name}")
            return method(*args, **given)

        return MethodWrappers({base: ("stream",)}, noted)

    one, other, holder = around("one"), around("other"), Holder()
    for first, last in ((one, other), (other, one)) * 3:
        for each in (one, other):
            each.hold(holder)
        list(base().stream())
        first.release(holder)
        list(base().stream())
        last.release(holder)
        list(base().stream())
        remains = "one stream" if last is one else "other stream"
        assert called == ["other stream", "one stream", remains]
        called.clear()
        assert vars(base)["stream"] is found["stream"]


def test_what_comes_from_beside_the_family_is_wrapped_too() -> None:
    """A method that a class has from a part of it that is none of the family."""
    base, holder = family(), Holder()

    class Part:
        def stream(self) -> Iterator[str]:
            yield current().namespace

    class Both(Part, base):  # type: ignore[misc, valid-type]
        """Of two."""

    plain, methods = vars(Part)["stream"], StreamMethods({base: ("stream",)})
    methods.hold(holder)

    class Later(Part, base):  # type: ignore[misc, valid-type]
        """Of two, too."""

    assert told(Both()) == told(Later()) == told(Part()) == "asker"
    methods.release(holder)
    assert vars(Part)["stream"] is plain


def test_what_others_put_over_them_stays() -> None:
    base = family()
    methods, holder = StreamMethods({base: ("stream",)}), Holder()
    methods.hold(holder)
    ours = base.stream
    base.stream = over = lambda self: ours(self)
    assert told(base()) == "asker"
    methods.release(holder)
    assert vars(base)["stream"] is over
    assert told(base()) == ""
    methods.hold(holder)
    assert told(base()) == "asker"


def test_a_holder_that_is_gone_holds_nothing() -> None:
    base = family()
    methods, found = StreamMethods({base: ("stream",)}), vars(base)["stream"]
    methods.hold(Holder())
    methods.release(Holder())
    assert vars(base)["stream"] is found


def test_threads_may_hold_and_release_them_while_classes_are_defined() -> None:
    base = family()
    methods, found, kinds = StreamMethods({base: ("stream",)}), vars(base)["stream"], list[Any]()

    def work(_: int) -> None:
        for _ in range(50):
            holder = Holder()
            methods.hold(holder)
            kinds.append(type("Later", (base,), {"stream": lambda self: base.stream(self)}))
            assert told(base()) == told(kinds[-1]()) == "asker"
            methods.release(holder)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert not methods.active
    assert vars(base)["stream"] is found
    assert {told(kind()) for kind in kinds} == {""}


class Importable:
    """Its methods are pickled by their names."""

    def stream(self) -> Iterator[str]:
        yield current().namespace


def test_what_is_pickled_is_the_method_itself() -> None:
    """A class of the program is sent to other processes with all that it holds, which no lock survives."""
    local = family()
    methods, holder = StreamMethods({Importable: ("stream",), local: ("stream",)}), Holder()
    plain = vars(local)["stream"]
    methods.hold(holder)
    assert pickle.loads(pickle.dumps(Importable.stream)) is Importable.stream
    assert told(pickle.loads(pickle.dumps(Importable()))) == "asker"
    assert copy.copy(local.stream) is plain
    methods.release(holder)
    assert told(Importable()) == ""
