"""No circles of imports: modules in a circle can only be understood, tested and moved together.

`tests/house/imports.py` says what counts as an import.
"""

from __future__ import annotations

from collections.abc import Collection

import pytest

from tests.house.imports import Graph, between_components, circles, project_imports, shortest_way

SHOWN = 10


def test_no_modules_form_a_circle() -> None:
    """Break the circle where it is easiest."""
    ways = ways_round(project_imports())

    assert not ways, "\n".join([f"{len(ways)} modules are in circles, the shortest first:", *ways[:SHOWN]])


def test_no_packages_form_a_circle() -> None:
    """Nor do packages and the modules at the top level of the core, each taken as one."""
    ways = ways_round(between_components(project_imports()))

    assert not ways, "\n".join([f"{len(ways)} packages are in circles, the shortest first:", *ways[:SHOWN]])


def ways_round(graph: Graph) -> list[str]:
    """Return a way round for each node that is in a circle, the shortest first."""
    ways = [_way_round(graph, node, circle) for circle in circles(graph) for node in sorted(circle)]
    return [" -> ".join(way) for way in sorted(ways, key=lambda way: (len(way), way))]


def _way_round(graph: Graph, node: str, circle: Collection[str]) -> list[str]:
    """Return a short way from a node of a circle back to itself."""
    there = shortest_way(graph, node, circle)
    back = shortest_way(graph, there[-1], {node}) if there[-1] != node else [node]
    return [*there, *back[1:]]


@pytest.mark.parametrize(
    ("arrows", "found"),
    [
        (["ab", "bc", "da"], []),
        (["ab", "ba", "ca"], ["a -> b -> a", "b -> a -> b"]),
        (["ab", "bc", "ca", "da"], ["a -> b -> c -> a", "b -> c -> a -> b", "c -> a -> b -> c"]),
    ],
)
def test_the_check_of_circles_finds_them(arrows: list[str], found: list[str]) -> None:
    """The check itself can fail."""
    graph = {node: frozenset(to for one, to in arrows if one == node) for node in "abcd"}

    assert ways_round(graph) == found
