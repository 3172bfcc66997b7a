"""Who asks, and on which terms, for all calls in a block of code: `with ibidem.scope(namespace="acme"): ...`.

A context variable holds it: threads and tasks that a framework begins inherit it, a thread of your own does
not. A request keeps the scope it was asked in, and so does a stream that is read elsewhere
(`scoped_streams`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass

from ibidem.errors import InvalidInput, NotCacheable
from ibidem.types import (
    Request,
    key_of,
    require_bool,
    require_name,
    require_seconds,
    require_tags,
)

_USER = "/user="  # between a namespace and its user


@dataclass(frozen=True, slots=True)
class Scope:
    """What `scope` says: "", None or () where it says nothing."""

    namespace: str = ""
    user: str = ""
    bypass: bool = False
    max_age: float | None = None
    ttl: float | None = None
    tags: tuple[str, ...] = ()

    def and_then(self, inner: Scope) -> Scope:
        """With a scope inside: it has the last word, but tags add up, and a bypass stays one."""
        return Scope(
            namespace=inner.namespace or self.namespace,
            user=inner.user or self.user,
            bypass=inner.bypass or self.bypass,
            max_age=self.max_age if inner.max_age is None else inner.max_age,
            ttl=self.ttl if inner.ttl is None else inner.ttl,
            tags=tuple(dict.fromkeys((*self.tags, *inner.tags))),
        )

    def name(self, own: str = "") -> str:
        """The namespace to ask in, for an adapter whose own is `own`."""
        return namespace_of(self.namespace or own, self.user)

    def covers(self, name: str) -> bool:
        """Whether what is stored under this name may be touched here; all of it where no tenant is named.

        A namespace covers its users. A user without a namespace is in that of an adapter, which is not known.
        """
        if self.user and not self.namespace:
            return name.partition(_USER)[2] == _escaped(self.user)
        return name == self.name() if self.user else not self.namespace or is_of(name, self.name())


NOWHERE = Scope()
_current: ContextVar[Scope] = ContextVar("ibidem_scope", default=NOWHERE)


def current() -> Scope:
    """The scope of the running code."""
    return _current.get()


def scope_of(
    *,
    namespace: object = None,
    user: object = None,
    bypass: object = False,
    max_age: object = None,
    ttl: object = None,
    tags: object = (),
) -> Scope:
    """A scope of these values, None where nothing is said.

    Raises:
        InvalidInput: One has the wrong type. A name must not be blank: a tenant that is not known must not be
            taken for none.
    """
    require_bool("bypass", bypass)
    return Scope(
        namespace=_require_name("namespace", namespace),
        user=_require_name("user", user),
        bypass=bool(bypass),
        max_age=require_seconds("max_age", max_age),
        ttl=require_seconds("ttl", ttl),
        tags=require_tags(tags),
    )


@contextmanager
def scope(
    *,
    namespace: str | None = None,
    user: str | None = None,
    bypass: bool = False,
    max_age: float | None = None,
    ttl: float | None = None,
    tags: Sequence[str] = (),
) -> Iterator[None]:
    """Say who asks, and on which terms, for everything that is asked in this block.

    It holds for both integrations and for `lookup`, `store` and `answer`, in the threads and tasks that
    LangChain, LangGraph and LlamaIndex begin in the block too; not in a thread that you start yourself. Their
    streams that are asked for in the block keep it, whoever reads them. `feedback`, `invalidate(entry=...)`,
    `forget` and the example log stay within its namespace.
    Inside another, it has the last word on what it says; tags add up, and a bypass stays one.

    Args:
        namespace: Tenant or application: what is stored in one is never served in another. It takes the place
            of an adapter's own; a `Request` that names a namespace keeps it.
        user: The same for a user within a namespace. Their answers are in `namespace_of(namespace, user)`.
        bypass: True to ask models as if there were no cache and no log.
        max_age: The most seconds since an answer was given; an older one is replaced by the new answer.
        ttl: Seconds that an answer stored here lives, at most those of the cache.
        tags: Names under which what is stored here can be invalidated later.

    Raises:
        InvalidInput: A value has the wrong type, or a name is blank or cannot be stored.
    """
    inner = scope_of(namespace=namespace, user=user, bypass=bypass, max_age=max_age, ttl=ttl, tags=tags)
    with entered(_current.get().and_then(inner)):
        yield


@contextmanager
def entered(found: Scope) -> Iterator[None]:
    """In this block `found` is the scope, whatever that of the running code is."""
    before = _current.get()
    token = enter(found)
    try:
        yield
    finally:
        try:
            leave(token)
        except ValueError:
            # A generator around the block goes on in another context, where the scope is its reader's, or, in
            # a stream that keeps its own, still that of the block.
            if _current.get() is found:
                _current.set(before)


enter: Callable[[Scope], Token[Scope]] = _current.set  # not undone at the end of a block, but by `leave`
leave: Callable[[Token[Scope]], None] = _current.reset  # raises ValueError in another context


def in_force(namespace: str | None) -> str | None:
    """The namespace, or that of the running code's scope if none is given; None for all, if neither says."""
    scope = current()
    return scope.name() if namespace is None and (scope.namespace or scope.user) else namespace


