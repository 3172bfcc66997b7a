"""Tables of the command line."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ibidem.audits.ledger import AuditStats
from ibidem.cli.doctor import Finding
from ibidem.cli.formatting import duration, named, percent, saved_money, spent_money
from ibidem.cli.output import styled
from ibidem.costs import Prices, Savings
from ibidem.example import Example
from ibidem.explanation.logged import LoggedLookup
from ibidem.explanation.result import differing
from ibidem.storage.examples import ExampleStats
from ibidem.storage.logs import NO_OPINION, JudgementRow
from ibidem.storage.store import Totals
from ibidem.types import SECOND_OPINION, Entry, read_parts

NOT_KEPT = "(compared exactly; its text is not kept)"
SHORT = 80  # characters shown of the texts of an example
UNPRICED = 5  # models shown of which no price is known
TOP = 20  # namespaces and models shown
_SAID = {True: "good", False: "bad", None: ""}


def figures(counted: Totals, saved: Savings, prices: Prices) -> dict[str, int | str]:
    """Return the counts of a cache and the savings of its hits by name, in the order of display."""
    rate = counted.hit_rate
    rows: dict[str, int | str] = {
        "entries": counted.entries,
        "  compared by meaning": counted.semantic_entries,
        "  waiting for the index": counted.unindexed,
        "lookups": sum(counted.hits.values()) + sum(counted.misses.values()),
        "hit rate": percent(rate),
    }
    rows |= {f"  hit: {tier}": count for tier, count in sorted(counted.hits.items())}
    if counted.second_opinions:
        rows["    after a second opinion"] = counted.second_opinions
    by_count = sorted(counted.misses.items(), key=lambda item: -item[1])
    rows |= {f"  miss: {reason}": count for reason, count in by_count}
    rows["tokens saved"] = saved.tokens
    if saved.hits:
        priced, timed = saved.priced / saved.hits, saved.timed / saved.hits
        rows[f"money saved, known of {percent(priced, 0)} of the hits"] = saved_money(saved, prices)
        without = sorted(saved.unpriced.items(), key=lambda item: -item[1])[:UNPRICED]
        rows |= {f"  unknown: hits of {named(model)}": count for model, count in without}
        rows["prices"] = prices.dated
        rows[f"time saved, known of {percent(timed, 0)} of the hits"] = duration(saved.seconds)
    if saved.opinions:
        rows["second opinions, subtracted"] = saved.opinions
        rows["  tokens of these"] = saved.tokens_spent
        rows["  money"] = spent_money(saved, prices)
    rows["examples"] = counted.examples
    if counted.audits:
        rows["audits (wrong)"] = f"{counted.audits:,} ({counted.audits_wrong:,})"
    return rows


def totals(rows: Mapping[str, int | str], title: str, before: Mapping[str, int | str] | None = None) -> Table:
    """Make a table of figures; with earlier ones of the same cache `before`, also of the changes."""
    table = Table("what", "count", *(() if before is None else ("change",)), title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, value in rows.items():
        cells = [f"{value:,}" if isinstance(value, int) else value]
        if before is not None:
            was = before.get(name, 0)
            grown = value - was if isinstance(value, int) and isinstance(was, int) else 0
            cells.append(f"{grown:+,}" if grown else "")
        table.add_row(name, *cells)
    return table


def entries(found: Iterable[Entry]) -> Table:
    """Make a table of stored answers and their questions; whose they are, if any is in a namespace."""
    shown = list(found)
    tenants = any(one.namespace for one in shown)
    names = ("id", "age", "hits", "docs", "model", *(["namespace"] if tenants else []), "question")
    table = Table(*names, box=SIMPLE_HEAD, pad_edge=False)
    table.columns[-1].overflow = "fold"
    for one in shown:
        cells = (one.id[:8], _age(one), str(one.hits), str(len(one.sources)), one.answer.model)
        said = [one.question or NOT_KEPT, *([f"answer: {short(one.answer.text)}"] if one.answer.text else [])]
        table.add_row(*cells, *([one.namespace] if tenants else []), "\n".join(said))
    return table


def entry(one: Entry) -> Table:
    """Make a table of all properties of a stored answer."""
    table = Table("", "", show_header=False, box=None)
    table.columns[1].overflow = "fold"
    for name, value in summary(one).items():
        if name != "documents":
            table.add_row(name, str(value))
    for source in one.sources:
        table.add_row("document", f"{source.id} ({'supports' if source.supports else 'retrieved'})")
    table.add_row("answer", one.answer.text)
    return table


def summary(one: Entry) -> dict[str, Any]:
    """Return the properties of a stored answer, without its text."""
    return {
        "id": one.id,
        "question": one.question,
        "namespace": one.namespace,
        "model": one.answer.model,
        "created": _time(one.created),
        "expires": None if one.expires is None else _time(one.expires),
        "hits": one.hits,
        "semantic": one.semantic,
        "pinned": one.pinned or None,
        "tokens": one.answer.tokens,
        "documents": [{"id": s.id, "supports": s.supports} for s in one.sources],
    }


def lookups(found: Iterable[LoggedLookup]) -> Table:
    """Make a table of lookups with their results, and whose they are, if there is a namespace among them.

    What a question was nearest to stands below it.
    """
    found = list(found)
    tenants = any(one.row.namespace for one in found)
    names = ("at", "outcome", "score", "needed", *(["namespace"] if tenants else []), "question")
    table = Table(*names, box=SIMPLE_HEAD, pad_edge=False)
    table.columns[-1].overflow = "fold"
    for column in table.columns[:-1]:
        column.no_wrap = True
    for one in found:
        row, said = one.row, [one.row.question or NOT_KEPT]
        if one.nearest is not None and one.nearest != row.question:
            said.append(f"nearest: {one.nearest}")
        if one.differs:
            said.append(f"new scope: {differing(one.differs)}")
        needed = " (second opinion)" if row.reason == SECOND_OPINION else ""
        outcome = f"hit: {row.tier}{needed}" if row.tier else f"miss: {row.reason}"
        figures = ("" if value is None else f"{value:.3f}" for value in (row.score, row.threshold))
        whose = [row.namespace] if tenants else []
        table.add_row(_minute(row.at), outcome, *figures, *whose, "\n".join(said))
    return table


def lookup_values(one: LoggedLookup) -> dict[str, Any]:
    """Return all that is known of a lookup in JSON values."""
    parts = read_parts(one.row.scope_parts)
    return {**asdict(one.row), "scope_parts": parts, "nearest": one.nearest, "differs": one.differs}


def examples(found: Iterable[Example]) -> Table:
    """Make a table of examples; long texts are cut."""
    columns = ("id", "at", "entry", "model", "tokens", "docs", "said", "question", "answer")
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for one in found:
        known = [n for n in (one.input_tokens, one.output_tokens) if n is not None]
        cells = (
            str(one.id),
            _minute(one.at),
            (one.entry_id or "")[:8],
            f"{one.model}, streamed" if one.streamed else one.model,
            f"{sum(known):,}" if known else "",
            str(len(one.documents)),
            _SAID[one.feedback],
            short(one.question),
            short(one.answer),
        )
        table.add_row(*cells)
    return table


def example_stats(counted: ExampleStats) -> Table:
    """Make a table of the counts of the example log."""
    table = Table("what", "count")
    table.columns[1].justify = "right"
    table.add_row("examples", f"{counted.total:,}")
    for name, count in (("good", counted.good), ("bad", counted.bad), ("unknown", counted.unknown)):
        table.add_row(f"  {name}", f"{count:,}")
    for kind, groups in (("namespace", counted.namespaces), ("model", counted.models)):
        for name, count in sorted(groups.items(), key=lambda item: (-item[1], item[0]))[:TOP]:
            table.add_row(f"  {kind} {name or '(none)'}", f"{count:,}")
    table.add_row("prompt tokens", f"{counted.input_tokens:,}")
    table.add_row("answer tokens", f"{counted.output_tokens:,}")
    return table


def findings(found: Iterable[Finding]) -> Table:
    """Make a table of the findings of the doctor."""
    table = Table("check", "state", "finding")
    for finding in found:
        state = styled("ok", "green") if finding.ok else styled("problem", "red")
        table.add_row(finding.check, state, finding.text)
    return table


def short(text: str) -> str:
    """Return the text in one line, cut after `SHORT` characters."""
    line = " ".join(text.split())
    return line if len(line) <= SHORT else f"{line[: SHORT - 1]}\N{HORIZONTAL ELLIPSIS}"


def _minute(seconds: float) -> str:
    return time.strftime("%m-%d %H:%M", time.localtime(seconds))


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _age(one: Entry) -> str:
    minutes = max(0, int((time.time() - one.created) / 60))
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // 1440} d"


def audit_estimates(found: Iterable[AuditStats], max_error_rate: float) -> Table:
    """Make a table of the share of wrong answers, by namespace."""
    columns = (
        "namespace",
        "audits",
        "wrong",
        "wrong per hit",
        "95 % interval",
        "probes",
        "serves from",
        "alarms",
    )
    table = Table(
        *columns, title=f"Audits of the last 1,500 judgements; budget {percent(max_error_rate)} of the hits"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for one in found:
        known = one.wrong_per_hit is not None
        cells = (
            one.namespace or "-",
            f"{one.audits:,}",
            f"{one.wrong:,}",
            percent(one.wrong_per_hit),
            f"{percent(one.interval[0])} to {percent(one.interval[1])}" if known else "-",
            f"{one.probes:,}",
            "nothing yet" if one.threshold is None else f"score {one.threshold:.3f}",
            f"{one.alarms:,}",
        )
        table.add_row(*cells)
    return table


def audit_judgements(rows: Iterable[JudgementRow]) -> Table:
    """Make a table of comparisons with their judgements."""
    table = Table("at", "from", "score", "answer", "asked", "stored", box=SIMPLE_HEAD, pad_edge=False)
    table.columns[0].no_wrap = True
    for row in rows:
        at = time.strftime("%m-%d %H:%M", time.localtime(row.at))
        said = "" if row.source == NO_OPINION else "right" if row.right else "wrong"
        cells = (at, row.source, f"{row.score:.3f}", said)
        table.add_row(*cells, short(row.asked), short(row.stored))
    return table
