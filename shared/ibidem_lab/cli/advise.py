"""`ibidem advise`: what would pay next, with the figures it rests on."""

from __future__ import annotations

from dataclasses import asdict

from rich.table import Table

from ibidem.cli.common import (
    DatabaseOption,
    JsonOption,
    NamespaceOption,
    PathOption,
    err,
    existing_store,
    out,
    print_json,
    settings_of,
)
from ibidem.cli.console import styled
from ibidem.cli.tables import short
from ibidem.matching.fitted import policy_in_force
from ibidem_lab.advice.advising import Advised, advise
from ibidem_lab.cli.fit import place_of


def advise_next(
    path: PathOption = None,
    database: DatabaseOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say with figures where few-shot, documents or fine-tuning would pay, and what the cache misses."""
    with existing_store(path, database) as store:
        place = place_of(store, settings_of(path, database))
        policy = policy_in_force(store, place.settings, place.embedder.fingerprint)
        with err.status("Reading the logs"):
            found = advise(store, place.embedder, threshold=policy.threshold, namespace=namespace)
    if as_json:
        print_json(asdict(found))
        return
    rate = f", hit rate {found.hits / found.lookups:.1%}" if found.lookups else ""
    out.print(
        f"Read {found.lookups:,} lookups{rate}, {found.examples:,} examples; compared {found.sampled:,} "
        "lookups by meaning.",
        soft_wrap=True,
    )
    if found.intents:
        out.print(_intents(found))
    for number, one in enumerate(found.advice, 1):
        out.print()
        out.print(styled(f"{number}. {one.title}", "bold"), f"({one.step})", soft_wrap=True)
        for name, value in one.figures.items():
            out.print(f"   {short(name)}: {value}", soft_wrap=True)
        out.print(f"   Do: {one.do}.", soft_wrap=True)
        out.print(f"   Not if {one.unless}.", soft_wrap=True)
    if not found.advice:
        out.print("\nNo advice: nothing in the log speaks for a change.")
    for lack in found.lacking:
        out.print(f"Cannot tell yet ({lack.step}): {lack.text}.", soft_wrap=True)


def _intents(found: Advised) -> Table:
    table = Table("asked most, by meaning", "lookups", "share", "of the tokens", title="")
    for column in table.columns[1:]:
        column.justify = "right"
    for question, count, of_lookups, of_tokens in found.intents:
        cost = f"{of_tokens:.1%}" if of_tokens else "-"
        table.add_row(short(question), f"{count:,}", f"{of_lookups:.1%}", cost)
    return table
