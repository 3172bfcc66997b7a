"""Wrap methods of a framework's classes, of all that inherit from them too, as long as somebody needs it.

Some frameworks have no place where an adapter could step in: what a program calls is the method itself. So
the methods are wrapped in their classes, and put back when nobody needs it any more.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MethodType
from typing import Any
from weakref import WeakSet

from ibidem._util.concurrency import ForkSafeLock

#: Called in place of a method: with its name, the method bound to its object, the object, and the arguments.
Around = Callable[[str, Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]

_HOOK = "__init_subclass__"


class MethodWrappers:
    """The methods of these names of these classes and of all that inherit from them, wrapped and put back.

    They are wrapped while somebody holds them; of classes that are defined meanwhile as well.

    Args:
        names: The names of methods by class.
        around: Called in place of each.
    """

    def __init__(self, names: Mapping[type, Iterable[str]], around: Around) -> None:
        self._names = {base: frozenset(several) for base, several in names.items()}
        self.around = around
        self._holders: WeakSet[Any] = WeakSet()
        self._lock = ForkSafeLock()
        self._hooks: dict[type, tuple[Any, Any]] = {}  # what was there before, and ours
        self.active = False

    def hold(self, holder: object) -> None:
        """Wrap them, if they are not; they stay so at least until the holder releases them."""
        with self._lock:
            self._holders.add(holder)
            if not self.active:
                self.active = True
                for base, names in self._names.items():
                    self._hook(base, names)
                    for kind in _family(base):
                        self._wrap(kind, names)

    def release(self, holder: object) -> None:
        """Unwrap them if nobody else holds them. One under what others put there since does nothing then."""
        with self._lock:
            self._holders.discard(holder)
            if self.active and not len(self._holders):
                self.active = False
                for base, names in self._names.items():
                    self._unhook(base)
                    for kind in _family(base):
                        self._unwrap(kind, names)

    def _wrap(self, kind: type, names: Iterable[str]) -> None:
        for name in names:
            method = vars(kind).get(name)
            if _is_method(method) and all(layer.owner is not self for layer in _layers(method)):
                setattr(kind, name, _Wrapper(name, method, self))

    def _unwrap(self, kind: type, names: Iterable[str]) -> None:
        for name in names:
            above: _Wrapper | None = None
            for layer in _layers(vars(kind).get(name)):
                if layer.owner is not self:
                    above = layer
                elif above is None:
                    setattr(kind, name, layer.method)
                else:
                    above.method = layer.method

    def _hook(self, base: Any, names: frozenset[str]) -> None:
        """Wrap the methods of classes that are defined from now on."""
        own = vars(base).get(_HOOK)

        def defined(cls: Any, /, **given: Any) -> None:
            inherited = super(base, cls).__init_subclass__ if own is None else own.__get__(None, cls)
            inherited(**given)
            if self.active:
                for kind in _beside(base, cls):
                    self._wrap(kind, names)

        self._hooks[base] = own, classmethod(defined)
        setattr(base, _HOOK, self._hooks[base][1])

    def _unhook(self, base: Any) -> None:
        own, ours = self._hooks.pop(base)
        if vars(base).get(_HOOK) is not ours:
            return  # somebody's is over it
        if own is None:
            delattr(base, _HOOK)
        else:
            setattr(base, _HOOK, own)


class _Wrapper:
    """A wrapped method. To `inspect` it is the (generator) function it wraps."""

    def __init__(self, name: str, method: Any, owner: MethodWrappers) -> None:
        functools.update_wrapper(self, method)
        self.name, self.method, self.owner = name, method, owner
        for attribute in ("__code__", "__defaults__", "__kwdefaults__"):
            if hasattr(method, attribute):
                setattr(self, attribute, getattr(method, attribute))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For pickle, by its name; for those who send a class of the program itself, the plain method."""
        found: Any = sys.modules.get(self.__module__) if self.__module__ != "__main__" else None
        name = str(getattr(self, "__qualname__", ""))
        for part in name.split("."):
            found = getattr(found, part, None)
        return name if found is self else (_itself, (self.method,))

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __call__(self, instance: Any, *args: Any, **given: Any) -> Any:
        method = self.method.__get__(instance, type(instance))
        if not self.owner.active:
            return method(*args, **given)
        return self.owner.around(self.name, method, instance, args, given)


def unwrapped(member: Any) -> Any:
    """What stands in a class, as its author wrote it."""
    for layer in _layers(member):
        member = layer.method
    return member


def _layers(member: Any) -> Iterator[_Wrapper]:
    """The wrappers around a method, from the outermost inwards."""
    while isinstance(member, _Wrapper):
        yield member
        member = member.method


def _itself(method: Any) -> Any:
    return method


def _is_method(value: object) -> bool:
    callable_ = callable(value) and hasattr(value, "__get__")
    return callable_ and not isinstance(value, (type, staticmethod, classmethod))


def _family(base: type) -> set[type]:
    """The class and all that inherit from it, with what they inherit from beside it."""
    heirs, left = set[type](), [base]
    while left:
        if (kind := left.pop()) not in heirs:
            heirs.add(kind)
            left += kind.__subclasses__()
    return set().union(*(_beside(base, kind) for kind in heirs))


def _beside(base: type, kind: type) -> set[type]:
    """The class, and those of its bases from which `base` itself does not inherit."""
    return {base, *(each for each in kind.__mro__ if not issubclass(base, each))}
