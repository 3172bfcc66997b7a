"""`ibidem audit`: how often stored answers would have been wrong, by namespace, and the last judgements."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ibidem.audits.auditor import ASSUMED_RATE, report_of
from ibidem.cli.tables import short
from ibidem.settings import Settings
from ibidem.stats import AuditStats
from ibidem.storage.logs import JudgementRow
from ibidem.storage.store import Store


def report(store: Store, settings: Settings, namespace: str | None) -> tuple[AuditStats, ...]:
    """The estimates of the namespaces judged last, or of one of them, as a cache opened now will see them."""
    rate = settings.audit_rate or ASSUMED_RATE
    return report_of(store, settings.max_error_rate, rate, namespace)


def estimates(found: Iterable[AuditStats], max_error_rate: float) -> Table:
    """Wrong answers per hit by meaning, a line for each namespace."""
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
        *columns, title=f"Audits of the last 1,500 judgements; budget {max_error_rate:.1%} of the hits"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for one in found:
        known = one.wrong_per_hit is not None
        cells = (
            one.namespace or "-",
            f"{one.audits:,}",
            f"{one.wrong:,}",
            f"{one.wrong_per_hit:.1%}" if known else "-",
            f"{one.interval[0]:.1%} to {one.interval[1]:.1%}" if known else "-",
            f"{one.probes:,}",
            "nothing yet" if one.threshold is None else f"score {one.threshold:.3f}",
            f"{one.alarms:,}",
        )
        table.add_row(*cells)
    return table


def judgements(rows: Iterable[JudgementRow]) -> Table:
    """What was compared, and what the judge said, a line each."""
    table = Table("at", "from", "score", "answer", "asked", "stored", box=SIMPLE_HEAD, pad_edge=False)
    table.columns[0].no_wrap = True
    for row in rows:
        at = time.strftime("%m-%d %H:%M", time.localtime(row.at))
        cells = (at, row.source, f"{row.score:.3f}", "right" if row.right else "wrong")
        table.add_row(*cells, short(row.asked), short(row.stored))
    return table
