"""Our own texts on which nothing is trained: `python -m tests.lab.reserved_texts` writes the list anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ibidem_lab.models.reserved import write_own

ROOT = Path(__file__).parents[2]
FILES = (
    "tests/benchmarks/suites/must_hit.json",
    "tests/benchmarks/suites/must_miss.json",
    "examples/questions_python.json",
    "examples/questions_hard.json",
)


def own_texts() -> Iterator[str]:
    """The questions of the suites and of the demo."""
    for file in FILES:
        yield from _questions(json.loads((ROOT / file).read_text(encoding="utf-8")))


def _questions(held: object) -> Iterator[str]:
    if isinstance(held, str):
        if " " in held:  # a question, not the name of a kind
            yield held
    elif isinstance(held, list):
        for one in held:
            yield from _questions(one)
    elif isinstance(held, dict):
        for one in held.values():
            yield from _questions(one)


if __name__ == "__main__":
    write_own(own_texts())
