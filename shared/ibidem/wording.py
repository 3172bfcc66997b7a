"""What a question says that an embedding overlooks: numbers, dates, negations, opposites. Pure, English."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+")
_NUMBER = re.compile(r"(?:(?<![\w.])[-−])?\d+(?:[.,:/]\d+)*")

# Without "one", which is a pronoun more often than a number.
_SMALL = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth"
_NUMBER_WORDS = {
    "zero": "0", "seventeen": "17", "eighteen": "18", "nineteen": "19", "twenty": "20", "thirty": "30",
    "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90",
    "hundred": "100", "thousand": "1000", "million": "1000000", "billion": "1000000000",
    "dozen": "12", "half": "1/2", "twice": "2", "double": "2", "triple": "3",
}  # fmt: skip
_NUMBER_WORDS |= {word: str(value) for value, word in enumerate(_SMALL.split(), start=2)}
_NUMBER_WORDS |= {word: str(value) for value, word in enumerate(_ORDINALS.split(), start=1)}

_DATES = frozenset(
    (
        "monday tuesday wednesday thursday friday saturday sunday january february march april "
        "june july august september october november december today yesterday tomorrow tonight "
        "weekend weekday currently latest nowadays spring summer autumn winter morning afternoon "
        "evening noon midnight"
    ).split()
)
_RELATIVE_DATE = re.compile(
    r"\b(?:this|last|next|previous|coming|past)\s+(?:day|night|week|month|quarter|year|decade|century)\b"
)
_MAY = re.compile(r"\b(?:in|of|since|by|until|last|next|early|late)\s+may\b|\bmay\s+\d")

_NEGATIONS = frozenset(
    (
        "not no never without none nor neither nobody nothing nowhere cannot cant dont doesnt "
        "didnt isnt arent wasnt werent wont wouldnt shouldnt couldnt hasnt havent hadnt mustnt "
        "except excluding unless"
    ).split()
)

# Words that say how a sentence is built, not what it is about.
COMMON_WORDS = frozenset(
    (
        "a an and are as at be been but by can could did do does for from had has have he her his "
        "how i if in into is it its may more most no not of on one or our she so some such than "
        "that the their them then there these they this those to was we were what when where "
        "which who whose why will with would you your"
    ).split()
)

_SIGNS = frozenset("*\\%&#@")  # of those that Unicode takes for punctuation
_SIGN_CATEGORIES = frozenset(("Sm", "Sc", "So", "No"))
_SUPERSCRIPTS = frozenset("⁰¹²³⁴⁵⁶⁷⁸⁹")

DIRECTIONS = frozenset("from to before after by into for over under through".split())

# Pairs whose two sides never share an answer. Each side lists words of one meaning.
_OPPOSITES = """
increase raise grow rise | decrease reduce lower shrink drop fall
maximum max most highest greatest largest biggest | minimum min least lowest smallest fewest
more greater larger bigger higher | less fewer smaller lower
longest longer long | shortest shorter short
oldest older old | newest newer new youngest younger young
first earliest | last latest
best better good | worst worse bad
fastest faster fast quick quickly | slowest slower slow slowly
before prior earlier | after later following
above over | below under beneath
start begin open launch | stop end finish close quit
enable activate allow permit unlock | disable deactivate forbid prohibit deny block lock
add insert append attach | remove delete detach drop
create make build | destroy delete demolish
include | exclude omit
accept approve | reject refuse decline deny
buy purchase | sell
borrow | lend
import | export
push | pull
send | receive
upload | download
encode encrypt serialize compress | decode decrypt deserialize decompress
connect join | disconnect leave separate split
install | uninstall
import load read | export save write
win | lose
pass succeed success | fail failure
true | false
yes | no
legal lawful | illegal unlawful
safe | dangerous unsafe
possible able | impossible unable
valid | invalid
public | private
internal inside inner | external outside outer
local | remote
left | right
north northern | south southern
east eastern | west western
up upward ascending | down downward descending
in into | out
on | off
hot warm | cold cool
early | late
cheap cheapest cheaper inexpensive | expensive costly dearest
rich | poor
strong | weak
hard difficult | easy simple
heavy heaviest heavier | light lightest lighter
full | empty
wide broad | narrow
thick | thin
deep | shallow
male man men boy husband father he his | female woman women girl wife mother she her
arrive arrival | depart departure
debit withdraw withdrawal | credit deposit
advantage benefit pro | disadvantage drawback con
positive | negative
input | output
even | odd
mutable | immutable
global | local
sync synchronous | async asynchronous
horizontal | vertical
parent | child
client | server
question | answer
cause | effect
strength | weakness
employer | employee
lossy | lossless
"""


@lru_cache(maxsize=1)
def _opposites() -> tuple[tuple[frozenset[str], frozenset[str]], ...]:
    pairs = (line.split("|") for line in _OPPOSITES.strip().splitlines())
    return tuple((_inflected(left), _inflected(right)) for left, right in pairs)


def _inflected(words: str) -> frozenset[str]:
    """The words with the regular endings of English; made-up forms do no harm."""
    forms: set[str] = set()
    for word in words.split():
        stem = word.removesuffix("e")
        forms |= {
            word,
            word + "s",
            word + "es",
            word + "d",
            stem + "ed",
            stem + "ing",
            word + word[-1] + "ing",
        }
    return frozenset(forms)


@dataclass(frozen=True, slots=True)
class Wording:
    """The tell-tale parts of one question.

    `content` its words and numbers without the common ones, in order; `directed` the same with the words
    of direction; `spellings` the words as written, `cased` whether there are capitals; `numbers` in order, as
    digits ("1,600", "1600" and number words alike); `dates` weekdays, months, seasons, "today", "last year";
    `negations` how many; `symbols` signs that are no punctuation, sorted; `words` all of them, lower-case.
    """

    content: tuple[str, ...]
    directed: tuple[str, ...]
    spellings: frozenset[str]
    cased: bool
    numbers: tuple[str, ...]
    dates: frozenset[str]
    negations: int
    symbols: tuple[str, ...]
    words: frozenset[str]


@lru_cache(maxsize=4096)
def read(question: str) -> Wording:
    """Take a question apart; a few tens of microseconds, remembered for the last 4,096 questions."""
    text = question.lower().replace("’", "'")
    words = [match.group() for match in _WORD.finditer(text)]
    dates = {word.removesuffix("s") if word.endswith("days") else word for word in words} & _DATES
    dates |= {" ".join(found.split()) for found in _RELATIVE_DATE.findall(text)}
    if _MAY.search(text):
        dates.add("may")
    negations = sum(word in _NEGATIONS or word.endswith("n't") for word in words)
    return Wording(
        content=tuple(word for word in words if word not in COMMON_WORDS),
        directed=tuple(word for word in words if word not in COMMON_WORDS or word in DIRECTIONS),
        spellings=frozenset(match.group() for match in _WORD.finditer(question)),
        cased=any(c.isupper() for c in question[1:]),
        numbers=_numbers(text),
        dates=frozenset(dates),
        negations=negations,
        symbols=_symbols(question),
        words=frozenset(words),
    )


def _symbols(text: str) -> tuple[str, ...]:
    """Operators, currencies, superscripts, emoji: what tells "C" from "C#" and "==" from "!="."""
    signs = (c for c in text.replace("!=", "\N{NOT EQUAL TO}") if not c.isalnum() or c in _SUPERSCRIPTS)
    return tuple(sorted(c for c in signs if c in _SIGNS or unicodedata.category(c) in _SIGN_CATEGORIES))


def bare(word: str) -> str:
    """The word without case and accents."""
    decomposed = unicodedata.normalize("NFKD", word.casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def _numbers(text: str) -> tuple[str, ...]:
    found = [(match.start(), _plain(match.group())) for match in _NUMBER.finditer(text)]
    for match in _WORD.finditer(text):
        word = match.group()
        if value := _NUMBER_WORDS.get(word):
            found.append((match.start(), value))
    return tuple(value for _, value in sorted(found))


def _plain(number: str) -> str:
    """One spelling for one number: thousands separators, sign, leading and trailing zeros."""
    number = number.replace("−", "-")
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", number):
        number = number.replace(",", "")
    if re.fullmatch(r"-?\d+\.\d+", number):
        number = number.rstrip("0").removesuffix(".")
    return re.sub(r"^(-?)0+(?=\d)", r"\1", number)


def opposed(one: Wording, other: Wording) -> bool:
    """Whether a pair of opposites is split across the two: one side here only, the other there only."""
    here, there = one.words - other.words, other.words - one.words
    return any(
        (here & left and there & right) or (here & right and there & left) for left, right in _opposites()
    )
