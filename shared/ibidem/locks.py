"""What a forked child needs: locks that it can use, and objects of its parent that it must not destroy."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref

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
