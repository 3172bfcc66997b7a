"""Describe functions and classes of a program by their code, and by the values that the code refers to.

The code of frameworks, of the standard library and of other installed packages is known by its name: a new
version of them does not cost a cache. A constant, a default, an enclosed or a global value, a helper function
and a base class of the program's own count, as they are now.
"""

from __future__ import annotations

import builtins
import dis
import functools
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from ibidem.adapter.method_wrappers import unwrapped
from ibidem.adapter.object_identity import Watch

_FRAMEWORKS = ("langchain", "langgraph", "llama_index", "pydantic", "ibidem")
_OURS = ("ibidem", "langchain_ibidem", "llama_index_ibidem")
_INSTALLED = ("site-packages", "dist-packages")
_COLLECTING = frozenset(
    "append appendleft add extend update insert pop popitem setdefault clear remove discard".split()
)
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, partial)
_OF_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_ABSENT: Any = object()


@functools.lru_cache(1024)
def is_of_framework(module: str) -> bool:
    """Return whether the module belongs to the standard library, a framework or a package of a framework."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names and top != "__main__":
        return True
    place = getattr(sys.modules.get(module), "__file__", None) or ""
    return top in _OURS or (top.startswith(_FRAMEWORKS) and any(each in place for each in _INSTALLED))


def name_of(thing: Any) -> str:
    """Return the module and the name of a class or function."""
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def own_classes(kind: type) -> list[type]:
    """Return the class and its bases, without those of frameworks."""
    return [base for base in kind.__mro__ if not is_of_framework(base.__module__)]


def counted_in(kind: type) -> frozenset[str]:
    """Return the names of the attributes that the program's own code of a class uses as counters."""
    members = [unwrapped(value) for base in own_classes(kind) for value in vars(base).values()]
    functions = [function for value in members for function in _functions_in(value)]
    return frozenset().union(*(_counted(function.__code__) for function in functions))


class CodeReader:
    """Reads the code of functions and classes as JSON values, and notes in `watch` all that it reads.

    `value` converts any other object, `named` one that has a name.
    """

    def __init__(self, value: Callable[[Any], Any], named: Callable[[str, Any], Any], watch: Watch) -> None:
        self._value, self._named, self._watch = value, named, watch
        self._begun: dict[int, Any] = {}  # holds what was read, so that nothing else gets its number
        self._packages: set[str] = set()

    def of_class(self, kind: type) -> Any:
        """Describe a class, with those of its bases that are the program's own."""
        bases = own_classes(kind)
        self._packages |= {_package(base) for base in bases}
        return [name_of(kind), [self._once(base, partial(self._body, base)) for base in bases]]

    def of_function(self, function: Any) -> Any:
        """Describe a function, method or partial."""
        if isinstance(function, partial):
            return [self.of_function(function.func), self._value([function.args, function.keywords])]
        if isinstance(function, types.MethodType):
            return [self._value(function.__self__), self.of_function(function.__func__)]
        if not isinstance(function, types.FunctionType):
            bound = getattr(function, "__self__", None)
            return [name_of(function), None if isinstance(bound, types.ModuleType) else self._value(bound)]
        self._packages.add(_package(function))
        return self._once(function, partial(self._function, function))

    def _once(self, thing: Any, read: Callable[[], Any]) -> Any:
        if id(thing) in self._begun:
            return name_of(thing)
        self._begun[id(thing)] = thing
        return read()

    def _function(self, function: types.FunctionType) -> list[Any]:
        inner = getattr(function, "__wrapped__", None)
        if is_of_framework(function.__globals__.get("__name__", "")):
            return [name_of(function), self.of_function(inner) if inner is not None else None]
        self._watch.function(function)
        code = function.__code__
        changed = _changed(code)
        return [
            name_of(function),
            _shown(code),
            self._value([function.__defaults__, function.__kwdefaults__]),
            *self._enclosed(function, changed),
            *self._globals(function, changed),
        ]

    def _enclosed(self, function: types.FunctionType, changed: frozenset[str]) -> Iterator[Any]:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name != "__class__":
                yield self._referred(name, partial(getattr, cell, "cell_contents", _ABSENT), changed)

    def _globals(self, function: types.FunctionType, changed: frozenset[str]) -> Iterator[Any]:
        held = function.__globals__
        for name in _globals_of(function.__code__):
            if name in held or not hasattr(builtins, name):
                yield self._referred(name, partial(held.get, name, _ABSENT), changed)

    def _referred(self, name: str, now: Callable[[], Any], changed: frozenset[str]) -> Any:
        """Describe the value under a name in the code, unless the code itself counts or collects there."""
        value = now()
        if value is _ABSENT or _is_tally(name, value, changed):
            return name
        self._watch.reading(now, value)
        return [name, self._of(name, value)]

    def _of(self, name: str, value: Any) -> Any:
        if isinstance(value, types.ModuleType):
            return value.__name__
        if isinstance(value, type):
            return [self.of_class(value), _schema(value)] if self._is_own(value) else name_of(value)
        if isinstance(value, types.FunctionType):
            return self.of_function(value) if self._is_own(value) else name_of(value)
        return self.of_function(value) if isinstance(value, _FUNCTIONS) else self._named(name, value)

    def _is_own(self, thing: Any) -> bool:
        """Whether it is code of the program, and not of a library that it uses."""
        place = getattr(sys.modules.get(thing.__module__), "__file__", None) or ""
        installed = is_of_framework(thing.__module__) or any(each in place for each in _INSTALLED)
        return _package(thing) in self._packages or not installed

    def _body(self, kind: type) -> list[Any]:
        """What stands in a class."""
        held = {name: unwrapped(value) for name, value in vars(kind).items()}
        self._watch.mapping(vars(kind))
        functions = [function for value in held.values() for function in _functions_in(value)]
        changed = frozenset().union(*(_changed(function.__code__) for function in functions))
        return [
            [name, self._member(name, value, changed)] for name, value in held.items() if _counts(name, value)
        ]

    def _member(self, name: str, value: Any, changed: frozenset[str]) -> Any:
        if functions := _functions_in(value):
            return [type(value).__name__, *map(self.of_function, functions)]
        if _is_tally(name, value, changed):
            return None
        return self._of(name, value)


