"""Arguments, variables and values of version 0.1 that were renamed in 0.2.

An old name raises an error with the new one: a cache must not silently fall back to a default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import ParamSpec, TypeVar

from ibidem.errors import InvalidInput

P = ParamSpec("P")
T = TypeVar("T")

ARGUMENTS = {
    "max_wrong": "max_error_rate",
    "grace": "stale_while_revalidate",
    "context": "document_policy",
    "write_quota": "max_writes_per_hour",
    "admit": "should_store",
    "judge": "compare",
    "threshold": "min_probability, or min_similarity with an embedder of your own,",
}
VALUES = {"document_policy": {"evidence": "supporting", "same": "all"}}


def require_new_names(names: Iterable[str], owner: str) -> None:
    """Raise `InvalidInput` if an argument of `owner` has an old name."""
    old = [name for name in names if name in ARGUMENTS]
    if old:
        renamed = ", ".join(f"{name} is called {ARGUMENTS[name]}" for name in old)
        raise InvalidInput(f"{owner}: {renamed} since version 0.2")


def refuse_old_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that keyword arguments with old names raise `InvalidInput`."""

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        require_new_names(kwargs, f"{function.__module__}.{function.__name__}()")
        return function(*args, **kwargs)

    return checked
