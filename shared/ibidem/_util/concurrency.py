"""Locks and a gate for forks, context, an LRU mapping, deadlines, background work, and threads for async."""

from __future__ import annotations

import contextvars
import ctypes
import os
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ibidem.errors import StorageUnavailable

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

WORKERS = 8  # threads for async callers; SQL and onnxruntime release the GIL

_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()
_kept_alive: weakref.WeakSet[object] = weakref.WeakSet()


@contextmanager
def context_value(variable: ContextVar[Any], value: T) -> Iterator[T]:
    """Give a variable a value in this block, also in threads and tasks that frameworks start in it."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


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
    """Never destroy these objects in a forked child: it would touch the parent's files or threads."""
    for one in objects:
        _kept_alive.add(one)


def _reset_locks() -> None:
    for lock in tuple(_locks):
        lock.reset()


def _keep_objects_alive() -> None:
    for one in tuple(_kept_alive):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


FORK_SECONDS = 1.0  # how long a fork waits for the threads that are within


class ForkGate:
    """Keeps all other threads out of a library while one forks.

    A lock of the library that one of them held would never be released in the child. A fork waits for those
    within, at most `FORK_SECONDS`; `was_empty` says whether that was enough at the last one.
    """

    def __init__(self) -> None:
        self.was_empty = True
        self.reset()
        _gates.append(self)

    def reset(self) -> None:
        """Open it in a forked child, where those within do not exist."""
        self._within: deque[None] = deque()  # its `append` and `pop` need no lock
        self._open = threading.Event()
        self._open.set()

    def __enter__(self) -> None:
        while True:
            self._within.append(None)  # before looking: else a fork could begin in between
            if self._open.is_set():
                return
            self._within.pop()
            self._open.wait()

    def __exit__(self, *error: object) -> None:
        self._within.pop()

    def shut(self) -> None:
        """Let no thread in."""
        self._open.clear()

    def empty_by(self, until: float) -> None:
        """Wait until nobody is within, or it is `until` on the monotonic clock."""
        while self._within and time.monotonic() < until:
            time.sleep(0.0005)
        self.was_empty = not self._within

    def reopen(self) -> None:
        """Let threads in again."""
        self._open.set()


_gates: list[ForkGate] = []
_forks = 0  # that are under way in this process; threads may fork at the same time
_forks_lock = threading.Lock()


def _shut_gates() -> None:
    global _forks
    with _forks_lock:
        _forks += 1
    for gate in _gates:
        gate.shut()
    until = time.monotonic() + FORK_SECONDS
    for gate in _gates:
        gate.empty_by(until)


def _reopen_gates() -> None:
    global _forks
    with _forks_lock:
        _forks -= 1
        if not _forks:
            for gate in _gates:
                gate.reopen()


def _reset_gates() -> None:
    global _forks, _forks_lock
    _forks, _forks_lock = 0, threading.Lock()
    for gate in _gates:
        gate.reset()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_shut_gates, after_in_parent=_reopen_gates, after_in_child=_reset_gates)
    os.register_at_fork(after_in_child=_reset_locks)
    os.register_at_fork(after_in_child=_keep_objects_alive)


_pool_lock = ForkSafeLock()
_pool: tuple[int, ThreadPoolExecutor] | None = None  # with the process that it belongs to


async def in_thread(work: Callable[..., T], *args: Any) -> T:
    """Run `work(*args)` in a thread, with the caller's context variables, and return its result.

    The threads are Ibidem's own: a program that fills asyncio's pool with work that waits for a model would
    otherwise deadlock. If no thread can be started (the interpreter is ending), it runs at once.
    """
    import asyncio  # not above: it takes longer to import than the rest of Ibidem

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


_loop_lock = ForkSafeLock()
_loop: tuple[int, asyncio.AbstractEventLoop] | None = None  # with the process that it belongs to


def await_elsewhere(awaitable: Awaitable[T], seconds: float) -> T:
    """Await in an event loop of Ibidem's own, in another thread, with the caller's context variables.

    Raises:
        TimeoutError: It took more than `seconds`, and was cancelled.
    """
    import asyncio  # not above, as in `in_thread`

    async def awaited() -> T:
        return await awaitable

    future = asyncio.run_coroutine_threadsafe(awaited(), _event_loop())
    try:
        return future.result(seconds)
    except TimeoutError:
        future.cancel()
        raise


def _event_loop() -> asyncio.AbstractEventLoop:
    """Return the running loop of this process; a forked child needs its own."""
    import asyncio

    global _loop
    with _loop_lock:
        if _loop is None or _loop[0] != os.getpid():
            loop = asyncio.new_event_loop()
            keep_alive_after_fork(loop)
            threading.Thread(target=loop.run_forever, name="ibidem-loop", daemon=True).start()
            _loop = (os.getpid(), loop)
        return _loop[1]


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


DEADLINE_SECONDS = 1.0  # of a lookup or a store, for all its calls of servers
DEFAULT_SECONDS = 30.0  # the timeout of each call without a deadline, as in the background
MIN_SECONDS = 0.05  # the least timeout of a call, however little is left of the deadline


class _Budget(threading.local):
    seconds: float | None = None  # left of the deadline; None without one
    charged_since: float | None = None  # when the call that is being charged began


_budget = _Budget()


class deadline:
    """Limit the calls of servers in this block, in this thread, to `seconds` in all."""

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = DEADLINE_SECONDS if seconds is None else seconds

    def __enter__(self) -> None:
        self._before, _budget.seconds = _budget.seconds, self._seconds

    def __exit__(self, *_: object) -> None:
        _budget.seconds = self._before


