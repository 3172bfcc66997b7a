"""`ibidem examples`: the example log, and what would be selected from it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from ibidem.active_model import checked_active_embedder
from ibidem.cli import tables
from ibidem.cli.output import (
    DatabaseOption,
    JsonOption,
    LimitOption,
    NamespaceOption,
    PathOption,
    err,
    existing_store,
    fail,
    out,
    print_json,
    print_list,
    settings_of,
    text_argument,
    text_option,
)
from ibidem.examples.selection import AT_ONCE, Selector, Wanted
from ibidem.settings import Settings
from ibidem.storage.store import Store
from ibidem.types import require_text

_EMBEDDED_HERE = 2_000  # questions without a vector that the command embeds at most, in some seconds

examples_app = typer.Typer(name="examples", help="The example log; without a command, list the newest.")


@examples_app.callback(invoke_without_command=True)
def list_examples(
    context: typer.Context,
    path: PathOption = None,
    database: DatabaseOption = None,
    limit: LimitOption = 20,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the newest examples: questions that a model answered."""
    if context.invoked_subcommand is not None:
        return
    with existing_store(path, database) as store:
        examples = store.examples.recent(limit, namespace)
    print_list(examples, as_json, asdict, tables.examples, "No examples yet.")


@examples_app.command("select")
def select_examples(
    question: Annotated[str, text_argument(help="What is asked.")],
    path: PathOption = None,
    database: DatabaseOption = None,
    k: Annotated[int, typer.Option("-k", min=0, help="How many at most.")] = 4,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=0, help="Tokens that they may have together.")
    ] = None,
    namespace: Annotated[str, text_option("--namespace", help="Whose examples.")] = "",
    good: Annotated[bool, typer.Option("--good", help="Only those that somebody called good.")] = False,
    diversity: Annotated[
        float,
        typer.Option("--diversity", min=0.0, max=1.0, help="0: the nearest; towards 1: different ones."),
    ] = 0.3,
    tag: Annotated[list[str] | None, text_option("--tag", help="Only with this tag; repeatable.")] = None,
    model: Annotated[str | None, text_option("--model", help="Only what this model answered.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the examples that a prompt with this question would get."""
    with existing_store(path, database) as store:
        wanted = Wanted.checked(
            require_text("question", question),
            k,
            max_tokens=max_tokens,
            namespace=namespace,
            min_feedback=True if good else None,
            diversity=diversity,
            tags=tag or (),
            model=model,
            count_tokens=None,
        )
        with err.status("Comparing the examples"):
            found = _selector(store, settings_of(path, database), namespace).select(wanted)
    print_list(found, as_json, asdict, tables.examples, "No examples for this question.")


@examples_app.command("feedback")
def give_feedback(
    example_id: Annotated[
        int, typer.Argument(metavar="ID", min=1, max=2**63 - 1, help="The number of an example, as listed.")
    ],
    good: Annotated[
        bool, typer.Option("--good/--bad", help="A bad one is never selected.", show_default=False)
    ],
    path: PathOption = None,
    database: DatabaseOption = None,
) -> None:
    """Note that an example is good, or bad."""
    with existing_store(path, database) as store:
        if not store.examples.set_feedback(example_id, good):
            fail(f"there is no example {example_id}; `ibidem examples` lists them")
    out.print("Noted.")


@examples_app.command("stats")
def count_examples(
    path: PathOption = None,
    database: DatabaseOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count examples by namespace, model and feedback."""
    with existing_store(path, database) as store:
        stats = store.examples.stats(namespace)
    if as_json:
        print_json({**asdict(stats), "unknown": stats.unknown})
    else:
        out.print(tables.example_stats(stats))


def _selector(store: Store, settings: Settings, namespace: str) -> Selector:
    """Create a selector with the cache's embedder that knows the newest questions."""
    selector = Selector(store.examples, checked_active_embedder(settings, store))
    for _ in range(_EMBEDDED_HERE // AT_ONCE):
        if not selector.embed_some(namespace):
            return selector
    err.print(f"Of examples that were not embedded yet only the newest {_EMBEDDED_HERE:,} are looked at.")
    return selector
