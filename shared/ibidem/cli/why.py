"""`ibidem why`: what a question is near to, and what a cache would do with it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

import ibidem
from ibidem.active_model import active_embedder
from ibidem.cli.output import (
    DatabaseOption,
    JsonOption,
    NamespaceOption,
    PathOption,
    existing_store,
    fail,
    out,
    print_json,
    sentences,
    settings_of,
    text_argument,
)
from ibidem.embedding.base import fingerprint_of
from ibidem.explanation import Explanation, Neighbour, meaning_of
from ibidem.matching.shipped import last_fingerprint
from ibidem.settings import Settings
from ibidem.storage.store import Store


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
    with existing_store(path, database) as store:
        _require_its_embedder(settings_of(path, database), store)
    with sentences(), ibidem.open(path, database=database) as cache:
        found = cache.why(question, namespace=namespace)
    if as_json:
        print_json(plainly(found))
        return
    for step in found.steps[: len(found.steps) - len(found.nearest)]:
        out.print(step, soft_wrap=True)
    if found.nearest:
        out.print(_table(found.nearest))


def _require_its_embedder(settings: Settings, store: Store) -> None:
    """Exit if the questions were embedded by another: opening the cache would embed all of them anew."""
    known, mine = store.embedders.registered(), fingerprint_of(active_embedder(settings, store))
    if known and mine not in known:
        fail(
            f"the questions of this cache were embedded by {last_fingerprint(store)}, not by {mine}: name "
            "that embedder in IBIDEM_EMBEDDER, or call cache.why in the program"
        )


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
