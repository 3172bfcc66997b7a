"""Parse a question into the features that guards and scorers compare. Pure; English.

An embedding overlooks some differences between two questions (numbers, dates, negations, order, signs), and
sees others that do not matter (politeness, contractions, spelling, word order). `parse_question` reads a
question once; the guards (`ibidem.matching.guards`) and the scorers (`ibidem.matching.scorers`) compare the
features of two.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from typing import Any

from ibidem._util import words_en
from ibidem._util.text import has_hidden, strip_invisible, unicode_normalize
from ibidem._util.words_en import (
    COMMON_WORDS,
    COMPARISONS,
    FILLERS,
    NUMBER_WORDS,
    PERSONS,
    QUANTIFIERS,
    SMALL_WORDS,
)
from ibidem.matching.identifiers import Identifiers, identifiers
from ibidem.matching.opposites_en import (
    CONTRARY_PREFIXES,
    EXCLUSIVE,
    GRADED,
    NEGATIVE_PREFIXES,
    OPPOSITES,
)

ENGLISH_SHARE = 0.3  # least share of known small words in an English question

# Words, and numbers with their separators: "1,600", "3.10", "12:30".
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d+(?:[.,:]\d+)*")
_SEPARATOR = re.compile(r"[.,:]")
# Words as written, but no letters of identifiers.
_SPELLED = re.compile(r"(?<!\d)(?<![^\W\d_])[^\W\d_]++(?:['’][^\W\d_]++)*+(?!\d)|\d+")
_NUMBER = re.compile(r"(?:(?<![\w.])[-−])?\d+(?:[.,:/]\d+)*(?:e[+-]?\d+)?")
_RELATIVE_DATE = re.compile(
    r"\b(?:this|last|next|previous|coming|past)\s+(?:day|night|week|month|quarter|year|decade|century)\b"
)
_MAY = re.compile(r"\b(?:in|of|since|by|until|last|next|early|late)\s+may\b|\bmay\s+\d")
_HALF_OF_DAY = re.compile(r"\d\s*([ap])\.?m\b")
# Hyphenated parts of a word: "non-refundable", "check-in".
_HYPHENATED = re.compile(
    r"(?<![\w-])([a-z]{2,7})-(?=[a-z]{3})|(?<=[a-z]{3})(-)(?=(?:in|out|on|off|up|down|less)\b)"
)
_QUOTED = re.compile(r"`([^`]*)`|\"([^\"]*)\"|(?<!\w)'([^']*)'")
# Characters of code, money and mathematics, and joiners, besides those of the Unicode categories below.
_SIGNS = frozenset("/\\^_*%&#@{}[]|~\u200c\u200d")
_SIGN_CATEGORIES = frozenset(("Sm", "Sc", "So", "No", "Mn"))
# An amount of money, a percentage or a plain number is a number with a unit, not code.
_AMOUNT = re.compile(r"([$\u20ac\u00a3])?(\d[\d.,]*)(k|m)?([$\u20ac\u00a3%])?")
_PUNCTUATION = "?.,;:!()\"'`“”‘’"
_ASKS_AMOUNT = re.compile(r"\bhow (?:many|much)\b|\bnumber of\b|\bcount\b|\btotal\b")
_ISE = re.compile(r"(\w{3,})is(e|es|ed|ing|ation|ations)")
_NOT_IZE = frozenset(
    (
        "prom adv exerc surpr superv rev comprom desp disgu improv telev franch appra conc merchand enterpr "
        "prec parad expert otherw likew adver cru bru pra"
    ).split()
)
Side = tuple[int, int]  # of a line of opposites: number of the line, number of the side


@dataclass(frozen=True, slots=True)
class QuestionFeatures:
    """The features of one question.

    Attributes:
        text: The question as it was asked.
        has_hidden: Whether it holds characters that nobody sees (`ibidem._util.text`).
        numbers: In order, as digits: "1,600", "1600" and number words alike.
        units: Units of measure.
        dates: Weekdays, months, seasons, "today", "last year".
        pointed_at: What is called this, last or next -> which of these.
        identifiers: Names of letters and digits.
        code: Pieces with other signs than punctuation ("C#", "!=", "-v"), as written and in order.
        quotes: What stands in quotes.
        spellings: Words as written.
        has_capitals: Whether there are capitals after the first letter.
        content: Words and numbers without the common ones, in order.
        ordered: The same with words of direction, persons and negations.
        plain_words: All words, lower-case, without "'s".
        written_negations: How many of the words negate, as written.
        roots: The roots of the words, without the hyphen of a prefix ("nonrefundable").
        root_negations: How many of these words negate.
        opposites: Words of `OPPOSITES` and `EXCLUSIVE` (`ibidem.matching.opposites_en`).
        opposite_sides: The lines of these words, and their sides there.
        words: All words in one spelling and in order, contractions and abbreviations expanded.
        stems: The stems of the content words among them, in order.
        fillers, prepositions, comparisons: These small words, counted.
        asks: What is asked for: who, when, how, an amount.
        mode: How a yes-or-no question begins; "" for others.
        modal: The first such word behind a question word; "" for yes-or-no questions.
        quantifiers: All or any.
        negations: How many of `words` negate.
        roles: Content words and persons -> the direction word before their phrase; "" if none.
        phrases: Runs of content words with the direction word before each, counted.
        sorted_words: All words sorted, "me" as "i".
        is_english: Whether enough words are known to judge how they are put together.
    """

    text: str
    has_hidden: bool
    numbers: tuple[str, ...]
    units: frozenset[str]
    dates: frozenset[str]
    pointed_at: Mapping[str, str]
    identifiers: Identifiers
    code: tuple[str, ...]
    quotes: tuple[str, ...]
    spellings: frozenset[str]
    has_capitals: bool
    content: tuple[str, ...]
    ordered: tuple[str, ...]
    plain_words: frozenset[str]
    written_negations: int
    roots: frozenset[str]
    root_negations: int
    opposites: frozenset[str]
    opposite_sides: frozenset[Side]
    words: tuple[str, ...]
    stems: tuple[str, ...]
    fillers: Counter[str]
    prepositions: Counter[str]
    comparisons: Counter[str]
    asks: frozenset[str]
    mode: str
    modal: str
    quantifiers: frozenset[str]
    negations: int
    roles: Mapping[str, str]
    phrases: Counter[tuple[str, ...]]
    sorted_words: tuple[str, ...]
    is_english: bool


@lru_cache(maxsize=4096)
def parse_question(question: str) -> QuestionFeatures:
    """Parse a question; about 0.2 ms, cached for the last 4,096 questions."""
    plain = question.isascii() and question.isprintable()
    visible = question if plain else strip_invisible(question)
    text = visible.lower().replace("’", "'")
    tokens = _WORD.findall(text)
    amounts = _expand_amounts(text)
    written = _split_numbers(tokens if amounts == text else _WORD.findall(amounts))
    spelled = amounts if visible.isupper() else visible  # a question in capitals says nothing by them
    return QuestionFeatures(
        text=question,
        has_hidden=not plain and has_hidden(question),
        numbers=_numbers(amounts, written),
        identifiers=identifiers(visible),
        quotes=tuple("".join(groups) for groups in _QUOTED.findall(visible)),
        spellings=frozenset(_SPELLED.findall(spelled)),
        has_capitals=not spelled.islower() and any(c.isupper() for c in spelled[1:]),
        **_written_features(amounts, written, _code(visible)),
        **_normal_features(list(_normal_words(tokens))),
    )


def _written_features(text: str, words: list[str], code: tuple[str, ...]) -> dict[str, Any]:
    """Return the features of words as they are written, in lower case."""
    plain = [word.removesuffix("'s") for word in words]
    negations = sum(map(is_negation, words))
    whole = _join_prefixes(text, words)
    sides = sides_by_word()
    opposites = frozenset(word for word in plain if word in sides)
    return {
        "units": frozenset(words_en.UNITS[word] for word in words if word in words_en.UNITS),
        "dates": _dates(text, plain),
        "pointed_at": _pointed_at(words),
        "code": code,
        # In code, a single letter names something.
        "content": tuple(
            _singular(word) for word in words if word not in COMMON_WORDS or (code and len(word) == 1)
        ),
        "ordered": tuple(_ordered(words)),
        "plain_words": frozenset(plain),
        "written_negations": negations,
        "roots": frozenset(map(root, whole)),
        "root_negations": negations if whole is words else sum(map(is_negation, whole)),
        "opposites": opposites,
        "opposite_sides": frozenset(side for word in opposites for side in sides[word]),
    }


def _normal_features(words: list[str]) -> dict[str, Any]:
    """Return the features of words in one spelling."""
    small = [word for word in words if word in SMALL_WORDS]
    return {
        "words": tuple(words),
        "stems": tuple(stem(word) for word in words if word not in SMALL_WORDS),
        "fillers": Counter([word for word in small if word in FILLERS]),
        "prepositions": Counter([word for word in small if word in words_en.PREPOSITIONS]),
        "comparisons": Counter([COMPARISONS[word] for word in words if word in COMPARISONS]),
        "asks": _asks(words),
        "mode": _mode(words),
        "modal": _modal(words),
        "quantifiers": frozenset(QUANTIFIERS[word] for word in words if word in QUANTIFIERS),
        "negations": sum(word in words_en.NEGATIONS for word in words),
        "roles": _roles(words),
        "phrases": _phrases(words),
        "sorted_words": tuple(sorted(PERSONS.get(word, word) for word in words)),
        "is_english": bool(words) and len(small) / len(words) >= ENGLISH_SHARE,
    }


# words ------------------------------------------------------------------------------------------------


def words_of(text: str) -> Iterator[str]:
    """Yield the words of a text in one spelling, contractions and abbreviations expanded."""
    visible = text if text.isascii() and text.isprintable() else strip_invisible(text)
    return _normal_words(_WORD.findall(visible.lower().replace("’", "'")))


def _normal_words(tokens: Sequence[str]) -> Iterator[str]:
    for word in tokens:
        if word in words_en.CONTRACTIONS:
            yield from words_en.CONTRACTIONS[word].split()
        elif word.endswith("n't"):
            yield from (word[:-3], "not")
        elif word in words_en.SHORT_FORMS:
            yield from words_en.SHORT_FORMS[word].split()
        else:
            yield american(word.removesuffix("'s"))


def _split_numbers(tokens: list[str]) -> list[str]:
    """Split numbers at their separators: "1,600" into "1" and "600"."""
    if not any(token[0].isdigit() and not token.isdigit() for token in tokens):
        return tokens
    return list(chain.from_iterable(_SEPARATOR.split(token) for token in tokens))


def is_negation(word: str) -> bool:
    """Return whether the word, as written, negates."""
    return word in words_en.WRITTEN_NEGATIONS or word.endswith("n't")


def _join_prefixes(text: str, words: list[str]) -> list[str]:
    """Return the words without the hyphen of a prefix: "nonrefundable"."""
    return _split_numbers(_WORD.findall(_HYPHENATED.sub(_joined, text))) if "-" in text else words


def _joined(found: re.Match[str]) -> str:
    prefix = found[1] or ""
    known = prefix in NEGATIVE_PREFIXES or prefix in CONTRARY_PREFIXES
    return prefix if known or found[2] else found[0]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _ordered(words: list[str]) -> list[str]:
    persons = (words_en.OBJECTS.get(word, word) for word in words)
    return [
        "not" if is_negation(word) else _singular(word)
        for word in persons
        if word not in COMMON_WORDS or word in words_en.ROLE_WORDS or is_negation(word)
    ]


@lru_cache(maxsize=16384)
def american(word: str) -> str:
    """Return the word in American spelling, which most models have seen most."""
    singular = word.removesuffix("s")
    if word in words_en.SPELLINGS:
        return words_en.SPELLINGS[word]
    if singular in words_en.SPELLINGS:
        return words_en.SPELLINGS[singular] + "s"
    found = _ISE.fullmatch(word)
    return f"{found[1]}iz{found[2]}" if found and found[1] not in _NOT_IZE else word


@lru_cache(maxsize=16384)
def stem(word: str) -> str:
    """Strip the commonest endings of English."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    for ending in ("ing", "ed", "ly", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            word = word.removesuffix(ending)
            break
    return word[:-1] if len(word) > 4 and word[-1] == word[-2] else word


