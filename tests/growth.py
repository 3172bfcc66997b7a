"""How the time of a call grows with its text, and texts on which patterns are slow if they can be."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import log2
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from types import ModuleType
from typing import Any

ENOUGH = 0.002  # seconds from which on a time can be compared
LARGEST = 64 * 1024  # characters to begin with, at most
DOUBLINGS = 3
NOTHING = 0.005  # seconds of the largest text that need no comparison
EXPONENT = 1.2
_TOO_LONG = 0.5  # seconds for a text of less than 512 KB: that is not linear
_METHODS = ("search", "match", "fullmatch", "findall", "finditer", "sub", "split")

Call = Callable[[int], Callable[[], object]]  # of a size -> what is timed; made anew for each run


def seconds_of(make: Call, size: int, runs: int = 3) -> float:
    """Seconds of this thread's own CPU time, the best of some runs; of one, if that takes too long."""
    best = float("inf")
    for _ in range(runs):
        call = make(size)
        began = time.thread_time()
        call()
        best = min(best, time.thread_time() - began)
        if best > _TOO_LONG:
            break
    return best


def exponent_of(make: Call) -> tuple[float, list[tuple[int, float]]]:
    """The exponent of the growth over three doublings, and the sizes with their seconds.

    It is 0 where the largest text takes next to no time. What one run of the largest text clears needs no
    more of them: a disturbance only makes it look worse.
    """
    size = 128
    while (seconds := seconds_of(make, size, 1)) < ENOUGH and size < LARGEST:
        size *= 2
    found = [(size, seconds_of(make, size))]
    while len(found) <= DOUBLINGS:
        if found[-1][1] > _TOO_LONG:
            return float("inf"), found
        size *= 2
        found.append((size, seconds_of(make, size, 1)))
        if len(found) > DOUBLINGS and _exponent(found) > EXPONENT:
            found = [(one, seconds_of(make, one)) for one, _ in found]
    return _exponent(found), found


def _exponent(found: list[tuple[int, float]]) -> float:
    last = found[-1][1]
    return 0.0 if last <= NOTHING else log2(last / found[0][1]) / DOUBLINGS


def growth_of(make: Call) -> str:
    """What is wrong with the growth, "" if nothing; measured again before it is called wrong."""
    for _ in range(3):
        exponent, found = exponent_of(make)
        if exponent <= EXPONENT:
            return ""
        if exponent > 1.7:
            break
    told = ", ".join(f"{size:,}: {1000 * seconds:.1f} ms" for size, seconds in found)
    return f"grows with exponent {exponent:.2f} ({told})"


@dataclass(frozen=True)
class Found:
    """A regular expression of the code, and the methods that are called on it."""

    name: str
    pattern: re.Pattern[str]
    methods: tuple[str, ...]


def modules_of(*packages: str) -> Iterator[ModuleType]:
    """The modules of packages, without those that need what is not installed."""
    for package in packages:
        root = importlib.import_module(package)
        yield root
        for one in pkgutil.walk_packages(root.__path__, f"{package}."):
            try:
                yield importlib.import_module(one.name)
            except ImportError:
                continue


def patterns_of(module: ModuleType) -> Iterator[Found]:
    """Every regular expression of a module: compiled at its top, or written where it is used."""
    tree = ast.parse(inspect.getsource(module))
    used: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr in _METHODS:
            used.setdefault(node.value.id, set()).add(node.attr)
        if isinstance(node, ast.Call) and (method := _of_re(node)) and method != "compile":
            yield Found(f"{module.__name__}:{node.lineno}", _compiled(node, method, module), (method,))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Call) and _of_re(inner) == "compile":
                    name = f"{module.__name__}:{inner.lineno}"
                    yield Found(name, _compiled(inner, "compile", module), ("search",))
    for name, value in vars(module).items():
        if isinstance(value, re.Pattern):
            yield Found(f"{module.__name__}.{name}", value, tuple(sorted(used.get(name, ("search",)))))


def _of_re(node: ast.Call) -> str:
    """The method of `re` that is called, if one is."""
    called = node.func
    is_re = isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "re"
    return called.attr if is_re and called.attr in (*_METHODS, "compile") else ""  # type: ignore[union-attr]


def _compiled(node: ast.Call, method: str, module: ModuleType) -> re.Pattern[str]:
    """The expression of a call; it may be put together of what the module names, and of nothing else."""
    place = {"compile": 1, "sub": 4}.get(method, 2)
    flags = next((one.value for one in node.keywords if one.arg == "flags"), None)
    flags = node.args[place] if flags is None and len(node.args) > place else flags
    given = [_value(one, module) for one in (node.args[0], flags) if one is not None]
    return re.compile(*given)


