"""`ibidem why`: what a question is near to, and what a cache would do with it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

import ibidem
from ibidem.cli.output import (
    DatabaseOption,
    JsonOption,
    NamespaceOption,
    PathOption,
    out,
    print_json,
    require_cache,
    sentences,
    settings_of,
    text_argument,
)
from ibidem.explanation import Explanation, Neighbour, meaning_of


def explain(
    question: Annotated[str, text_argument(help="What is asked.")],
    path: PathOption = None,
    database: DatabaseOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the stored questions nearest to one, and why each would be repeated for it or not.

    A program's question is compared within its own scope (system prompt, history, model, ...), and with its
    documents; here it is compared with those of all scopes. `cache.why(request)` explains a whole request.
    """
    with sentences():
        settings = settings_of(path, database)
        require_cache(settings)
        with ibidem.open(path, database=database) as cache:
            found = cache.why(question, namespace=namespace)
    if as_json:
        print_json(plainly(found))
        return
    for step in found.steps[: len(found.steps) - len(found.nearest)]:
        out.print(step, soft_wrap=True)
    if found.nearest:
        out.print(_table(found.nearest))


def plainly(found: Explanation) -> dict[str, Any]:
    """Return an explanation in JSON values."""
    told = asdict(found)
    return {**told, "threshold": None if found.threshold == float("inf") else found.threshold}


def _table(nearest: tuple[Neighbour, ...]) -> Table:
    table = Table("id", "cosine", "score", "scopes", "outcome", "question", box=SIMPLE_HEAD, pad_edge=False)
    table.columns[-1].overflow = "fold"
    for one in nearest:
        score = "" if one.score is None else f"{one.score:.4f}"
        cells = (one.entry_id[:8], f"{one.similarity:.4f}", score, f"{one.scopes:,}", meaning_of(one))
        table.add_row(*cells, one.question)
    return table
