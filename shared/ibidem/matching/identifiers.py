"""Compare names of letters and digits: order numbers, parts, models, versions, plates, hex ids. Pure.

A text is split into runs of letters and runs of digits. An identifier is the same in other case, and split
otherwise ("H1B", "h-1b", "H 1B"): where the other question has the same runs beside each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from ibidem._util import words_en

MAX_COMPARED = 100  # identifiers that are searched in other spellings; a list of more must be the same

_RUN = re.compile(r"[^\W\d_]+|\d+")
_MIXED = re.compile(r"[^\W\d_]\d|\d[^\W\d_]")
_HEX_LETTERS = re.compile(r"[a-fA-F]{8,}")
_AROUND = "?.,;:!()[]\"'`“”‘’"


@dataclass(frozen=True, slots=True)
class Identifiers:
    """The identifiers of a question.

    Attributes:
        solid: Those with letters and digits in one word ("3f2a9c"), as runs with a blank around each.
        joined: Those of words joined by signs ("INV-001-A", "18-year-old"), likewise.
        beside: Words of capitals beside a number ("AB 12").
        cased: Those of capitals and small letters, as written.
        flat: All runs of the question.
        runs: The same as a set.
        linked: Whether a list is asked about, in which the order says nothing.
    """

    solid: tuple[str, ...]
    joined: tuple[str, ...]
    beside: frozenset[str]
    cased: Mapping[str, str]
    flat: str
    runs: frozenset[str]
    linked: bool


def identifiers(text: str) -> Identifiers:
    """Find the identifiers of a text without invisible characters; a few tens of microseconds."""
    pieces = [_bare(piece) for piece in text.split()]
    runs = [_runs(piece) for piece in pieces]
    solid: list[str] = []
    joined: list[str] = []
    for piece, parts in zip(pieces, runs, strict=True):
        if _is_solid(piece):
            (joined if _is_quantity(parts) else solid).append(_flat(parts))
        elif len(parts) > 1 and any(part.isdecimal() for part in parts) and not "".join(parts).isdecimal():
            joined.append(_flat(parts))
    flat = [part for parts in runs for part in parts]
    known = frozenset(flat)
    return Identifiers(
        solid=tuple(solid),
        joined=tuple(joined),
        beside=frozenset() if text.isupper() else _capitals_beside_numbers(pieces),
        cased={p.casefold(): p for p in pieces if _MIXED.search(p) and p not in (p.lower(), p.upper())},
        flat=_flat(flat),
        runs=known,
        linked=not known.isdisjoint(words_en.LINKS) and known.isdisjoint(words_en.LEADS),
    )


def _bare(piece: str) -> str:
    piece = piece.strip(_AROUND)
    return piece[:-2] if piece.endswith(("'s", "’s")) else piece


def _is_solid(piece: str) -> bool:
    return _MIXED.search(piece) is not None or _HEX_LETTERS.fullmatch(piece) is not None


def _runs(piece: str) -> list[str]:
    """Split a piece into runs in one spelling, without "th" or a plural's "s" after a number."""
    found = _RUN.findall(piece.casefold())
    if len(found) == 2 and found[0].isdecimal() and found[1] in ("s", "st", "nd", "rd", "th"):
        return found[:1]
    if len(found) > 1 and found[-1] == "s" and found[-2].isdecimal():
        found = found[:-1]
    return [_run(run) for run in found]


@lru_cache(maxsize=16384)
def _run(run: str) -> str:
    if run in words_en.NUMBER_WORDS:
        return words_en.NUMBER_WORDS[run]
    if run in words_en.UNITS:
        return words_en.UNITS[run]
    return run[:-1] if len(run) > 3 and run.endswith("s") and not run.endswith("ss") else run


def _is_quantity(parts: list[str]) -> bool:
    """Return whether it is a number with a unit, or a version: "5kg" is "5 kilograms", "v16" also "16"."""
    if len(parts) < 2 or (parts[0].isdecimal() and parts[-1] in words_en.UNIT_SYMBOLS):
        return True
    return parts[0] == "v" and all(map(str.isdecimal, parts[1:]))


def _capitals_beside_numbers(pieces: list[str]) -> frozenset[str]:
    capitals = [at for at, piece in enumerate(pieces) if piece.isupper() and piece.isalpha()]
    if not capitals:
        return frozenset()
    numbered = [False, *(any(c.isdecimal() for c in piece) for piece in pieces), False]
    return frozenset(
        _run(pieces[at].casefold())
        for at in capitals
        if (numbered[at] or numbered[at + 2]) and pieces[at] not in ("A", "I")
    )


def _flat(parts: list[str]) -> str:
    return f" {'  '.join(parts)} "


def differ(one: Identifiers, other: Identifiers) -> bool:
    """Find an identifier of one side only, or the same ones in another order outside a list."""
    if not (one.solid or other.solid or one.joined or other.joined or one.beside or other.beside):
        return False
    if max(len(one.solid) + len(one.joined), len(other.solid) + len(other.joined)) > MAX_COMPARED:
        return (one.solid, one.joined) != (other.solid, other.joined)
    if _any_missing(one.solid, other) or _any_missing(other.solid, one):
        return True
    if any(other.cased.get(name, written) != written for name, written in one.cased.items()):
        return True
    if one.beside - other.runs and other.beside - one.runs:
        return True
    ours = [found for found in one.joined if found not in other.flat]
    theirs = [found for found in other.joined if found not in one.flat]
    if (ours and theirs) or _any_extends(ours, other) or _any_extends(theirs, one):
        return True
    moved = one.solid != other.solid and sorted(one.solid) == sorted(other.solid)
    return moved and not (one.linked and other.linked)


def _any_missing(found: tuple[str, ...], other: Identifiers) -> bool:
    return any(one not in other.flat and not _abbreviates(one.split(), other) for one in found)


def _any_extends(found: list[str], other: Identifiers) -> bool:
    """Return whether one has an identifier of the other as a part: "gpt-4-turbo", "gpt-4"."""
    return any(part in one for one in found for part in (*other.joined, *other.solid))


def _abbreviates(parts: list[str], other: Identifiers) -> bool:
    """Return whether letters and a number abbreviate words beside the same number: "PS5", "WW2", "Q3"."""
    if len(parts) != 2 or parts[0].isdecimal() == parts[1].isdecimal():
        return False
    letters, number = sorted(parts, key=str.isdecimal)
    runs = other.flat.split()
    for at, run in enumerate(runs):
        if run == number:
            before = runs[max(0, at - len(letters)) : at]
            if "".join(word[0] for word in before) == letters:
                return True
            if any(_is_short_for(letters, word) for word in (*before[-1:], *runs[at + 1 : at + 2])):
                return True
    return False


def _is_short_for(letters: str, word: str) -> bool:
    rest = iter(word)
    return word[0] == letters[0] and len(word) > len(letters) + 1 and all(c in rest for c in letters)
