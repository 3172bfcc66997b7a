"""`ibidem why`: what a question is near to, and what a cache, or a program with one, would do with it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

import ibidem
from ibidem.active_model import active_embedder
from ibidem.adapter.programs import ExplainedRun, explain_run
from ibidem.cli import tables
from ibidem.cli.output import (
    DatabaseOption,
    JsonOption,
    NamespaceOption,
    PathOption,
    err,
    existing_store,
    fail,
    out,
    print_json,
    sentences,
    settings_of,
    styled,
    text_argument,
    text_option,
)
from ibidem.cli.warm import load
from ibidem.embedding.base import fingerprint_of
from ibidem.explanation.logged import LoggedLookup, explain_log
from ibidem.explanation.result import Explanation, Neighbour, meaning_of
from ibidem.matching.shipped import last_fingerprint
from ibidem.settings import Settings
from ibidem.storage.store import Store
from ibidem.types import normalise

LOOKED_THROUGH, SHOWN = 1_000, 3  # lookups of the log, and those of the question among them


def explain(
    question: Annotated[str, text_argument(help="What is asked.")],
    app: Annotated[
        str | None,
        text_option("--app", help="module:name of a program: run it, and explain the requests it makes."),
    ] = None,
    ask: Annotated[
        bool, typer.Option("--ask", help="With --app: let it ask models where nothing is stored, and go on.")
    ] = False,
    path: PathOption = None,
    database: DatabaseOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what came of a question, the stored ones nearest to it, and why each would be repeated or not.

    A program's question is compared within its own scope (system prompt, history, model, ...), and with its
    documents; alone it is compared with those of all scopes. --app runs the program, and explains its
    requests: nothing is stored, and it ends where a model would be asked.
    """
    if app is not None:
        _explain_app(app, question, path, database, namespace, ask=ask, as_json=as_json)
        return
    if ask:
        fail("--ask is for --app")
    with err.status("Comparing with what is stored"):
        with existing_store(path, database) as store:
            _require_its_embedder(settings_of(path, database), store)
            asked = [] if as_json else _asked_lately(store, question, namespace)
        with sentences(), ibidem.open(path, database=database) as cache:
            found = cache.why(question, namespace=namespace)
    if as_json:
        print_json(plainly(found))
        return
    if asked:
        out.print("What came of it when it was asked:")
        out.print(tables.lookups(asked))
    _show(found)


def _explain_app(
    app: str,
    question: str,
    path: Path | None,
    database: str | None,
    namespace: str | None,
    *,
    ask: bool,
    as_json: bool,
) -> None:
    if path is not None or database is not None:
        fail("the program of --app opens its own cache: leave out --path and --database")
    with sentences():
        ran = explain_run(load(app), question, namespace=namespace, ask_models=ask)
    if as_json:
        print_json([{"namespace": one.request.namespace, **plainly(one.explanation)} for one in ran.requests])
        return
    for number, one in enumerate(ran.requests, 1):
        shown = one.explanation.question if one.request.semantic else "(a whole prompt)"
        where = f" in the namespace {one.request.namespace!r}" if one.request.namespace else ""
        out.print(styled(f"{number}. {shown}{where}", "bold"), soft_wrap=True)
        _show(one.explanation)
    out.print(_outcome(ran))


def _outcome(ran: ExplainedRun) -> str:
    misses = sum(not one.explanation for one in ran.requests)
    if not ran.requests:
        return (
            "The program asked no cache. Install it as in production, such as by "
            "langchain_ibidem.install() or llama_index_ibidem.install()."
        )
    if ran.answer is None:
        return (
            "Here a model would be asked. What the program asks after it depends on the answer: "
            "see it with --ask."
        )
    if misses:
        return f"Models were asked after {misses:,} of them; nothing was stored."
    return "No model would be asked."


def _asked_lately(store: Store, question: str, namespace: str | None) -> list[LoggedLookup]:
    """Return the last lookups of this very question, the newest first."""
    rows = store.lookups.recent(LOOKED_THROUGH, namespace)
    same = [row for row in rows if row.question == normalise(question)]
    return explain_log(store, same[:SHOWN])


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


def _show(found: Explanation) -> None:
    """Print the steps; the nearest questions of the scope, or of all, as a table."""
    shown = set(map(str, found.nearest))
    for step in found.steps:
        if step not in shown:
            out.print(step, soft_wrap=True)
    if found.nearest:
        out.print(_table(found.nearest))


def _table(nearest: tuple[Neighbour, ...]) -> Table:
    tenants = any(one.namespace for one in nearest)
    names = ("id", "cosine", "score", "scopes", *(["namespace"] if tenants else []), "outcome", "question")
    table = Table(*names, box=SIMPLE_HEAD, pad_edge=False)
    table.columns[-1].overflow = "fold"
    for one in nearest:
        score = "" if one.score is None else f"{one.score:.4f}"
        cells = (one.entry_id[:8], f"{one.similarity:.4f}", score, f"{one.scopes:,}")
        whose = [one.namespace] if tenants else []
        table.add_row(*cells, *whose, meaning_of(one), one.question)
    return table
