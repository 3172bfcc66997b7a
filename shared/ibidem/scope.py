"""Tenant and options of all calls in a block of code: `with ibidem.scope(namespace="acme"): ...`.

A context variable holds the scope: threads and tasks started by a framework inherit it, a thread of your own
does not. A request keeps the scope it was made in, and so does a stream that is read elsewhere
(`ibidem.adapter.streams`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, Token
from typing import Any

from ibidem.errors import InvalidInput, NotCacheable
from ibidem.types import (
    Request,
    Scope,
    key_of,
    namespace_of,
    require_bool,
    require_name,
    require_seconds,
    require_tags,
)

EMPTY_SCOPE = Scope()
BYPASSED = "bypassed"  # the reason of a miss, and of a rejected answer
NOT_GIVEN: Any = type("NotGiven", (), {"__repr__": lambda _: "not given"})()  # None is one that got lost
_current: ContextVar[Scope] = ContextVar("ibidem_scope", default=EMPTY_SCOPE)
current: Callable[[], Scope] = _current.get  # the scope of the running code


def scope_of(
    *,
    namespace: object = NOT_GIVEN,
    user: object = None,
    bypass: object = False,
    max_age: object = None,
    ttl: object = None,
    tags: object = (),
) -> Scope:
    """Build a scope of these values.

    Raises:
        InvalidInput: One has the wrong type, the namespace is None, or a name is blank: an unknown tenant
            must not be taken for none.
    """
    require_bool("bypass", bypass)
    return Scope(
        namespace="" if namespace is NOT_GIVEN else _require_name("namespace", namespace),
        user="" if user is None else _require_name("user", user),
        bypass=bool(bypass),
        max_age=require_seconds("max_age", max_age),
        ttl=require_seconds("ttl", ttl),
        tags=require_tags(tags),
    )


@contextmanager
def scope(
    *,
    namespace: str = NOT_GIVEN,
    user: str | None = None,
    bypass: bool = False,
    max_age: float | None = None,
    ttl: float | None = None,
    tags: Sequence[str] = (),
) -> Iterator[None]:
    """Set tenant and options of all calls in this block.

    It applies to both integrations and to `lookup`, `store` and `answer`, also in threads and tasks that
    LangChain, LangGraph and LlamaIndex start in the block; not in a thread that you start yourself. Streams
    requested in the block keep it, whoever reads them. `feedback`, `invalidate(entry=...)`, `forget` and the
    example log stay within its namespace. Scopes nest: the inner values win, tags add up, and a bypass stays
    one.

    Args:
        namespace: Tenant or application: what is stored in one is never served in another. It replaces an
            adapter's own namespace; a `Request` with a namespace keeps that.
        user: A user within the namespace; their answers are in `namespace_of(namespace, user)`.
        bypass: True to ask models as if there were no cache and no log.
        max_age: Maximum age of an answer in seconds; an older one is replaced by the new answer.
        ttl: Lifetime of answers stored here in seconds, at most that of the cache.
        tags: Names by which answers stored here can be invalidated later.

    Raises:
        InvalidInput: A value has the wrong type, a name is blank or cannot be stored, or the namespace is
            None: an unknown tenant is not taken for none.
    """
    inner = scope_of(namespace=namespace, user=user, bypass=bypass, max_age=max_age, ttl=ttl, tags=tags)
    with use_scope(_current.get().merge(inner)):
        yield


@contextmanager
def use_scope(scope: Scope) -> Iterator[None]:
    """Make `scope` the current scope of this block; it is not merged with the outer one."""
    before = _current.get()
    token = enter(scope)
    try:
        yield
    finally:
        try:
            leave(token)
        except ValueError:
            # The block is in a generator that went on in another context: the scope there is the reader's or,
            # in a stream that keeps its scope, still that of the block.
            if _current.get() is scope:
                _current.set(before)


enter: Callable[[Scope], Token[Scope]] = _current.set  # not undone at the end of a block, but by `leave`
leave: Callable[[Token[Scope]], None] = _current.reset  # raises ValueError in another context


def bypassing() -> AbstractContextManager[None]:
    """Bypass cache and log in this block, and in tasks started in it."""
    return scope(bypass=True)


def effective_namespace(namespace: str | None) -> str | None:
    """Return the namespace, or if None that of the current scope; None for all if that has none."""
    scope = current()
    return scope.name() if namespace is None and (scope.namespace or scope.user) else namespace


def require_scope(*, required: bool) -> Scope:
    """Return the current scope; raise `NotCacheable` if it must name a namespace and does not."""
    scope = current()
    if required:
        require_namespace(scope)
    return scope


def require_namespace(scope: Scope, elsewhere: str = "") -> None:
    """Raise `NotCacheable` unless the scope names a namespace; `elsewhere` extends the advice."""
    if not (scope.namespace or scope.bypass):
        raise NotCacheable(
            "no_namespace",
            "require_namespace is set, and nothing says whose call this is: ask within "
            f"ibidem.scope(namespace=...){elsewhere}",
        )


def freeze_scope(request: Request) -> Request:
    """Return the request in the current scope, and keep it there; unchanged if it has one."""
    if request.scope_context is not None:
        return request
    scope, namespace = current(), request.namespace
    if scope.user:
        namespace = namespace_of(namespace or scope.namespace, scope.user)
    elif not namespace and scope.namespace:
        namespace = scope.name()
    bound = object.__new__(Request)
    for name in Request.__slots__:
        object.__setattr__(bound, name, getattr(request, name))
    object.__setattr__(bound, "scope_context", scope)
    if namespace != request.namespace:
        parts = (request.scope_digest, request.question, request.documents_digest)
        object.__setattr__(bound, "namespace", namespace)
        object.__setattr__(bound, "key", key_of(namespace, *parts, semantic=request.semantic))
    return bound


def _require_name(what: str, value: object) -> str:
    if value is None or not (name := require_name(what, value)).strip():
        raise InvalidInput(f"{what} is {'None' if value is None else 'blank'}; leave it out, or name one")
    return name
