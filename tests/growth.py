"""How the time of a call grows with its text, and texts on which patterns are slow if they can be."""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import log2
from pathlib import Path
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from types import ModuleType
from typing import Any

ENOUGH = 0.002  # seconds from which on a time can be compared
ANY_SIZE = (128, 64 * 1024)  # characters to begin with
DOUBLINGS = 3
NOTHING = 0.005  # seconds of the largest text that need no comparison
EXPONENT = 1.35  # what fits into the processor's cache is faster, the more so beside other tests
CERTAIN = 1.7  # from here on no disturbance is to blame: it would take four times the last, thrice
_TOO_LONG = 0.5  # seconds after which there is no second and third run
_METHODS = ("search", "match", "fullmatch", "findall", "finditer", "sub", "split")

Call = Callable[[int], Callable[[], object]]  # of a size -> what is timed; made anew for each run


def seconds_of(make: Call, size: int, runs: int = 3) -> float:
    """Seconds of this thread's own CPU time, the best of some runs; of one, if that takes long."""
    best = float("inf")
    for _ in range(runs):
        call = make(size)
        gc.disable()  # what others have left lying about is not the call's
        try:
            began = time.thread_time()
            call()
            best = min(best, time.thread_time() - began)
        finally:
            gc.enable()
        if best > _TOO_LONG:
            break
    return best


def growth_of(make: Call, sizes: tuple[int, int] = ANY_SIZE, base: float = 0.0) -> str:
    """What is wrong with the growth over three doublings, "" if nothing.

    One run each clears what is not near to wrong: only a disturbance of six times the first hides a square.
    All else is measured three times, and again if it looks wrong.

    Args:
        make: What is timed.
        sizes: Of the text at the beginning: the least, and the most.
        base: Seconds that it takes without a text; they are taken off.
    """
    size, most = sizes
    while (first := seconds_of(make, size, 1) - base) < ENOUGH and size < most:
        size *= 2
    last = seconds_of(make, size * 2**DOUBLINGS, 1) - base
    if last <= NOTHING or _exponent(first, last) <= EXPONENT - 0.2:
        return ""
    for _ in range(3):
        found = {size * 2**n: seconds_of(make, size * 2**n) - base for n in range(DOUBLINGS + 1)}
        first, *_, last = found.values()
        exponent = _exponent(first, last)
        if last <= NOTHING or exponent <= EXPONENT:
            return ""
        if exponent > CERTAIN:
            break
    return f"exponent {exponent:.2f} ({', '.join(f'{n:,}: {1000 * s:.1f} ms' for n, s in found.items())})"


def _exponent(first: float, last: float) -> float:
    least = ENOUGH / 2  # a difference of two times may be nothing, or less
    return log2(max(last, least) / max(first, least)) / DOUBLINGS


@dataclass(frozen=True)
class Found:
    """A regular expression of the code, and the methods that are called on it."""

    name: str
    pattern: re.Pattern[str]
    methods: tuple[str, ...]


def modules_of(*packages: str) -> Iterator[ModuleType]:
    """The modules of packages in which there are expressions."""
    for package in packages:
        (folder,) = importlib.import_module(package).__path__
        for path in sorted(Path(folder).rglob("*.py")):
            if re.search(
                r"^\s*(?:import re|from re import .*)$", path.read_text(encoding="utf-8"), re.MULTILINE
            ):
                parts = path.relative_to(folder).with_suffix("").parts
                yield importlib.import_module(".".join((package, *parts)).removesuffix(".__init__"))


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
    if not isinstance(called, ast.Attribute) or not isinstance(called.value, ast.Name):
        return ""
    return called.attr if called.value.id == "re" and called.attr in (*_METHODS, "compile") else ""


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
    """Texts by size, of many copies of what each repeat of the expression takes, and then what it does not.

    The repeat alone, after what stands before it in the expression, and all this many times over.
    """
    tree = parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE if pattern.flags & re.ASCII else 0)
    seen = set()
    for before, bodies, takes in _repeats(list(tree), ""):
        tail = "" if takes("\x01") else "\x01"
        repeated = [(head, body) for head in ("", before) for body in bodies]
        repeated += [("", before + one) for one in (bodies[0], " ", "\n")]
        for head, one in repeated:
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