def here(*, required: bool) -> Scope:
    """The scope of the running code; raises `NotCacheable` if it must name a namespace and does not."""
    found = current()
    if required:
        require_namespace(found)
    return found


def require_namespace(scope: Scope, elsewhere: str = "") -> None:
    """Raise `NotCacheable` unless the scope, or `elsewhere` for the message, names a namespace."""
    if not (scope.namespace or scope.bypass):
        raise NotCacheable(
            "no_namespace",
            "require_namespace is set, and nothing says whose call this is: ask within "
            f"ibidem.scope(namespace=...){elsewhere}",
        )


def placed(request: Request) -> Request:
    """The request as the running block asks it; as it is, if that was settled before."""
    if request.within is not None or (found := current()) is NOWHERE:
        return request
    return _within(request, found)


def settled(request: Request) -> Request:
    """As `placed`; wherever the request goes from here, it stays so."""
    return request if request.within is not None else _within(request, current())


def _within(request: Request, scope: Scope) -> Request:
    named = request.namespace
    if scope.user:
        named = namespace_of(named or scope.namespace, scope.user)
    elif not named and scope.namespace:
        named = scope.name()
    asked = object.__new__(Request)
    for name in Request.__slots__:
        object.__setattr__(asked, name, getattr(request, name))
    object.__setattr__(asked, "within", scope)
    if named != request.namespace:
        parts = (request.scope_digest, request.question, request.documents_digest)
        object.__setattr__(asked, "namespace", named)
        object.__setattr__(asked, "key", key_of(named, *parts, semantic=request.semantic))
    return asked


def namespace_of(namespace: str, user: str = "") -> str:
    """The name under which the answers of a user in a namespace are stored, listed and cleared.

    `acme/user=ann`; without a user it is `acme` itself. No two pairs have the same name: whatever could be
    mistaken for another is escaped as in a URL.

    Raises:
        InvalidInput: One is not a str, or cannot be stored: it holds NUL, or half a character.
    """
    named, who = require_name("namespace", namespace), require_name("user", user)
    if who:
        return f"{_escaped(named)}{_USER}{_escaped(who)}"
    return _escaped(named) if "%" in named or _USER in named else named


def is_of(name: str, namespace: str) -> bool:
    """Whether a name is that of the namespace or of a user in it; `namespace` as it is stored."""
    return name == namespace or name.startswith(users_of(namespace))


def users_of(namespace: str) -> str:
    """How the names of the users in a namespace begin; `namespace` as it is stored."""
    return f"{namespace if '%' in namespace else _escaped(namespace)}{_USER}"


def tenant_of(name: str) -> str:
    """The namespace in a name that `namespace_of` made."""
    return name.partition(_USER)[0].replace("%2F", "/").replace("%25", "%")


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("/", "%2F")


def _require_name(what: str, value: object) -> str:
    if value is None:
        return ""
    if not (named := require_name(what, value)).strip():
        raise InvalidInput(f"{what} is blank; leave it out, or name one")
    return named


BYPASSED = "bypassed"  # why a lookup found nothing, and why an answer was not stored


def bypassing() -> AbstractContextManager[None]:
    """In this block, and in tasks begun in it, models are asked as if there were no cache and no log."""
    return scope(bypass=True)


def is_bypassed(request: Request | None = None) -> bool:
    """Whether caches and logs are to be left alone: here, or where the request was made."""
    within = request.within if request is not None else None
    return current().bypass or (within is not None and within.bypass)
