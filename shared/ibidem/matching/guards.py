"""Guards: wording that embeddings overlook and that changes the answer.

A guard sees two questions whose embeddings are near and says whether the difference forbids one answer for
both. `tests/benchmarks/decisions.py` counts what each refuses rightly and wrongly.
"""

from __future__ import annotations

from collections.abc import Callable

from ibidem.matching import identifiers
from ibidem.matching.affixes import contrary_by_affix
from ibidem.matching.lexicon import OTHER_IN_CAPITALS
from ibidem.matching.phrasing import (
    Phrasing,
    asks_otherwise,
    quantified_otherwise,
    roles_exchanged,
    take_apart,
)
from ibidem.matching.roles import parts_exchanged
from ibidem.matching.wording import Wording, bare, opposed, read


def hidden(asked: Wording, stored: Wording) -> bool:
    """Something that nobody sees is in one of them: what it says to a model is not known."""
    return asked.hidden or stored.hidden


def identifiers_differ(asked: Wording, stored: Wording) -> bool:
    """Another order number, part, model or version of letters and digits: `ibidem.matching.identifiers`."""
    return identifiers.differ(asked.identifiers, stored.identifiers)


def contrary(asked: Wording, stored: Wording) -> bool:
    """Contrary words; words of which a thing is only one; a word with a contrary beginning or ending."""
    return opposed(asked, stored) or contrary_by_affix(asked, stored)


def numbers_differ(asked: Wording, stored: Wording) -> bool:
    """Other numbers, or the same in another order: "1600 to 2400" is not "2400 to 1600"; other units."""
    if asked.units and stored.units and asked.units != stored.units:
        return True
    return asked.numbers != stored.numbers


def dates_differ(asked: Wording, stored: Wording) -> bool:
    """Another weekday, month or relative date, or one on one side only; this, last, next of one thing."""
    if asked.dates != stored.dates:
        return True
    there = stored.pointed_at
    return any(there.get(noun, which) != which for noun, which in asked.pointed_at.items())


def order_differs(asked: Wording, stored: Wording) -> bool:
    """The same words in another order: "x > y" is not "y > x". For code, and where English is not spoken."""
    return _moved(asked.content, stored.content) or _moved(asked.directed, stored.directed)


def _moved(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return one != other and sorted(one) == sorted(other)


def code_differs(asked: Wording, stored: Wording) -> bool:
    """Other pieces with signs that are no punctuation: "C" is not "C#", "x == y" is not "x != y"."""
    return asked.code != stored.code


def spelling_differs(asked: Wording, stored: Wording) -> bool:
    """The same letters in another spelling, which an uncased model cannot see.

    Accents ("schon", "schön"); capitals ("v", "V"; "it", "IT"), unless only a first letter differs or one of
    the questions is typed without capitals; blanks within quotes.
    """
    if asked.quoted != stored.quoted and _squeezed(asked.quoted) == _squeezed(stored.quoted):
        return True
    twins: dict[str, list[str]] = {}
    for other in stored.spellings - asked.spellings:
        twins.setdefault(bare(other), []).append(other)
    cased = asked.cased and stored.cased
    here = asked.spellings - stored.spellings
    return any(_other_spelling(one, other, cased) for one in here for other in twins.get(bare(one), ()))


def _squeezed(quoted: tuple[str, ...]) -> list[str]:
    return ["".join(text.casefold().split()) for text in quoted]


def _other_spelling(one: str, other: str, cased: bool) -> bool:
    word = one.casefold()
    if word != other.casefold():
        return True
    if len(one) == 1:
        return word != "i"
    if word in OTHER_IN_CAPITALS and one.isupper() != other.isupper():
        return True
    return cased and one[1:] != other[1:]


BY_WORDING: dict[str, Callable[[Wording, Wording], bool]] = {
    "invisible": hidden,
    "numbers": numbers_differ,
    "dates": dates_differ,
    "identifiers": identifiers_differ,
    "opposites": contrary,
    "spelling": spelling_differs,
    "code": code_differs,
}
BY_PHRASING: dict[str, Callable[[Phrasing, Phrasing], bool]] = {
    "roles": roles_exchanged,
    "asking": asks_otherwise,
    "quantifiers": quantified_otherwise,
}
NAMES = (*BY_WORDING, *BY_PHRASING, "order")


def vetoed_by(asked: str, stored: str) -> str | None:
    """The name of the first guard that forbids serving `stored`'s answer for `asked`, or None."""
    if asked == stored:
        return None
    one, other = read(asked), read(stored)
    found = next((name for name, guard in BY_WORDING.items() if guard(one, other)), None)
    if found is not None:
        return found
    here, there = take_apart(asked), take_apart(stored)
    found = next((name for name, guard in BY_PHRASING.items() if guard(here, there)), None)
    if found is None and parts_exchanged(asked, stored):
        found = "roles"
    if found is None and (one.code or not (here.is_english and there.is_english)):
        found = "order" if order_differs(one, other) else None
    return found
