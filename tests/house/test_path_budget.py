"""How many files of the project a question goes through, from the program's call until it has its answer.

Whoever wants to understand one hit has to read them all. A way that has become shorter gets a lower budget;
then `python -m tests.house.paths` records the files anew.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from ibidem import Request
from ibidem.cache import SemanticCache
from tests.house.paths import RECORD, Entered, entered
from tests.test_docs import ROOT

SLACK = 2
BUDGETS = {
    "core: exact hit": 9 + SLACK,
    # What other processes stored is followed in the lookup; scores and rules are two modules.
    # Which documents allow an answer, and which support it, are modules of their own.
    "core: hit by meaning": 19 + SLACK,  # target: 16
    "core: store": 21 + SLACK,
    "core: invalidate": 12 + SLACK,  # target: 8; it tells of documents, and looks whether the cache moved
    # Each request may be one of a conversation, which is a module of its own, and a hit by meaning is
    # remembered as one of its turns.
    "LangChain: exact hit": 20 + SLACK,  # target: 17
    "LangChain: hit by meaning": 32 + SLACK,  # target: 25
    "LangChain: miss until stored": 34 + SLACK,
    "LangChain: stream hit": 37 + SLACK,  # target: 27; what wraps methods is a module of its own
    "LlamaIndex: hit by meaning": 39 + SLACK,  # a model is led by a handler or a `CachedLLM`
    "LlamaIndex: miss until stored": 39 + SLACK,
}
FOLLOW = (
    "import json; from tests.house import paths; "
    "print(json.dumps(paths.of_core() | paths.of_langchain() | paths.of_llama_index()))"
)


@functools.cache
def ways() -> dict[str, Entered]:
    """All ways, followed in a process of their own: what other tests have left would be on them."""
    done = subprocess.run(
        [sys.executable, "-c", FOLLOW], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Entered] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("way", BUDGETS)
def test_a_way_stays_within_its_budget(way: str) -> None:
    """Nor is the budget much more than it takes: what has been gained is not lost again."""
    problem = complaint(ways()[way], BUDGETS[way], recorded(way))

    assert not problem, problem


def test_every_way_has_a_budget() -> None:
    """One that is followed and not held would only cost time."""
    assert set(ways()) == set(BUDGETS)


def test_files_are_found(cache: SemanticCache) -> None:
    """Those that the calling thread enters, each with the one that it was first entered from."""
    request = Request("what is the state")

    def look_up() -> str:
        return cache.lookup(request).reason

    with ThreadPoolExecutor(1) as pool:
        here = entered(cache, look_up, "empty")
        elsewhere = entered(cache, lambda: pool.submit(look_up).result(), "empty")

    assert next(iter(here.items())) == ("ibidem/cache.py", "test_path_budget.py")
    assert "ibidem/cache.py" in here.values()
    assert elsewhere == {}


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (10, ""),
        (6, ""),
        (5, "5 files, well below the budget of 10: lower it"),
        (11, "11 files, more than the budget of 10; these are new:\n  file 9.py, entered from file 8.py\n"),
    ],
)
def test_the_check_of_budgets_complains(count: int, said: str) -> None:
    """The check itself can fail, both ways."""
    files = {f"file {number}.py": f"file {number - 1}.py" for number in range(count)}
    told = complaint(files, 10, {f"file {number}.py" for number in range(9)})

    assert told.startswith(said) if said else told == ""


def test_without_anything_new_all_files_are_shown() -> None:
    """The record may be older than the budget."""
    told = complaint({"a.py": "b.py"}, 0, {"a.py"})

    assert told.endswith("none is new, these are all:\n  a.py, entered from b.py")


def complaint(files: Entered, budget: int, known: set[str]) -> str:
    """What is wrong with the files that a way enters or with its budget; empty if nothing is."""
    if len(files) > budget:
        new = {file: caller for file, caller in files.items() if file not in known}
        shown = [f"  {file}, entered from {caller}" for file, caller in (new or files).items()]
        title = "these are new:" if new else "none is new, these are all:"
        return "\n".join([f"{len(files)} files, more than the budget of {budget}; {title}", *shown])
    if len(files) < budget - 2 * SLACK:
        return f"{len(files)} files, well below the budget of {budget}: lower it"
    return ""


def recorded(way: str) -> set[str]:
    """The files that the way entered when its budget was set."""
    return set(json.loads(RECORD.read_text("utf-8")).get(way, ()))
