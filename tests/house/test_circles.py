"""No new circles of imports; the ones there are stand here, and a list here can only become shorter.

Modules in a circle can only be understood, tested and moved together. `tests/house/imports.py` says what
counts as an import. A module that is renamed takes the place of its old name. The target is no circle at all.
"""

from __future__ import annotations

from collections.abc import Collection

import pytest

from tests.house.imports import Graph, between_components, circles, project_imports, shortest_way

Circles = Collection[frozenset[str]]


def _together(names: str) -> frozenset[str]:
    return frozenset(names.split())


#: `ibidem` is the `__init__` of the core.
OF_MODULES = (
    _together(
        "ibidem ibidem.advice.advising ibidem.advice.misses ibidem.answering ibidem.audits.audit "
        "ibidem.audits.ledger ibidem.backend ibidem.cache ibidem.examples.log ibidem.export.export "
        "ibidem.finding ibidem.fit.learning ibidem.forgetting ibidem.keeping ibidem.lifecycle.correcting "
        "ibidem.models.following ibidem.models.promoting ibidem.opening ibidem.pickling ibidem.sharing "
        "ibidem.stats ibidem.teaching.pairing ibidem.telemetry.instruments ibidem.telemetry.labels "
        "ibidem.telemetry.spans ibidem.telemetry.telling"
    ),
    _together("ibidem.embedding.embedder ibidem.embedding.minilm ibidem.embedding.objects"),
    _together("ibidem.request ibidem.scoping"),
    _together("langchain_ibidem.memory langchain_ibidem.tracker"),
    _together("llama_index_ibidem.llm llama_index_ibidem.replay"),
    _together("llama_index_ibidem.native llama_index_ibidem.wrapping"),
)
#: Packages, and modules at the top level of the core.
OF_COMPONENTS = (
    _together(
        "ibidem ibidem.advice ibidem.answering ibidem.audits ibidem.backend ibidem.cache ibidem.examples "
        "ibidem.export ibidem.finding ibidem.fit ibidem.forgetting ibidem.index ibidem.keeping "
        "ibidem.lifecycle ibidem.models ibidem.opening ibidem.pickling ibidem.places ibidem.prices "
        "ibidem.settings ibidem.sharing ibidem.stats ibidem.storage ibidem.teaching ibidem.telemetry"
    ),
    _together("ibidem.request ibidem.scoping"),
)
SHOWN = 10
LEVELS = pytest.mark.parametrize("level", ["modules", "components"])


def graph_and_allowed(level: str) -> tuple[Graph, Circles]:
    """The graph of a level, and the circles in it that are allowed."""
    if level == "modules":
        return project_imports(), OF_MODULES
    return between_components(project_imports()), OF_COMPONENTS


@LEVELS
def test_there_is_no_new_circle(level: str) -> None:
    """Nor does one grow: break the circle where it is easiest, the list is not for new ones."""
    graph, allowed = graph_and_allowed(level)
    new = new_circles(graph, allowed)

    assert not new, "\n".join([f"{len(new)} are new, the shortest first:", *new[:SHOWN]])


@LEVELS
def test_what_is_mended_is_off_the_list(level: str) -> None:
    """What is in no circle any more must not come back into one."""
    graph, allowed = graph_and_allowed(level)
    gone = mended(graph, allowed)

    assert not gone, "\n".join(["take it off the list, it is mended:", *gone])


def new_circles(graph: Graph, allowed: Circles) -> list[str]:
    """A way round for each module that is in a circle with others than it is allowed to be."""
    ways = [
        _way_round(graph, module, circle & nearest or {module})
        for circle in circles(graph)
        if not any(circle <= known for known in allowed)
        for nearest in [max(allowed, key=lambda known: len(known & circle), default=frozenset())]
        for module in sorted(circle - nearest)
    ]
    return [" -> ".join(way) for way in sorted(ways, key=lambda way: (len(way), way))]


def mended(graph: Graph, allowed: Circles) -> list[str]:
    """The allowed members that are in no circle."""
    return sorted(frozenset().union(*allowed) - frozenset().union(*circles(graph)))


def _way_round(graph: Graph, module: str, through: Collection[str]) -> list[str]:
    """A short circle of imports from a module through one of some others."""
    there = shortest_way(graph, module, through)
    back = shortest_way(graph, there[-1], {module}) if there[-1] != module else [module]
    return [*there, *back[1:]]


TRIANGLE = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("a"), "d": frozenset("a")}


@pytest.mark.parametrize(
    ("allowed", "new", "gone"),
    [
        ([], ["a -> b -> c -> a", "b -> c -> a -> b", "c -> a -> b -> c"], []),
        (["abc"], [], []),
        (["ab"], ["c -> a -> b -> c"], []),
        (["abcd"], [], ["d"]),
        (["abc", "xy"], [], ["x", "y"]),
        (["ab", "cd"], ["c -> a -> b -> c"], ["d"]),
    ],
)
def test_the_check_of_circles_finds_them(allowed: list[str], new: list[str], gone: list[str]) -> None:
    """The check itself can fail."""
    known = [frozenset(one) for one in allowed]

    assert new_circles(TRIANGLE, known) == new
    assert mended(TRIANGLE, known) == gone
