"""What a question says that an embedding overlooks: numbers, dates, negations, order, signs. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from ibidem._util.text import has_hidden, normalize, strip_invisible
from ibidem.matching import lexicon
from ibidem.matching.identifiers import Identifiers, identifiers
from ibidem.matching.lexicon import COMMON_WORDS
from ibidem.matching.phrasing import root

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+")
_SPELT = re.compile(
    r"(?<!\d)(?<![^\W\d_])[^\W\d_]++(?:['’][^\W\d_]++)*+(?!\d)|\d+"
)  # no letters of identifiers
_NUMBER = re.compile(r"(?:(?<![\w.])[-−])?\d+(?:[.,:/]\d+)*(?:e[+-]?\d+)?")
_RELATIVE_DATE = re.compile(
    r"\b(?:this|last|next|previous|coming|past)\s+(?:day|night|week|month|quarter|year|decade|century)\b"
)
_MAY = re.compile(r"\b(?:in|of|since|by|until|last|next|early|late)\s+may\b|\bmay\s+\d")
_HALF_OF_DAY = re.compile(r"\d\s*([ap])\.?m\b")
# Parts of a word: "non-refundable", "check-in".
_APART = re.compile(
    r"(?<![\w-])([a-z]{2,7})-(?=[a-z]{3})|(?<=[a-z]{3})(-)(?=(?:in|out|on|off|up|down|less)\b)"
)
_QUOTED = re.compile(r"`([^`]*)`|\"([^\"]*)\"|(?<!\w)'([^']*)'")
# Characters of code, money and mathematics, and joiners, besides those that Unicode calls signs.
_SIGNS = frozenset("/\\^_*%&#@{}[]|~\u200c\u200d")
_SIGN_CATEGORIES = frozenset(("Sm", "Sc", "So", "No", "Mn"))
# An amount of money, a share or a plain number is a number with a unit, not code.
_AMOUNT = re.compile(r"([$\u20ac\u00a3])?(\d[\d.,]*)(k|m)?([$\u20ac\u00a3%])?")
_AROUND = "?.,;:!()\"'`“”‘’"


@dataclass(frozen=True, slots=True)
class Wording:
    """The tell-tale parts of one question.

    `content` its words and numbers without the common ones, in order; `directed` the same with words of
    direction, persons and negations; `spellings` the words as written, `cased` whether there are capitals;
    `numbers` in order, as digits ("1,600", "1600" and number words alike); `identifiers` of letters, digits;
    `units` of measure; `dates`
    weekdays, months, seasons, "today", "last year"; `pointed_at` what is called this, last or next;
    `negations` how many; `code` the pieces that hold other
    signs than punctuation ("C#", "!=", "-v"), as written and in order; `quoted` what stands in quotes;
    `words` all of them, lower-case, without "'s"; `roots` theirs, without the hyphen of a prefix
    ("nonrefundable"), and `denials` the negations among these; `listed` those of `lexicon.OPPOSITES` and
    `EXCLUSIVE`, `sides` the lines they stand in and their sides there;
    `hidden` whether it holds characters that nobody sees (`ibidem._util.text`).
    """

    content: tuple[str, ...]
    directed: tuple[str, ...]
    spellings: frozenset[str]
    cased: bool
    numbers: tuple[str, ...]
    identifiers: Identifiers
    units: frozenset[str]
    dates: frozenset[str]
    pointed_at: Mapping[str, str]
    negations: int
    code: tuple[str, ...]
    quoted: tuple[str, ...]
    words: frozenset[str]
    roots: frozenset[str]
    denials: int
    listed: frozenset[str]
    sides: frozenset[tuple[int, int]]
    hidden: bool


@lru_cache(maxsize=4096)
def read(question: str) -> Wording:
    """Take a question apart; a few tens of microseconds, remembered for the last 4,096 questions."""
    hidden = has_hidden(question)
    question = strip_invisible(question)
    text = _with_plain_amounts(question.lower().replace("’", "'"))
    words = [match.group() for match in _WORD.finditer(text)]
    plain = [word.removesuffix("'s") for word in words]
    whole, sides = _whole(text, words), _sides()
    written = text if question.isupper() else question  # all in capitals, they say nothing
    code = _code(question)
    # In code, a single letter names something.
    content = [_singular(word) for word in words if word not in COMMON_WORDS or (code and len(word) == 1)]
    return Wording(
        content=tuple(content),
        directed=tuple(_directed(words)),
        spellings=frozenset(_SPELT.findall(written)),
        cased=not written.islower() and any(c.isupper() for c in written[1:]),
        numbers=_numbers(text),
        identifiers=identifiers(question),
        units=frozenset(lexicon.UNITS[word] for word in words if word in lexicon.UNITS),
        dates=_dates(text, plain),
        pointed_at=_pointed_at(words),
        negations=sum(map(is_negation, words)),
        code=code,
        quoted=tuple("".join(found) for found in _QUOTED.findall(question)),
        words=frozenset(plain),
        roots=frozenset(map(root, whole)),
        denials=sum(map(is_negation, whole)),
        listed=frozenset(word for word in plain if word in sides),
        sides=frozenset(side for word in plain for side in sides.get(word, ())),
        hidden=hidden,
    )


def _whole(text: str, words: list[str]) -> list[str]:
    """The words without the hyphen of a prefix: "nonrefundable"."""
    return _WORD.findall(_APART.sub(_joined, text)) if "-" in text else words


def _joined(found: re.Match[str]) -> str:
    prefix = found[1] or ""
    known = prefix in lexicon.NEGATIVE_PREFIXES or prefix in lexicon.CONTRARY_PREFIXES
    return prefix if known or found[2] else found[0]


def is_negation(word: str) -> bool:
    """Whether the word denies."""
    return word in lexicon.NEGATIONS or word.endswith("n't")


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _directed(words: list[str]) -> list[str]:
    persons = (lexicon.SAME_PERSON.get(word, word) for word in words)
    return [
        "not" if is_negation(word) else _singular(word)
        for word in persons
        if word not in COMMON_WORDS or word in lexicon.DIRECTIONS or is_negation(word)
    ]


def _dates(text: str, words: list[str]) -> frozenset[str]:
    dates = {lexicon.DATES[word] for word in words if word in lexicon.DATES}
    dates |= {" ".join(found.split()) for found in _RELATIVE_DATE.findall(text)}
    dates |= {half + "m" for half in _HALF_OF_DAY.findall(text)}
    if _MAY.search(text):
        dates.add("may")
    return frozenset(dates)


def _pointed_at(words: list[str]) -> dict[str, str]:
    """What stands behind "this", "last", "next" and the like -> which of these; the last one of a thing."""
    return {
        root(noun): lexicon.POINTING[word]
        for word, noun in pairwise(words)
        if word in lexicon.POINTING and noun not in COMMON_WORDS and noun not in lexicon.POINTING
    }


def _numbers(text: str) -> tuple[str, ...]:
    found = [(match.start(), _plain(match.group())) for match in _NUMBER.finditer(text)]
    spoken = [(match.start(), match.group()) for match in _WORD.finditer(text)]
    found += [(at, lexicon.NUMBER_WORDS[word]) for at, word in spoken if word in lexicon.NUMBER_WORDS]
    if found:  # beside other numbers, "one" is a number too
        found += [(at, "1") for at, word in spoken if word == "one"]
    return tuple(value for _, value in sorted(found))


def _plain(number: str) -> str:
    """One spelling for one number: sign, thousands separators. "3.1" and "3.10" are two versions."""
    number = number.replace("−", "-")
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", number):
        number = number.replace(",", "")
    return number


def _with_plain_amounts(text: str) -> str:
    """The text with amounts as words: "$250k" as "250000 dollars", "5%" as "5 percent"."""
    return " ".join(_plain_amount(piece) for piece in text.split())


def _plain_amount(piece: str) -> str:
    if piece.isalpha():
        return piece
    bare = piece.strip(_AROUND)
    found = _AMOUNT.fullmatch(bare)
    if not found or not any(found.group(1, 3, 4)):
        return piece
    number = _plain(found[2].rstrip(".,"))
    if found[3] and number.replace(".", "", 1).isdigit():
        number = f"{float(number) * {'k': 1e3, 'm': 1e6}[found[3]]:.10g}"
    units = (lexicon.SIGNS[sign] for sign in found.group(1, 4) if sign)
    return piece.replace(bare, " ".join((number, *units)))


def _code(question: str) -> tuple[str, ...]:
    pieces = (piece.strip(_AROUND) or piece for piece in question.split())
    return tuple(piece for piece in pieces if _holds_sign(piece) and not _AMOUNT.fullmatch(piece.lower()))


def _holds_sign(piece: str) -> bool:
    if piece.isascii() and piece.isalnum():
        return False
    if re.match(r"--?[A-Za-z]", piece) or "!=" in piece:
        return True
    if not _SIGNS.isdisjoint(piece):
        return True
    return any(unicodedata.category(c) in _SIGN_CATEGORIES for c in piece) and not _is_accent(piece)


def _is_accent(piece: str) -> bool:
    """Whether composing removes the marks: then they are accents, not signs."""
    composed = normalize("NFC", piece)
    return composed != piece and not any(unicodedata.combining(c) for c in composed)


@lru_cache(maxsize=16384)
def bare(word: str) -> str:
    """The word without case and accents."""
    decomposed = normalize("NFKD", word.casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


@lru_cache(maxsize=1)
def _sides() -> dict[str, frozenset[tuple[int, int]]]:
    """Each word of `lexicon.OPPOSITES` and `EXCLUSIVE` -> the lines it stands in, and its sides there."""
    sides: dict[str, set[tuple[int, int]]] = {}
    lists = ((lexicon.OPPOSITES, _inflected), (lexicon.EXCLUSIVE, _plural))
    lines = [(line, forms) for lines, forms in lists for line in lines]
    for number, (line, forms) in enumerate(lines):
        for side, words in enumerate(line):
            for word in forms(words):
                sides.setdefault(word, set()).add((number, side))
    return {word: frozenset(found) for word, found in sides.items()}


def _plural(words: str) -> frozenset[str]:
    return frozenset(form for word in words.split() for form in (word, word + "s"))


def _inflected(words: str) -> frozenset[str]:
    """The words with the regular endings of English; made-up forms do no harm."""
    forms: set[str] = set()
    for word in words.split():
        stem = word.removesuffix("e")
        forms |= {word, word + "s", word + "es", word + "d"}
        forms |= {stem + "ed", stem + "ing", word + word[-1] + "ing"}
    return frozenset(forms)


def opposed(one: Wording, other: Wording) -> bool:
    """Whether contrary words are split across the two: one side of a line here only, another there only."""
    here, there = one.sides - other.sides, other.sides - one.sides
    if not {line for line, _ in here}.isdisjoint(line for line, _ in there):
        return True
    # Where both have both sides, the forms differ: "starts before it ended", "ends before it started".
    ours, theirs = _sides_of(one.listed - other.words), _sides_of(other.listed - one.words)
    return any(line == at and side != another for line, side in ours for at, another in theirs)


def _sides_of(words: frozenset[str]) -> set[tuple[int, int]]:
    return {side for word in words for side in _sides()[word] if side[0] < len(lexicon.OPPOSITES)}