def _value(node: ast.expr, module: ModuleType) -> Any:
    return eval(compile(ast.Expression(node), module.__name__, "eval"), vars(module))


def texts_for(pattern: re.Pattern[str]) -> Iterator[tuple[str, Callable[[int], str]]]:
    """Texts by size, of many copies of what each repeat of the expression takes, followed by what it does not.

    The repeat alone, after what stands before it in the expression, and all this many times over.
    """
    tree = parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE if pattern.flags & re.ASCII else 0)
    seen = set()
    for before, bodies, takes in _repeats(list(tree), ""):
        tail = "" if takes("\x01") else "\x01"
        for head, one in [*((head, body) for head in ("", before) for body in bodies), *(("", before + one) for one in (bodies[0], " ", "\n"))]:
            if one and (head, one, tail) not in seen:
                seen.add((head, one, tail))
                yield f"{head!r} + {one!r} * n + {tail!r}", partial(_text, head, one, tail)


def _text(head: str, one: str, tail: str, size: int) -> str:
    return head + one * (size // len(one)) + tail


def _repeats(items: list[Any], before: str) -> Iterator[tuple[str, list[str], Callable[[str], bool]]]:
    """Each repeat without a small limit: an example of what stands before it, and of what it takes."""
    for op, value in items:
        inner: list[list[Any]] = []
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT):
            _, most, body = value
            inner = [list(body)]
            if most is ops.MAXREPEAT or most > 100:
                yield before, _examples(list(body)), _takes(list(body))
        elif op is ops.SUBPATTERN:
            inner = [list(value[3])]
        elif op is ops.BRANCH:
            inner = [list(one) for one in value[1]]
        elif op in (ops.ASSERT, ops.ASSERT_NOT):
            inner = [list(value[1])]
        elif op is ops.ATOMIC_GROUP:
            inner = [list(value)]
        for one in inner:
            yield from _repeats(one, before)
        before += next(iter(_examples([(op, value)])), "")


def _takes(items: list[Any]) -> Callable[[str], bool]:
    """Whether a repeat takes a character that stands alone; of sequences it is not known."""
    if len(items) == 1 and items[0][0] is ops.IN:
        return lambda c: re.match(f"[{_set_of(items[0][1])}]", c) is not None
    return lambda c: len(items) == 1 and items[0][0] in (ops.ANY, ops.NOT_LITERAL)


def _examples(items: list[Any]) -> list[str]:
    """One text that a sequence takes; several if it is a single set of characters."""
    if len(items) == 1 and items[0][0] is ops.IN:
        return _members(items[0][1])
    return ["".join(map(_example, items))]


def _example(item: tuple[Any, Any]) -> str:
    op, value = item
    if op is ops.LITERAL:
        return chr(value)
    if op is ops.NOT_LITERAL:
        return "a" if value != ord("a") else "b"
    if op is ops.ANY:
        return "a"
    if op is ops.IN:
        return _members(value)[0]
    if op in (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT):
        return "".join(map(_example, value[2])) * max(value[0], min(1, value[1]))
    if op is ops.SUBPATTERN:
        return "".join(map(_example, value[3]))
    if op is ops.ATOMIC_GROUP:
        return "".join(map(_example, value))
    if op is ops.BRANCH:
        return "".join(map(_example, value[1][0]))
    if op is ops.ASSERT:
        return "".join(map(_example, value[1]))
    return ""


def _members(given: list[Any]) -> list[str]:
    """Characters of a set, of different kinds."""
    one = re.compile(f"[{_set_of(given)}]")
    return [c for c in "\na 1A.-@'\"_[/\x01\u0301" if one.match(c)][:2] or [_first(given)]


def _set_of(given: list[Any]) -> str:
    return "".join(_shown(op, value) for op, value in given)


def _shown(op: Any, value: Any) -> str:
    if op is ops.NEGATE:
        return "^"
    if op is ops.LITERAL:
        return re.escape(chr(value))
    if op is ops.RANGE:
        return f"{re.escape(chr(value[0]))}-{re.escape(chr(value[1]))}"
    kinds = {
        ops.CATEGORY_DIGIT: "d", ops.CATEGORY_NOT_DIGIT: "D", ops.CATEGORY_SPACE: "s",
        ops.CATEGORY_NOT_SPACE: "S", ops.CATEGORY_WORD: "w", ops.CATEGORY_NOT_WORD: "W",
    }  # fmt: skip
    return f"\\{kinds[value]}"


def _first(given: list[Any]) -> str:
    op, value = next(one for one in given if one[0] in (ops.LITERAL, ops.RANGE))
    return chr(value if op is ops.LITERAL else value[0])
