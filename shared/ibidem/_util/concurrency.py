"""What a forked child needs: locks that it can use, and objects of its parent that it must not destroy."""

from __future__ import annotations

import contextvars
import ctypes
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

_all: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


class ForkSafeLock:
    """A mutex that is free again in a forked child, where the thread that held it does not exist."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _all.add(self)

    def __reduce__(self) -> tuple[type[ForkSafeLock], tuple[()]]:
        return ForkSafeLock, ()  # a copy of what it guards has a lock of its own

    def acquire(self, seconds: float) -> bool:
        """Wait so long at most; whether it is held now, to be given back with `release`."""
        return self._lock.acquire(timeout=seconds)

    def release(self) -> None:
        """Let others have it."""
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Forget who holds it."""
        self._lock = threading.Lock()


def _renew_all() -> None:
    for lock in tuple(_all):
        lock.renew()


_undying: weakref.WeakSet[object] = weakref.WeakSet()


def undying(*things: object) -> None:
    """A forked child never destroys these: that would reach for the parent's files or threads."""
    for thing in things:
        _undying.add(thing)


def _keep_all() -> None:
    for thing in tuple(_undying):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
    os.register_at_fork(after_in_child=_keep_all)


T = TypeVar("T")
WORKERS = 8  # lookups wait for SQL and onnxruntime, which let other threads run

_lock = ForkSafeLock()
_pool: tuple[int, ThreadPoolExecutor] | None = None


async def in_thread(work: Callable[..., T], *args: Any) -> T:
    """What `work(*args)` gives, computed in a thread with the caller's context variables.

    The threads are Ibidem's own: a program that fills asyncio's pool with work that waits for a model would
    otherwise wait for itself. Where no thread can be had (the interpreter is ending), it runs at once.
    """
    import asyncio  # here: its import takes longer than all others of Ibidem together

    call = partial(contextvars.copy_context().run, work, *args)
    try:
        future = asyncio.get_running_loop().run_in_executor(_threads(), call)
    except RuntimeError:
        return call()
    return await future


def _threads() -> ThreadPoolExecutor:
    """The pool of this process; a forked child needs its own."""
    global _pool
    with _lock:
        if _pool is None or _pool[0] != os.getpid():
            _pool = (os.getpid(), ThreadPoolExecutor(WORKERS, thread_name_prefix="ibidem-async"))
        return _pool[1]


K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(Generic[K, V]):
    """At most `size` entries; the least recently used one makes room for a new one."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The value of `key`, which is then the last to be forgotten; None if unknown."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: K, value: V) -> None:
        """Set the value of `key`."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        while len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def pop(self, key: K) -> V | None:
        """Remove `key` and return its value; None if unknown."""
        return self._entries.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def __iter__(self) -> Iterator[V]:
        return iter(tuple(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)