@lru_cache(maxsize=16384)
def root(word: str) -> str:
    """Return what the forms of a word share: "hire", "hires", "hired", "hiring"; "tell", "told"."""
    word = words_en.IRREGULAR.get(word, word)
    if len(word) > 4 and word.endswith(("ies", "ied")):
        return word[:-3] + "y"
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith(("ss", "ee", "eed")):
            word = word.removesuffix(ending)
            break
    word = words_en.SPELLINGS.get(word, word)
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


@lru_cache(maxsize=16384)
def without_accents(word: str) -> str:
    """Return the word without case and accents."""
    decomposed = unicode_normalize("NFKD", word.casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


@lru_cache(maxsize=1)
def sides_by_word() -> dict[str, frozenset[Side]]:
    """Map each word of `OPPOSITES` and `EXCLUSIVE` to its lines and its sides there."""
    sides: dict[str, set[Side]] = {}
    lines = [(line, _inflected) for line in OPPOSITES] + [(line, _plural) for line in EXCLUSIVE]
    for number, (line, forms) in enumerate(lines):
        for side, words in enumerate(line):
            for word in forms(words):
                sides.setdefault(word, set()).add((number, side))
    return {word: frozenset(found) for word, found in sides.items()}


def _plural(words: str) -> frozenset[str]:
    return frozenset(form for word in words.split() for form in (word, word + "s"))


def _inflected(words: str) -> frozenset[str]:
    """Add the regular endings of English; forms that do not exist do no harm."""
    forms: set[str] = set()
    for word in words.split():
        stem = word.removesuffix("e")
        forms |= {word, word + "s", word + "es", word + "d"}
        forms |= {stem + "ed", stem + "ing", word + word[-1] + "ing"}
        if word in GRADED:
            stem = word[:-1].removesuffix("e") + "i" if word.endswith("y") else stem
            forms |= {base + degree for base in (stem, word + word[-1]) for degree in ("er", "est")}
    return frozenset(forms)


# numbers, dates, signs --------------------------------------------------------------------------------


def _numbers(text: str, words: list[str]) -> tuple[str, ...]:
    found = [(match.start(), _one_spelling(match.group())) for match in _NUMBER.finditer(text)]
    if found or not NUMBER_WORDS.keys().isdisjoint(words):
        spoken = [(match.start(), match.group()) for match in _WORD.finditer(text)]
        found += [(at, NUMBER_WORDS[word]) for at, word in spoken if word in NUMBER_WORDS]
        # Beside other numbers, "one" is a number too.
        found += [(at, "1") for at, word in spoken if word == "one"]
    return tuple(value for _, value in sorted(found))


def _one_spelling(number: str) -> str:
    """Return one spelling of a number: sign, thousands separators. "3.1" and "3.10" are two versions."""
    number = number.replace("−", "-")
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", number):
        number = number.replace(",", "")
    return number


def _expand_amounts(text: str) -> str:
    """Write amounts as words: "$250k" as "250000 dollars", "5%" as "5 percent"."""
    return " ".join(_expand_amount(piece) for piece in text.split())


def _expand_amount(piece: str) -> str:
    if piece.isalpha():
        return piece
    bare = piece.strip(_PUNCTUATION)
    found = _AMOUNT.fullmatch(bare)
    if not found or not any(found.group(1, 3, 4)):
        return piece
    number = _one_spelling(found[2].rstrip(".,"))
    if found[3] and number.replace(".", "", 1).isdigit():
        number = f"{float(number) * {'k': 1e3, 'm': 1e6}[found[3]]:.10g}"
    units = (words_en.UNIT_SIGNS[sign] for sign in found.group(1, 4) if sign)
    return piece.replace(bare, " ".join((number, *units)))


def _dates(text: str, words: list[str]) -> frozenset[str]:
    dates = {words_en.DATES[word] for word in words if word in words_en.DATES}
    dates |= {" ".join(found.split()) for found in _RELATIVE_DATE.findall(text)}
    dates |= {half + "m" for half in _HALF_OF_DAY.findall(text)}
    if _MAY.search(text):
        dates.add("may")
    return frozenset(dates)


def _pointed_at(words: list[str]) -> dict[str, str]:
    """Map what stands behind "this", "last", "next" and the like to which of these; the last one counts."""
    return {
        root(noun): words_en.POINTING[word]
        for word, noun in pairwise(words)
        if word in words_en.POINTING and noun not in COMMON_WORDS and noun not in words_en.POINTING
    }


def _code(question: str) -> tuple[str, ...]:
    pieces = (piece.strip(_PUNCTUATION) or piece for piece in question.split())
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
    """Return whether composing removes the marks: then they are accents, not signs."""
    composed = unicode_normalize("NFC", piece)
    return composed != piece and not any(unicodedata.combining(c) for c in composed)


# sentences --------------------------------------------------------------------------------------------


def _asks(words: list[str]) -> frozenset[str]:
    asks = {words_en.QUESTION_WORDS[word] for word in words if word in words_en.QUESTION_WORDS}
    if _ASKS_AMOUNT.search(" ".join(words)):
        asks.add("amount")
    elif "how" in words:
        asks.add("how")
    return frozenset(asks)


def _mode(words: list[str]) -> str:
    """Return how a yes-or-no question begins; "do I have to" and "do I need to" are "must"."""
    if not words or words[0] not in words_en.MODES:
        return ""
    if re.match(r"(?:do|does) (?:\w+ ){1,6}?(?:have|need) to\b", " ".join(words)):
        return "must"
    return words_en.MODES[words[0]]


def _modal(words: list[str]) -> str:
    """Return the mode in "when may I", "how long before I start must I"; "" for yes-or-no questions."""
    if not words or words[0] not in words_en.ASKED_FOR:
        return ""
    return next((words_en.MODES[word] for word in words[1:10] if word in words_en.MODES), "")


def _roles(words: list[str]) -> dict[str, str]:
    """Map content words and persons to the direction word before their phrase: "from", "to"; "" if none."""
    roles: dict[str, str] = {}
    direction, inside = "", False
    for word in words:
        if word in words_en.DIRECTIONS:
            direction, inside = words_en.SAME_DIRECTION.get(word, word), False
        elif word in words_en.SPEAKERS:
            roles.setdefault(
                "@" + PERSONS[word], direction or ("subject" if word in words_en.SUBJECTS else "")
            )
            direction, inside = "", False
        elif word in SMALL_WORDS:
            if inside:
                direction, inside = "", False
        else:
            roles.setdefault(stem(word), direction)
            inside = True
    return roles


def _phrases(words: list[str]) -> Counter[tuple[str, ...]]:
    """Count the runs of content words, each with the direction word before it."""
    found: Counter[tuple[str, ...]] = Counter()
    direction = ""
    run: list[str] = []
    for word in (*words, "the"):
        if word in PERSONS or word in words_en.NEGATIONS:
            run.append("@" + PERSONS.get(word, "not"))
        elif word in SMALL_WORDS:
            if run:
                phrase = (direction, *run)
                found[phrase] += 1
                direction, run = "", []
            direction = words_en.SAME_DIRECTION.get(word, word) if word in words_en.DIRECTIONS else direction
        else:
            run.append(stem(word))
    return found
