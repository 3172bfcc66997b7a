"""Calls of models that others may wait for: looked up in vain, not yet answered.

LangChain tells a cache of answers only. That a call failed is told to callback handlers, in the context of
the lookup or a copy of it; of a chat model in async code, which makes each call in a task of its own, by the
end of the task. What is told by neither is ended by its time.
"""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import Any
from weakref import ref

from ibidem.answering import Asking


class Calls:
    """Those of one thread or task. Copies of its context see the same object."""

    def __init__(self, owner: object) -> None:
        self.owner = ref(owner)
        self.told_by_handler = False  # and not by the end of a task
        self.open: tuple[Asking, ...] = ()

    def add(self, asking: Asking) -> None:
        """Others may wait for it."""
        self.open = (*(known for known in self.open if known.leading), asking)

    def take(self, cache: object, key: str) -> Asking | None:
        """The call of this cache for this request, which has been answered."""
        found = next((one for one in self.open if one.cache is cache and one.request.key == key), None)
        self.open = tuple(known for known in self.open if known is not found)
        return found

    def end(self, *_: object) -> None:
        """They have failed, all of them: LangChain makes one call at a time, be it of many prompts."""
        failed, self.open = self.open, ()
        for asking in failed:
            asking.end()


_current: ContextVar[Calls | None] = ContextVar("ibidem_langchain_calls", default=None)


def begin(asking: Asking, *, of_chat: bool) -> None:
    """The model is asked for it from here."""
    if not asking.leading:
        return
    task = _task()
    owner = task or threading.current_thread()
    calls = _current.get()
    if calls is None or calls.owner() is not owner:
        calls = Calls(owner)
        _current.set(calls)
        if task is not None:
            task.add_done_callback(calls.end)
    calls.told_by_handler = task is None or not of_chat
    calls.add(asking)


def answered(cache: object, key: str) -> Asking | None:
    """The call that this context began for this request."""
    calls = _current.get()
    return calls.take(cache, key) if calls is not None else None


def are_listened_for() -> bool:
    """Whether the tracker must be told if a call of this context fails."""
    calls = _current.get()
    return calls is not None and calls.told_by_handler and bool(calls.open)


def failed() -> None:
    """A call of this context has failed."""
    if (calls := _current.get()) is not None:
        calls.end()


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
