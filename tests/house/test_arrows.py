"""The direction of imports: a package or module imports from its own line of `LAYERS` and from lower ones.

So a reader who starts at the bottom never meets a name that is explained further up.
"""

from __future__ import annotations

import pytest

from tests.house.imports import ADAPTERS, Graph, between_components, project_imports

# Names of the core go without `ibidem.`; `ibidem` itself is its `__init__`. Imports for types alone count.
LAYERS = [
    "errors",
    "types example _util",
    "prompts matching lifecycle embedding single_flight provenance scope",
    "storage",
    "index examples costs",
    "audits opinions active_model telemetry settings",
    "runtime",
    "ibidem opening cache explanation options pipeline conversations",
    "adapter testing",
    "cli openai langchain_ibidem llama_index_ibidem ibidem_lab",
]
#: What no package of the left side may ever import, whatever its line.
FORBIDDEN = {
    "ibidem": ("ibidem_lab", *ADAPTERS),
    "ibidem_lab": ADAPTERS,
    "langchain_ibidem": ("ibidem_lab", "llama_index_ibidem"),
    "llama_index_ibidem": ("ibidem_lab", "langchain_ibidem"),
}


def test_imports_go_down() -> None:
    """Turn the arrow round, or move what is needed to a lower line."""
    found = sorted(upward(between_components(project_imports())))

    assert not found, "\n".join(["these go up:", *found])


def test_every_component_has_a_line() -> None:
    """Exactly one, and no line names what does not exist."""
    named = [name for line in LAYERS for name in line.split()]

    assert sorted(named) == sorted({_short(one) for one in between_components(project_imports())})


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_does_not_know_its_users(package: str) -> None:
    """The core stands alone, the lab and the adapters on the core, and the adapters not on each other."""
    found = forbidden(project_imports(), package)

    assert not found, "\n".join(found)


def test_the_checks_of_imports_find_them() -> None:
    """The checks themselves can fail."""
    graph = {
        "ibidem.storage": frozenset({"ibidem.types", "ibidem.cache"}),
        "ibidem.cache": frozenset({"ibidem_lab.models", "ibidem.pipeline"}),
        "ibidem_lab.fit": frozenset({"ibidem.cache"}),
    }

    assert upward(graph) == {"storage -> cache", "cache -> ibidem_lab"}
    assert forbidden(graph, "ibidem") == ["ibidem.cache -> ibidem_lab.models"]
    assert forbidden(graph, "ibidem_lab") == []


def upward(graph: Graph) -> set[str]:
    """The imports of a higher line than one's own."""
    line_of = {name: number for number, line in enumerate(LAYERS) for name in line.split()}
    return {
        f"{_short(one)} -> {_short(other)}"
        for one, others in graph.items()
        for other in others
        if line_of.get(_short(other), 0) > line_of.get(_short(one), 0)
    }


def forbidden(graph: Graph, package: str) -> list[str]:
    """The imports of a package that `FORBIDDEN` names."""
    return [
        f"{module} -> {imported}"
        for module, others in graph.items()
        for imported in sorted(others)
        if _package(module) == package and _package(imported) in FORBIDDEN[package]
    ]


def _package(module: str) -> str:
    return module.partition(".")[0]


def _short(component: str) -> str:
    return "ibidem_lab" if _package(component) == "ibidem_lab" else component.removeprefix("ibidem.")
