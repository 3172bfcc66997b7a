"""Tokens that tell living objects apart: each is given once, and means something in this process only.

A token is kept with a weak reference, so that an object which gets the address of a dead one gets another
token. Entries whose key holds a token match nothing in any other process: not in one that is started anew,
and not in a forked child, which may change its copy of the object.
"""

from __future__ import annotations

import itertools
import os
import secrets
import weakref
from typing import Any

from ibidem.bounded import BoundedDict
from ibidem.locks import ForkSafeLock

# Objects that cannot be referred to weakly are kept alive instead, as many as this.
_HELD = 256

_numbers = itertools.count()
_process = secrets.token_hex(16)
_known: dict[int, tuple[weakref.ref[Any], str]] = {}
_held: BoundedDict[int, tuple[Any, str]] = BoundedDict(_HELD)
_lock = ForkSafeLock()


def token_of(thing: object) -> str:
    """The token of this very object; the same as long as it lives."""
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
    """What tells this process from all others; it changes in a forked child."""
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
