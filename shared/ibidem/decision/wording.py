"""What a question says that an embedding overlooks: numbers, dates, negations, order, signs. Pure."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from ibidem.decision import lexicon
from ibidem.decision.lexicon import COMMON_WORDS
from ibidem.normal_form import normalized

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+")
_NUMBER = re.compile(r"(?:(?<![\w.])[-−])?\d+(?:[.,:/]\d+)*(?:e[+-]?\d+)?")
_RELATIVE_DATE = re.compile(
    r"\b(?:this|last|next|previous|coming|past)\s+(?:day|night|week|month|quarter|year|decade|century)\b"
)
_MAY = re.compile(r"\b(?:in|of|since|by|until|last|next|early|late)\s+may\b|\bmay\s+\d")
_HALF_OF_DAY = re.compile(r"\d\s*([ap])\.?m\b")
_QUOTED = re.compile(r"`([^`]*)`|\"([^\"]*)\"|(?<!\w)'([^']*)'")
# Characters of code, money and mathematics, besides those that Unicode calls signs.
_SIGNS = frozenset("/\\^_*%&#@{}[]|~")
_SIGN_CATEGORIES = frozenset(("Sm", "Sc", "So", "No", "Mn"))
# An amount of money, a share or a plain number is a number with a unit, not code.
_AMOUNT = re.compile(r"([$\u20ac\u00a3])?(\d[\d.,]*)(k|m)?([$\u20ac\u00a3%])?")
_AROUND = "?.,;:!()\"'`“”‘’"


@dataclass(frozen=True, slots=True)
class Wording:
    """The tell-tale parts of one question.

    `content` its words and numbers without the common ones, in order; `directed` the same with words of
    direction, persons and negations; `spellings` the words as written, `cased` whether there are capitals;
    `numbers` in order, as digits ("1,600", "1600" and number words alike), `units` of measure; `dates`
    weekdays, months, seasons, "today", "last year"; `negations` how many; `code` the pieces that hold other
    signs than punctuation ("C#", "!=", "-v"), as written and in order; `quoted` what stands in quotes;
    `words` all of them, lower-case.
    """

    content: tuple[str, ...]
    directed: tuple[str, ...]
    spellings: frozenset[str]
    cased: bool
    numbers: tuple[str, ...]
    units: frozenset[str]
    dates: frozenset[str]
    negations: int
    code: tuple[str, ...]
    quoted: tuple[str, ...]
    words: frozenset[str]


@lru_cache(maxsize=4096)
def read(question: str) -> Wording:
    """Take a question apart; a few tens of microseconds, remembered for the last 4,096 questions."""
    question = visible(question)
    text = _with_plain_amounts(question.lower().replace("’", "'"))
    words = [match.group() for match in _WORD.finditer(text)]
    written = text if question.isupper() else question  # all in capitals, they say nothing
    code = _code(question)
    # In code, a single letter names something.
    content = [_singular(word) for word in words if word not in COMMON_WORDS or (code and len(word) == 1)]
    return Wording(
        content=tuple(content),
        directed=tuple(_directed(words)),
        spellings=frozenset(match.group() for match in _WORD.finditer(written)),
        cased=not written.islower() and any(c.isupper() for c in written[1:]),
        numbers=_numbers(text),
        units=frozenset(lexicon.UNITS[word] for word in words if word in lexicon.UNITS),
        dates=_dates(text, words),
        negations=sum(map(_is_negation, words)),
        code=code,
        quoted=tuple("".join(found) for found in _QUOTED.findall(question)),
        words=frozenset(words),
    )


def visible(text: str) -> str:
    """The text without characters that nobody sees (zero-width joiners and such); models skip them too."""
    if text.isascii():
        return text
    return "".join(c for c in text if unicodedata.category(c) != "Cf")


def _is_negation(word: str) -> bool:
    return word in lexicon.NEGATIONS or word.endswith("n't")


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _directed(words: list[str]) -> list[str]:
    persons = (lexicon.SAME_PERSON.get(word, word) for word in words)
    return [
        "not" if _is_negation(word) else _singular(word)
        for word in persons
        if word not in COMMON_WORDS or word in lexicon.DIRECTIONS or _is_negation(word)
    ]


def _dates(text: str, words: list[str]) -> frozenset[str]:
    dates = {lexicon.DATES[word] for word in words if word in lexicon.DATES}
    dates |= {" ".join(found.split()) for found in _RELATIVE_DATE.findall(text)}
    dates |= {half + "m" for half in _HALF_OF_DAY.findall(text)}
    if _MAY.search(text):
        dates.add("may")
    return frozenset(dates)


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
    composed = normalized("NFC", piece)
    return composed != piece and not any(unicodedata.combining(c) for c in composed)


@lru_cache(maxsize=16384)
def bare(word: str) -> str:
    """The word without case and accents."""
    decomposed = unicodedata.normalize("NFKD", word.casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


@lru_cache(maxsize=1)
def _opposites() -> tuple[tuple[frozenset[str], frozenset[str]], ...]:
    pairs = (line.split("|") for line in lexicon.OPPOSITES.strip().splitlines())
    return tuple((_inflected(left), _inflected(right)) for left, right in pairs)


@lru_cache(maxsize=1)
def _sides() -> dict[str, list[frozenset[str]]]:
    """Each word of a pair -> the other sides of its pairs."""
    sides: dict[str, list[frozenset[str]]] = {}
    for left, right in _opposites():
        for here, there in ((left, right), (right, left)):
            for word in here:
                sides.setdefault(word, []).append(there)
    return sides


def _inflected(words: str) -> frozenset[str]:
    """The words with the regular endings of English; made-up forms do no harm."""
    forms: set[str] = set()
    for word in words.split():
        stem = word.removesuffix("e")
        forms |= {word, word + "s", word + "es", word + "d"}
        forms |= {stem + "ed", stem + "ing", word + word[-1] + "ing"}
    return frozenset(forms)


def opposed(one: Wording, other: Wording) -> bool:
    """Whether a pair of opposites is split across the two: one side here only, the other there only."""
    there = other.words - one.words
    sides = _sides()
    return any(
        not there.isdisjoint(opposites)
        for word in one.words - other.words
        for opposites in sides.get(word, ())
    )