def _schema(kind: Any) -> Any:
    """What pydantic says of a class, if it can: constraints and descriptions stand in no code."""
    try:
        return kind.model_json_schema()
    except Exception:
        return None


def _package(thing: Any) -> str:
    return str(thing.__module__).partition(".")[0]


def _functions_in(value: Any) -> list[types.FunctionType]:
    """The functions of a method or of what stands for one."""
    if isinstance(value, types.FunctionType):
        return [value]
    if isinstance(value, type):
        return []
    inner = [getattr(value, name, None) for name in ("fget", "fset", "func", "__func__")]
    return [each for each in inner if isinstance(each, types.FunctionType)]


def _counts(name: str, value: Any) -> bool:
    """Whether a member of a class was written there, and not made by Python or pydantic."""
    made = (name.startswith("__") and name.endswith("__")) or name == "_abc_impl"
    return not made or bool(_functions_in(value))


def _is_tally(name: str, value: Any, changed: frozenset[str]) -> bool:
    return name in changed and isinstance(value, (int, list, dict, set))


@functools.lru_cache(4096)
def _changed(code: types.CodeType) -> frozenset[str]:
    """Names of what code counts or collects in: variables that it sets, what it adds to or fills."""
    found: set[Any] = set()
    loaded: list[Any] = []
    for at in dis.get_instructions(code):
        if at.opname in ("STORE_GLOBAL", "STORE_DEREF"):
            found.add(at.argval)
        elif at.opname in ("LOAD_METHOD", "LOAD_ATTR") and at.argval in _COLLECTING and loaded:
            found.add(loaded[-1])
        elif at.opname in ("STORE_SUBSCR", "COPY") and len(loaded) > 1:
            # Of `x[key] = ...` and `x[key] += ...`.
            found.add(loaded[-2])
        loaded = [*loaded, *_loaded_by(at)][-2:]
    return frozenset(map(str, found)).union(_counted(code), *map(_changed, _inner(code)))


def _loaded_by(at: dis.Instruction) -> Iterable[Any]:
    """What an instruction loads; one of Python 3.13 may load two variables, or store one and load another."""
    if "LOAD" not in at.opname:
        return ()
    both: tuple[Any, ...] = at.argval if isinstance(at.argval, tuple) else (at.argval,)
    return both[-1:] if at.opname.startswith("STORE") else both


@functools.lru_cache(4096)
def _counted(code: types.CodeType) -> frozenset[str]:
    """Names of attributes that code counts in, as in `self.calls += 1`."""
    found, adds = set(), 0
    for at in dis.get_instructions(code):
        adds = 3 if at.argrepr == "+=" else adds - 1
        if at.opname == "STORE_ATTR" and adds > 0:
            found.add(str(at.argval))
    return frozenset(found).union(*map(_counted, _inner(code)))


def _inner(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of functions within."""
    return (each for each in code.co_consts if isinstance(each, types.CodeType))


@functools.lru_cache(4096)
def _globals_of(code: types.CodeType) -> tuple[str, ...]:
    """Names of globals that code loads, in order of their first use."""
    own = [str(at.argval) for at in dis.get_instructions(code) if at.opname in _OF_GLOBALS]
    return tuple(dict.fromkeys((*own, *(name for each in _inner(code) for name in _globals_of(each)))))


@functools.lru_cache(4096)
def _shown(code: types.CodeType) -> list[Any]:
    """Code without its place in the file."""
    names: Iterable[str] = (*code.co_names, *code.co_varnames, *code.co_freevars)
    return [code.co_code.hex(), [_constant(value) for value in code.co_consts], list(names)]


def _constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        return _shown(value)
    if isinstance(value, frozenset):
        return ["frozenset", *sorted(map(repr, value))]
    if isinstance(value, tuple):
        return ["tuple", *map(_constant, value)]
    return f"{type(value).__name__} {value!r}"
