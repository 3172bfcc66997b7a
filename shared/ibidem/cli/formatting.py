"""Formats of figures and stored texts for people."""

from __future__ import annotations

import re
import time

from ibidem.costs import Prices, Savings

_GAP = "\N{NO-BREAK SPACE}"
LONGEST = 160  # characters shown of a stored text
# Control characters, surrogates, and characters that change the direction of the text behind them.
_HARMFUL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def shown(text: str, longest: int = LONGEST) -> str:
    """Return a stored text in one line, cut, without control characters. Not escaped."""
    line = _HARMFUL.sub("\N{REPLACEMENT CHARACTER}", " ".join(text[: 4 * longest].split()))
    return line if len(line) <= longest else f"{line[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def named(name: str) -> str:
    """Format the name of a namespace or model, which may be blank."""
    return shown(name, 60) if name.strip() else "(no name)"


def share(part: int, whole: int) -> str:
    """Format a part of a whole in per cent."""
    return percent(part / whole) if whole else "-"


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share in per cent; a dash if unknown."""
    return "-" if value is None else f"{100 * value:.{digits}f}{_GAP}%"


def amount(count: float) -> str:
    """Format a count that may be large."""
    for unit, name in ((1e9, "bn"), (1e6, "M")):
        if count >= unit:
            return f"{count / unit:.3g}{_GAP}{name}"
    return f"{count:,.0f}"


def money(value: float, prices: Prices) -> str:
    """Format an amount of money in the currency of the prices."""
    digits = 0 if abs(value) >= 1_000 else 2 if abs(value) >= 0.1 or value == 0 else 4
    return f"{prices.currency}{_GAP}{value:,.{digits}f}"


def saved_money(saved: Savings, prices: Prices) -> str:
    """Format the savings of hits; a dash if no price is known."""
    return money(saved.money, prices) if saved.priced else "-"


def spent_money(saved: Savings, prices: Prices) -> str:
    """Format what second opinions cost; a dash if no price is known."""
    return "-" if saved.known_spent is None else money(saved.known_spent, prices)


def duration(seconds: float) -> str:
    """Format a duration in a suitable unit."""
    for unit, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if abs(seconds) >= 2 * unit:
            return f"{seconds / unit:.1f}{_GAP}{name}"
    return f"{seconds:.1f}{_GAP}s"


def period(seconds: float) -> str:
    """Format the length of a period of a report."""
    names = {60: "a minute", 600: "ten minutes", 3_600: "an hour", 6 * 3_600: "six hours", 86_400: "a day"}
    return names.get(int(seconds), f"{seconds / 86_400:.0f} days")


def size(count: int) -> str:
    """Format a number of bytes in a suitable unit."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if count >= unit:
            return f"{count / unit:.1f}{_GAP}{name}"
    return f"{count} bytes"


def moment(at: float, form: str = "%Y-%m-%d %H:%M") -> str:
    """Format a time in UTC."""
    return time.strftime(form, time.gmtime(at))


def plural(count: int, one: str, many: str | None = None) -> str:
    """Format a count with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
