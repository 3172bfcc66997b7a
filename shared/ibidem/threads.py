"""Work of async callers that would block their event loop."""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from ibidem.locks import ForkSafeLock

T = TypeVar("T")
WORKERS = 8  # lookups wait for SQL and onnxruntime, which let other threads run

_lock = ForkSafeLock()
_pool: tuple[int, ThreadPoolExecutor] | None = None


async def in_thread(work: Callable[..., T], *args: Any) -> T:
    """What `work(*args)` gives, computed in a thread with the caller's context variables.

    The threads are Ibidem's own: a program that fills asyncio's pool with work that waits for a model would
    otherwise wait for itself. Where no thread can be had (the interpreter is ending), it runs at once.
    """
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
