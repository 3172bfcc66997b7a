"""The project does not grow: modules and lines of each part, and modules in a package.

The figures are those of today. What moves from the core into the lab raises the lab's figures in the commit
that lowers the core's. `tests/test_architecture.py` holds the length of a module and of a function.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.house.imports import FOLDERS, ROOT, modules_in

SIZES = {
    # With `cache.decide`, verifiers (pair model, cross-encoders), vetted and known answers, wrapped methods.
    # With the backfill of the index by itself, the explanation of lookups, of the log and of programs, and
    # second opinions: how a model is asked and read has moved there from the lab. With corpora, and programs
    # that are looked up before they retrieve. With conversations: their turns, what stands alone, its words,
    # and the turns that were answered. With what the cache was told of documents, and what becomes of them
    # from one retrieval to the next. With the typed options of all front doors, and the requests to a Chroma
    # server and their limits. With the search in PostgreSQL. With the copy of a cache while it is in use.
    # With the answers of other conversations: how two are compared, and how they are found. With what
    # tells that an answer is no example, and its expressions.
    ("ibidem", "modules"): 151,
    ("ibidem", "lines"): 32_290,
    # With `ibidem decide`, the export of models, vetted answers, what-if, what `ibidem learn` trains, and
    # training that goes on from the weights that ship. With personal details, and the data card of an export.
    # With what the nearest example says, in the advice on the next step. With the choice of the pairs that
    # `ibidem learn` asks about. With the export of the encoder, which the core did at its first run.
    ("ibidem_lab", "modules"): 91,
    ("ibidem_lab", "lines"): 13_520,
    ("langchain_ibidem", "modules"): 14,  # with whole chains: what they depend on, and what they return
    ("langchain_ibidem", "lines"): 3_580,
    ("llama_index_ibidem", "modules"): 16,  # with the handler that serves, and whole engines
    ("llama_index_ibidem", "lines"): 4_060,  # with the names of the parts of scopes
}
SLACK = 0.01  # a size may exceed its figure by this share
LOOSE = 0.05  # if it falls short by more than this share, the figure is to be lowered
#: Modules in a package, its `__init__` included and its sub-packages not.
MOST_MODULES = 19  # those of `ibidem.storage`, with a table each


@pytest.mark.parametrize(("package", "what"), SIZES)
def test_a_part_does_not_grow(package: str, what: str) -> None:
    """Room for what is new is made by what is merged or deleted."""
    paths = modules_in({package: FOLDERS[package]}).values()
    size = (
        len(paths) if what == "modules" else sum(len(path.read_text("utf-8").splitlines()) for path in paths)
    )
    problem = complaint(size, SIZES[package, what], SLACK)

    assert not problem, problem


def test_no_package_becomes_crowded() -> None:
    """More modules than one can keep in mind are several packages, or should be merged."""
    assert {folder: count for folder, count in modules_by_folder().items() if count > MOST_MODULES} == {}


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (102, "102 is more than 100 allows: merge or delete something"),
        (101, ""),
        (95, ""),
        (94, "94 is well below 100: lower the figure"),
    ],
)
def test_the_check_of_sizes_complains(size: int, said: str) -> None:
    """The check itself can fail, both ways."""
    assert complaint(size, 100, SLACK) == said


def complaint(size: int, figure: int, slack: float) -> str:
    """What is wrong with a size or with the figure that is to hold it; empty if nothing is."""
    if size > figure * (1 + slack):
        return f"{size:,} is more than {figure:,} allows: merge or delete something"
    if size < figure * (1 - LOOSE):
        return f"{size:,} is well below {figure:,}: lower the figure"
    return ""


def modules_by_folder() -> Counter[str]:
    """How many modules each package of the project has."""
    return Counter(path.parent.relative_to(ROOT).as_posix() for path in modules_in(FOLDERS).values())