def has_deadline() -> bool:
    """Return whether this thread has a deadline."""
    return _budget.seconds is not None


def remaining() -> float:
    """Return the timeout of the next call, in seconds."""
    if _budget.seconds is None:
        return DEFAULT_SECONDS
    since = _budget.charged_since
    spent = 0.0 if since is None else time.monotonic() - since
    return max(MIN_SECONDS, _budget.seconds - spent)


@contextmanager
def charge() -> Iterator[None]:
    """Charge the time of this block to the deadline: connecting, waiting for a lock, the call."""
    started = _budget.charged_since = time.monotonic()
    try:
        yield
    finally:
        _budget.charged_since = None
        if _budget.seconds is not None:
            _budget.seconds -= time.monotonic() - started


# Wait this long for more work before a batch, unless a caller waits for it. A write to Chroma holds the GIL
# for 25 to 60 ms, be it 10 vectors or 40: at short intervals the whole program, its event loop too, would
# stutter.
GATHER_SECONDS = 0.5
FLUSH_SECONDS = 10.0  # how long `flush` and `stop` wait for the remaining work
RETRY_SECONDS = 1.0  # until a job that found the database unavailable is retried; doubles from try to try
RETRY_MAX_SECONDS = 30.0

PAUSE_SECONDS = 0.1  # between two steps of the idle jobs

Job = Callable[[], bool]
OnError = Callable[[str, BaseException], None]


class Background:
    """Runs jobs after each `wake()` until none has anything left to do.

    Args:
        jobs: By what they do ("index questions"): functions that do one bounded batch each and return
            whether there is more.
        on_error: Called with the name of a job that failed, and the exception; the job is retried at the
            next wake. If the database was unavailable, it is retried without one: pending writes are written
            when the database is back.
        idle_jobs: Jobs of low priority: one step now and then, also while others are at work, until they
            have nothing left to do. `flush` does not wait for them.
    """

    def __init__(
        self, jobs: Mapping[str, Job], on_error: OnError, idle_jobs: Mapping[str, Job] | None = None
    ) -> None:
        self._jobs, self._idle_jobs = dict(jobs), dict(idle_jobs or {})
        self._on_error = on_error
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._requested = 0  # wakes so far
        self._completed = 0  # the last wake whose work is done
        self._stopping = False
        self._flushing = False  # a caller waits: do not gather
        self._failed_rounds = 0  # rounds in a row that found the database unavailable
        self._retry_at = 0.0
        self._idle_work_left = False
        self._next_step_at = 0.0  # of the idle jobs
        self._thread: threading.Thread | None = None

    def after_fork(self) -> None:
        """Start afresh in a forked child, where the thread does not exist."""
        self._reset()

    def wake(self) -> None:
        """Announce work; return at once."""
        with self._changed:
            self._requested += 1
            if not self._stopping and not (self._thread and self._thread.is_alive()):
                self._thread = threading.Thread(target=self._run, name="ibidem-background", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout: float = FLUSH_SECONDS) -> bool:
        """Wait until the work known now is done; False if it failed, or takes more than `timeout` seconds."""
        self.wake()
        with self._changed:
            requested, self._flushing = self._requested, True
            self._changed.notify_all()
            ended = self._changed.wait_for(lambda: self._completed >= requested or self._stopping, timeout)
            return ended and not self._failed_rounds

    def stop(self) -> None:
        """Finish the remaining work, within bounds, and end the thread."""
        if self._thread is not None:
            self.flush()
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=FLUSH_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._requested > self._completed or self._stopping, self._pause()
                )
                if self._stopping:
                    return
                if self._requested > self._completed:
                    gather = PAUSE_SECONDS if self._idle_work_left else GATHER_SECONDS
                    self._changed.wait_for(lambda: self._flushing or self._stopping, gather)
                requested, self._flushing = self._requested, False
            retry = self._failed_rounds and time.monotonic() >= self._retry_at
            if requested > self._completed or retry:
                self._work(requested)
            self._step()

    def _work(self, requested: int) -> None:
        more, unavailable = True, False
        while more and not self._stopping:
            outcomes = [self._do(name, job) for name, job in self._jobs.items()]
            unavailable = None in outcomes
            more = any(outcomes)
            if more:
                self._step()
        with self._changed:
            self._completed = requested
            self._failed_rounds = self._failed_rounds + 1 if unavailable else 0
            pause = RETRY_SECONDS * 2 ** min(self._failed_rounds - 1, 10)
            self._retry_at = time.monotonic() + min(RETRY_MAX_SECONDS, pause)
            self._changed.notify_all()

    def _step(self) -> None:
        """Run one step of each idle job, if the last was long enough ago; else it is due soon."""
        if time.monotonic() < self._next_step_at:
            self._idle_work_left = True
        elif not self._stopping:
            outcomes = [self._do(name, job) for name, job in self._idle_jobs.items()]
            self._idle_work_left = any(outcomes)
            self._next_step_at = time.monotonic() + PAUSE_SECONDS / 2

    def _pause(self) -> float | None:
        """Return how long to wait for a wake; None for ever, if no retry or step is due."""
        pauses = [PAUSE_SECONDS] if self._idle_work_left else []
        if self._failed_rounds:
            pauses.append(max(0.0, self._retry_at - time.monotonic()))
        return min(pauses, default=None)

    def _do(self, name: str, job: Job) -> bool | None:
        """Run one batch; return whether there is more to do, None if the database was unavailable."""
        try:
            return job()
        except Exception as error:
            self._on_error(name, error)
            return None if isinstance(error, StorageUnavailable) else False
