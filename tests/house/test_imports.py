"""The import graph: what counts as an import, and what a circle is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house.imports import (
    between_components,
    circles,
    component_of,
    project_imports,
    read_imports,
    shortest_way,
)


def package(folder: Path, **sources: str) -> dict[str, Path]:
    """Write a package `shop` with a sub-package `shop.till`."""
    for name, source in {"__init__": "", "till/__init__": "", **sources}.items():
        path = folder / "shop" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, "utf-8")
    return {"shop": folder}


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("import shop.goods", {"shop.goods"}),
        ("import shop", {"shop"}),
        ("from shop import goods", {"shop.goods"}),
        ("from shop import VERSION", {"shop"}),
        ("from shop.goods import price", {"shop.goods"}),
        ("from shop import goods, VERSION", {"shop.goods", "shop"}),
        ("from shop import *", {"shop"}),
        ("from shop.till import drawer", {"shop.till.drawer"}),
        ("from . import goods", {"shop.goods"}),
        ("from . import VERSION", {"shop"}),
        ("from .goods import price", {"shop.goods"}),
        ("from .till.drawer import coins", {"shop.till.drawer"}),
        ("def pay():\n    from shop.goods import price", {"shop.goods"}),
        ("if TYPE_CHECKING:\n    from shop.goods import Price", {"shop.goods"}),
        ("try:\n    import shop.goods\nexcept ImportError:\n    pass", {"shop.goods"}),
        ("import os, shopping.list", set()),
        ("from shop.desk import me", set()),
    ],
)
def test_what_counts_as_an_import(tmp_path: Path, source: str, imported: set[str]) -> None:
    """Every statement counts; a name that is no module stands for the module that defines it."""
    folders = package(tmp_path, desk=source, goods="", **{"till/drawer": ""})

    assert read_imports(folders)["shop.desk"] == imported


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("from . import coins", {"shop.till.coins"}),
        ("from .. import goods", {"shop.goods"}),
        ("from ..goods import price", {"shop.goods"}),
        ("from .. import VERSION", {"shop"}),
    ],
)
def test_relative_imports_of_a_sub_package(tmp_path: Path, source: str, imported: set[str]) -> None:
    """The dots mean the same in a module and in the `__init__` beside it."""
    folders = package(
        tmp_path, goods="", **{"till/__init__": source, "till/drawer": source, "till/coins": ""}
    )
    graph = read_imports(folders)

    assert graph["shop.till"] == graph["shop.till.drawer"] == imported


def test_an_import_of_a_module_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    """Otherwise a typing error would hide an arrow."""
    with pytest.raises(LookupError, match=r"shop imports shop\.godos"):
        read_imports(package(tmp_path, __init__="from shop.godos import price"))


def test_circles_are_found() -> None:
    """Also two that one arrow joins; what is only reached from a circle is not in it."""
    graph = {
        "a": frozenset("b"),
        "b": frozenset("cx"),
        "c": frozenset("a"),
        "x": frozenset("y"),
        "y": frozenset("xz"),
        "z": frozenset(""),
    }

    assert circles(graph) == {frozenset("abc"), frozenset("xy")}
    assert shortest_way(graph, "b", {"b"}) == ["b", "c", "a", "b"]
    assert shortest_way(graph, "a", {"y", "z"}) == ["a", "b", "x", "y"]
    assert shortest_way(graph, "z", {"z"}) == []


@pytest.mark.parametrize(
    ("module", "component"),
    [
        ("ibidem", "ibidem"),
        ("ibidem.cache", "ibidem.cache"),
        ("ibidem.storage", "ibidem.storage"),
        ("ibidem.storage.tables", "ibidem.storage"),
        ("ibidem_lab.models.network", "ibidem_lab.models"),
        ("langchain_ibidem", "langchain_ibidem"),
        ("langchain_ibidem.cache", "langchain_ibidem"),
    ],
)
def test_components(module: str, component: str) -> None:
    """Sub-packages, modules at the top level, adapters."""
    assert component_of(module) == component


def test_arrows_within_a_component_do_not_count() -> None:
    """Only those from one to another."""
    graph = {
        "ibidem.storage.tables": frozenset({"ibidem.storage.engines", "ibidem.entry"}),
        "ibidem.storage.engines": frozenset({"ibidem.errors"}),
        "ibidem.entry": frozenset({"ibidem.storage.tables"}),
        "ibidem.errors": frozenset(),
    }

    assert between_components(graph) == {
        "ibidem.storage": {"ibidem.entry", "ibidem.errors"},
        "ibidem.entry": {"ibidem.storage"},
        "ibidem.errors": set(),
    }


def test_the_project_is_read() -> None:
    """All four packages, and the modules that each of them has."""
    graph = project_imports()

    assert {module.partition(".")[0] for module in graph} == {
        "ibidem", "ibidem_lab", "langchain_ibidem", "llama_index_ibidem",
    }  # fmt: skip
    assert "ibidem.errors" in graph["ibidem"]
