"""Locks and objects that survive a fork, a thread pool for async callers, and an LRU mapping."""

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

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

WORKERS = 8  # lookups wait for SQL and onnxruntime, which let other threads run

_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()
_kept_alive: weakref.WeakSet[object] = weakref.WeakSet()


class ForkSafeLock:
    """A mutex that is free again in a forked child, where the thread that held it does not exist."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def __reduce__(self) -> tuple[type[ForkSafeLock], tuple[()]]:
        return ForkSafeLock, ()  # a copied object has a lock of its own

    def acquire(self, seconds: float) -> bool:
        """Wait up to `seconds` for the lock; return whether it is held now."""
        return self._lock.acquire(timeout=seconds)

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def reset(self) -> None:
        """Free the lock, whoever holds it."""
        self._lock = threading.Lock()


def keep_alive_after_fork(*objects: object) -> None:
    """Never destroy these objects in a forked child: that would reach for the parent's files or threads."""
    for one in objects:
        _kept_alive.add(one)


def _reset_locks() -> None:
    for lock in tuple(_locks):
        lock.reset()


def _keep_objects_alive() -> None:
    for one in tuple(_kept_alive):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_locks)
    os.register_at_fork(after_in_child=_keep_objects_alive)


_pool_lock = ForkSafeLock()
_pool: tuple[int, ThreadPoolExecutor] | None = None  # with the process that it belongs to


async def in_thread(work: Callable[..., T], *args: Any) -> T:
    """Run `work(*args)` in a thread, with the caller's context variables, and return its result.

    The threads are Ibidem's own: a program that fills asyncio's pool with work that waits for a model would
    otherwise wait for itself. Where no thread can be had (the interpreter is ending), it runs at once.
    """
    import asyncio  # here: its import takes longer than all others of Ibidem together

    call = partial(contextvars.copy_context().run, work, *args)
    try:
        future = asyncio.get_running_loop().run_in_executor(_thread_pool(), call)
    except RuntimeError:
        return call()
    return await future


def _thread_pool() -> ThreadPoolExecutor:
    """Return the pool of this process; a forked child needs its own."""
    global _pool
    with _pool_lock:
        if _pool is None or _pool[0] != os.getpid():
            _pool = (os.getpid(), ThreadPoolExecutor(WORKERS, thread_name_prefix="ibidem-async"))
        return _pool[1]


class BoundedDict(Generic[K, V]):
    """An LRU mapping: at most `size` entries; a new one replaces the least recently used."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """Return the value of `key` and mark it as the most recently used; None if absent."""
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
        """Remove `key` and return its value; None if absent."""
        return self._entries.pop(key, None)

    def clear(self) -> None:
        """Remove all entries."""
        self._entries.clear()

    def __iter__(self) -> Iterator[V]:
        return iter(tuple(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)
