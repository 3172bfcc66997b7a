"""The import graph of the project, read from its source.

Every import statement counts, wherever it stands: at the top of a module, within a function, under
`TYPE_CHECKING`. Not all of them run, but whoever reads the module has to follow them.

What an import statement points at:

* `from ibidem.x import y` is an import of `ibidem.x.y` if that is a module, else of `ibidem.x`.
* So a name that is taken from a package (`from ibidem import __version__`) is an import of its `__init__`,
  which goes by the name of the package.
* `import ibidem.x.y` is an import of `ibidem.x.y` alone. Python runs the `__init__` of `ibidem` and of
  `ibidem.x` on the way, but nothing is taken from them. If that counted, every module would be in a circle
  with each package that re-exports something of it.
* Modules named in strings (`importlib.import_module`) are not followed, nor are other projects.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: The packages of the project, and the folders that hold them.
FOLDERS = {
    "ibidem": ROOT / "shared",
    "ibidem_lab": ROOT / "shared",
    "langchain_ibidem": ROOT / "integrations" / "langchain-ibidem",
    "llama_index_ibidem": ROOT / "integrations" / "llama-index-ibidem",
}
ADAPTERS = ("langchain_ibidem", "llama_index_ibidem")

Graph = Mapping[str, frozenset[str]]  # what each module or component imports; never itself


def modules_in(folders: Mapping[str, Path]) -> dict[str, Path]:
    """The modules of the packages by their dotted names."""
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"): path
        for package, folder in folders.items()
        for path in sorted((folder / package).rglob("*.py"))
    }


def read_imports(folders: Mapping[str, Path]) -> Graph:
    """Read which modules of the packages each of their modules imports.

    Raises:
        LookupError: A module imports one that does not exist.
    """
    modules = modules_in(folders)
    graph = {}
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found = set()
        for wanted, fallback in _statements(ast.parse(path.read_text("utf-8")), package):
            if wanted.partition(".")[0] not in folders:
                continue
            target = wanted if wanted in modules else fallback
            if target not in modules:
                raise LookupError(f"{name} imports {target}, which does not exist")
            found.add(target)
        graph[name] = frozenset(found - {name})
    return graph


@cache
def project_imports() -> Graph:
    """The import graph of this project, module by module."""
    return read_imports(FOLDERS)


def component_of(module: str) -> str:
    """The unit in which directions are stated: `ibidem.storage`, `ibidem.cache`, `langchain_ibidem`.

    A sub-package of the core or the lab is one component, and so is each module at their top level: taken
    together, the top level would be in a circle with everything. An adapter is one component.
    """
    package, *rest = module.split(".")
    return package if package in ADAPTERS else ".".join([package, *rest[:1]])


def between_components(graph: Graph) -> Graph:
    """The same graph with each component as one node."""
    found: dict[str, set[str]] = {}
    for module, imported in graph.items():
        component = component_of(module)
        found.setdefault(component, set()).update(component_of(one) for one in imported)
    return {component: frozenset(others - {component}) for component, others in found.items()}


def circles(graph: Graph) -> set[frozenset[str]]:
    """The groups of nodes in which each one imports all others, directly or through others."""
    reachable = {node: _reachable(graph, node) for node in graph}
    return {
        frozenset(other for other in reachable[node] if node in reachable[other])
        for node in graph
        if node in reachable[node]
    }


def shortest_way(graph: Graph, start: str, goals: Collection[str]) -> list[str]:
    """The nodes on a shortest way of one step or more, `start` first, a goal last; empty if there is none."""
    ways = [[start]]
    seen = set()
    for way in ways:  # grows meanwhile
        for following in sorted(graph[way[-1]]):
            if following in goals:
                return [*way, following]
            if following not in seen:
                seen.add(following)
                ways.append([*way, following])
    return []


def _reachable(graph: Graph, node: str) -> set[str]:
    found: set[str] = set()
    waiting = [node]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting.extend(new)
    return found


def _statements(tree: ast.Module, package: str) -> Iterator[tuple[str, str]]:
    """What each import statement names, and the module that is meant if that is none."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, package)
            yield from ((f"{module}.{alias.name}", module) for alias in node.names)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """The module after `from`. One dot is the package of the importing module; each other, one level up."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    start = parts[: len(parts) - node.level + 1]
    return ".".join([*start, node.module] if node.module else start)
