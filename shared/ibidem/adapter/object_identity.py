"""Tokens that tell living objects apart, and watches that see whether objects have changed.

Each token is given once and is valid in this process only.

A token is kept with a weak reference, so that an object which gets the address of a dead one gets another
token. Entries whose key holds a token match nothing in any other process: not in one that is started anew,
and not in a forked child, which may change its copy of the object.
"""

from __future__ import annotations

import itertools
import os
import secrets
import weakref
from collections.abc import Callable, Mapping
from operator import is_
from types import FunctionType
from typing import Any

from ibidem._util.concurrency import BoundedDict, ForkSafeLock

# Objects that cannot be referred to weakly are kept alive instead, as many as this.
_HELD = 256

_numbers = itertools.count()
_process = secrets.token_hex(16)
_known: dict[int, tuple[weakref.ref[Any], str]] = {}
_held: BoundedDict[int, tuple[Any, str]] = BoundedDict(_HELD)
_lock = ForkSafeLock()


def token_of(thing: object) -> str:
    """Return the token of this very object; it stays the same as long as the object lives."""
    number = id(thing)
    if (known := _known.get(number)) is not None and known[0]() is thing:
        return known[1]
    try:
        reference = weakref.ref(thing, lambda gone: _forget(number, gone))
    except TypeError:
        return _token_of_held(thing)
    token = _new()
    _known[number] = (reference, token)
    return token


def process() -> str:
    """Return the identifier of this process; a forked child has another."""
    return _process


def _new() -> str:
    return f"{_process}-{next(_numbers)}"


def _forget(number: int, gone: weakref.ref[Any]) -> None:
    # Called by the garbage collector, maybe in the midst of anything: no lock is taken here.
    if (known := _known.get(number)) is not None and known[0] is gone:
        _known.pop(number, None)


def _token_of_held(thing: object) -> str:
    with _lock:
        held = _held.get(id(thing))
        if held is None or held[0] is not thing:
            held = (thing, _new())
            _held.put(id(thing), held)
        return held[1]


def _renew() -> None:
    global _process
    _process = secrets.token_hex(16)
    _known.clear()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


class Watch:
    """Notes objects that were read, to check later whether they have changed.

    Objects are compared by identity: an equal number of another type is a change. A container is noted with
    its items; containers among these must be noted as well.
    """

    def __init__(self) -> None:
        self._checks: list[Callable[[], bool]] | None = []
        self._noted: set[int] = set()  # of objects that the checks keep alive

    @property
    def is_whole(self) -> bool:
        """Whether everything that was read can be checked again."""
        return self._checks is not None

    def is_unchanged(self) -> bool:
        """Return whether nothing that was read has changed."""
        if self._checks is None:
            return False
        return all(check() for check in self._checks)

    def give_up(self) -> None:
        """Note that something was read that cannot be checked again."""
        self._checks = None

    def add(self, check: Callable[[], bool]) -> None:
        """Note something that is unchanged as long as `check` returns True."""
        if self._checks is not None:
            self._checks.append(check)

    def reading(self, read: Callable[[], Any], value: Any) -> None:
        """Note that `read` returned this object."""
        self.add(lambda: read() is value)

    def function(self, function: FunctionType) -> None:
        """Note the code and the defaults of a function, which is not kept alive."""
        living, code, defaults = weakref.ref(function), function.__code__, function.__defaults__

        def is_unchanged() -> bool:
            known = living()
            return known is not None and known.__code__ is code and known.__defaults__ is defaults

        self.add(is_unchanged)

    def mapping(self, held: Mapping[str, Any]) -> None:
        """Note a dictionary or another mapping, such as the attributes of an object."""
        if self._is_noted(held):
            return
        names, values = tuple(held), tuple(held.values())
        self.add(lambda: tuple(held) == names and all(map(is_, held.values(), values)))

    def sequence(self, held: list[Any]) -> None:
        """Note a list."""
        if self._is_noted(held):
            return
        items = tuple(held)
        self.add(lambda: len(held) == len(items) and all(map(is_, held, items)))

    def members(self, held: set[Any]) -> None:
        """Note a set, which keeps its members alive."""
        if self._is_noted(held):
            return
        items = tuple(held)
        numbers = frozenset(map(id, items))
        self.add(lambda: len(held) == len(items) and numbers.issuperset(map(id, held)))

    def _is_noted(self, held: Any) -> bool:
        known = id(held) in self._noted
        self._noted.add(id(held))
        return known
