"""Guards: differences between two questions that embeddings overlook and that change the answer.

A guard compares the features of two questions whose embeddings are near, and returns whether they differ in a
way that forbids one answer for both. A new guard is one function here and its line in `GUARDS`.
`tests/benchmarks/decisions.py` counts what each guard refuses rightly and wrongly.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from ibidem._util import words_en
from ibidem.errors import InvalidInput
from ibidem.matching import identifiers
from ibidem.matching.opposites_en import (
    CONTRARY_PREFIXES,
    CONTRARY_SUFFIXES,
    LONGEST_PREFIX,
    NEGATIVE_PREFIXES,
    NO_CONTRARY,
    ONE_NAME,
    OPPOSITES,
)
from ibidem.matching.text import (
    QuestionFeatures,
    Side,
    parse_question,
    root,
    sides_by_word,
    without_accents,
    words_of,
)

Guard = Callable[[QuestionFeatures, QuestionFeatures], bool]
NamedGuard = tuple[str, Guard]  # the name becomes the reason of a miss: `guard:<name>`

_LEAST_STEM = 3  # letters that remain behind a contrary prefix


def holds_hidden(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    """Return whether one of them holds invisible characters: what these say to a model is not known."""
    return asked.has_hidden or stored.has_hidden


def numbers_differ(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    """Compare numbers and their order ("1600 to 2400" is not "2400 to 1600"), and units."""
    return _units_differ(asked, stored) or asked.numbers != stored.numbers


def _units_differ(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    return bool(asked.units and stored.units) and asked.units != stored.units


def dates_differ(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    """Compare weekdays, months and relative dates, also on one side only; this, last, next of one thing."""
    return asked.dates != stored.dates or _point_elsewhere(asked, stored)


def _point_elsewhere(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    other = stored.pointed_at
    return any(other.get(noun, which) != which for noun, which in asked.pointed_at.items())


def identifiers_differ(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    """Compare order numbers, parts, models and versions of letters and digits (`identifiers.differ`)."""
    return identifiers.differ(asked.identifiers, stored.identifiers)


def spelling_differs(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    """Find the same letters in another spelling, which an uncased model cannot see.

    Accents ("schon", "schön"); capitals ("v", "V"; "it", "IT"), unless only a first letter differs or one of
    the questions is typed without capitals; blanks within quotes.
    """
    if asked.quotes != stored.quotes and _squeezed(asked.quotes) == _squeezed(stored.quotes):
        return True
    twins: dict[str, list[str]] = {}
    for other in stored.spellings - asked.spellings:
        twins.setdefault(without_accents(other), []).append(other)
    cased = asked.has_capitals and stored.has_capitals
    return any(
        _is_other_spelling(one, other, cased)
        for one in asked.spellings - stored.spellings
        for other in twins.get(without_accents(one), ())
    )


def _squeezed(quotes: tuple[str, ...]) -> list[str]:
    return ["".join(text.casefold().split()) for text in quotes]


def _is_other_spelling(one: str, other: str, cased: bool) -> bool:
    word = one.casefold()
    if word != other.casefold():
        return True
    if len(one) == 1:
        return word != "i"
    if word in words_en.OTHER_IN_CAPITALS and one.isupper() != other.isupper():
        return True
    return cased and one[1:] != other[1:]


def code_differs(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    """Compare pieces with signs that are not punctuation: "C" is not "C#", "x == y" is not "x != y"."""
    return asked.code != stored.code


# contrary words ---------------------------------------------------------------------------------------


def are_contrary(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    """Find contrary words, two words of a closed set, or a word with a contrary prefix or suffix."""
    return are_opposed(asked, stored) or have_contrary_affix(asked, stored)


def are_opposed(one: QuestionFeatures, other: QuestionFeatures) -> bool:
    """Find a line of opposites of which one question has only this side, and the other only that."""
    here, there = one.opposite_sides - other.opposite_sides, other.opposite_sides - one.opposite_sides
    if not {line for line, _ in here}.isdisjoint(line for line, _ in there):
        return True
    # Where both have both sides, the forms differ: "starts before it ended", "ends before it started".
    ours = _sides_of(one.opposites - other.plain_words)
    theirs = _sides_of(other.opposites - one.plain_words)
    return any(line == at and side != another for line, side in ours for at, another in theirs)


def _sides_of(words: frozenset[str]) -> set[Side]:
    return {side for word in words for side in sides_by_word()[word] if side[0] < len(OPPOSITES)}


def have_contrary_affix(one: QuestionFeatures, other: QuestionFeatures) -> bool:
    """Find a word that is a word of the other question but for such a prefix or suffix, whatever the stem.

    Lock and unlock, useful and useless; not where a negation makes up for it: "not able" is "unable".
    """
    ours, theirs = one.roots - other.roots, other.roots - one.roots
    if not ours or not theirs or one.root_negations != other.root_negations:
        return False
    return any(not contraries(word).isdisjoint(theirs) for word in ours) or any(
        not contraries(word).isdisjoint(ours) for word in theirs
    )


@lru_cache(maxsize=16384)
def contraries(word: str) -> frozenset[str]:
    """Return the word with the contrary prefix or suffix, or without its negative one."""
    if word in NO_CONTRARY:
        return frozenset()
    return frozenset((*_with_other_prefix(word), *_with_other_suffix(word)))


def _with_other_prefix(word: str) -> list[str]:
    found = []
    for length in range(1, min(len(word) - _LEAST_STEM, LONGEST_PREFIX) + 1):
        prefix, rest = word[:length], word[length:]
        found += [partner + rest for partner in CONTRARY_PREFIXES.get(prefix, ())]
        if prefix in NEGATIVE_PREFIXES and len(rest) >= _LEAST_STEM:
            found.append(rest)
    return found


def _with_other_suffix(word: str) -> list[str]:
    return [
        root(word.removesuffix(suffix) + partner)
        for suffix, partner in CONTRARY_SUFFIXES
        if word.endswith(suffix) and len(word) - len(suffix) >= _LEAST_STEM
    ]


# sentences --------------------------------------------------------------------------------------------


def roles_exchanged(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    """Find the same words in other roles.

    Two shared words swap their direction words ("bytes to string", "string to bytes"), one has the contrary
    one ("to Boston", "from Boston"), or all words are the same and phrases are not just put elsewhere ("dog
    bites man", "can I sue you"; but "on Monday, which flights" is "which flights on Monday").
    """
    if (
        asked.sorted_words == stored.sorted_words
        and asked.words != stored.words
        and asked.phrases != stored.phrases
    ):
        return not (_only_list_reordered(asked, stored) or _only_negation_moved(asked, stored))
    moves = {
        (role, stored.roles[word])
        for word, role in asked.roles.items()
        if stored.roles.get(word, role) != role
    }
    return any((there, here) in moves or (here, there) in words_en.CONTRARY for here, there in moves)


def _only_negation_moved(one: QuestionFeatures, other: QuestionFeatures) -> bool:
    """Return whether only "not" changed places: "why is it not charging", "why isn't it charging"."""
    if one.negations != 1 or {"but", "rather", "and", "or"} & set(one.words):
        return False
    return [w for w in one.words if w != "not"] == [w for w in other.words if w != "not"]


def _only_list_reordered(one: QuestionFeatures, other: QuestionFeatures) -> bool:
    """Return whether only members of a list changed places: "eggs, onions and salt", "salt, eggs and onions".

    One range of words differs, it holds "and" or "or", and nothing in it says who acts on whom.
    """
    differing = [at for at, (a, b) in enumerate(zip(one.words, other.words, strict=True)) if a != b]
    changed = one.words[differing[0] : differing[-1] + 1]
    active = (
        words_en.PREPOSITIONS
        | words_en.SPEAKERS
        | words_en.NEGATIONS
        | words_en.MODES.keys()
        | {"than", "as"}
    )
    return bool({"and", "or"} & set(changed)) and not active & set(changed) and len(changed) <= 7


def asks_differ(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    """Find another mode, time or kind of the same question: may I, must I; did it, does it; why, whether.

    By a contrast of how two yes-or-no questions begin, or of the modal verbs of two others, or by the one
    word that differs at all, which may be a preposition too ("an async for", "an async with").
    """
    if frozenset((asked.mode, stored.mode)) in words_en.CONTRASTS:
        return True
    if frozenset((asked.modal, stored.modal)) in words_en.CONTRASTS_WITHIN:
        return True
    if (asked.words[:1] == ("why",) and stored.mode) or (stored.words[:1] == ("why",) and asked.mode):
        return asked.asks != stored.asks
    if len(asked.words) != len(stored.words):
        return False
    differing = [(a, b) for a, b in zip(asked.words, stored.words, strict=True) if a != b]
    if len(differing) != 1:
        return False
    swapped = frozenset(differing[0])
    if swapped <= words_en.PREPOSITIONS and swapped not in words_en.INTERCHANGEABLE:
        return True
    kinds = [frozenset(map(table.get, differing[0])) for table in (words_en.TENSES, words_en.ASKED_FOR)]
    return any(len(kind - {None}) == 2 for kind in kinds)


def quantifiers_differ(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    """Compare quantifiers: all on one side, any on the other."""
    return bool(asked.quantifiers and stored.quantifiers) and not asked.quantifiers & stored.quantifiers


def order_differs(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    """Find the same words in another order ("x > y", "y > x"), in code and in languages but English."""
    if not asked.code and asked.is_english and stored.is_english:
        return False
    return _reordered(asked.content, stored.content) or _reordered(asked.ordered, stored.ordered)


def _reordered(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return one != other and sorted(one) == sorted(other)


# Who acts on whom, whatever the verb: same words, but two parts exchanged.
#
# No verb is known here. A question becomes its significant words in the order of a plain statement: the
# object behind the verb ("who did Ann call": Ann call who), the agent before it ("Ann was called by Bob": Bob
# call Ann). If one then reads A, verb, B and the other B, verb, A, the roles are exchanged. They are not
# where a part only moved, or the members of a list did.

LONGEST = 64  # words; in longer texts order says little of roles
LONGEST_PART = 2  # words of a part that is exchanged
_LETTER = re.compile(r"(?<=\w )A\b|^A(?= (?:is|was|can|does|has|will|or|and|to|than)\b)")
_THANKS = frozenset("please thank thanks kindly".split())
_ENDS = words_en.PREPOSITIONS | frozenset("and or but when where because that which who if as".split())
_STARTS = frozenset("why when where how if that because and but or whether".split())
_ASKED = frozenset(map(root, (*words_en.QUESTION_WORDS, "what", "which", "how")))
_PREPOSITIONS = frozenset(map(root, words_en.PREPOSITIONS))
_LINKS = frozenset(map(root, words_en.LINKS))
_LINKING = frozenset(map(root, words_en.EQUALS)) | _PREPOSITIONS | _ASKED


@lru_cache(maxsize=4096)
def statement(text: str) -> tuple[str, ...]:
    """Return the roots of the significant words, in the order of a statement; () for long texts."""
    if not text.isupper():
        text = _LETTER.sub("lettera", text)  # a name, not an article
    words = list(words_of(text))
    while words and words[0] in words_en.POLITE - {"you"}:
        words = words[1:]
    while words and words[-1] in words_en.POLITE and not _THANKS.isdisjoint(words[-2:]):
        words = words[:-1]
    if len(words) > LONGEST:
        return ()
    plain = _with_agents_first(_with_object_last(words))
    return tuple(_one_name(word) for word in plain if word not in words_en.UNSTRESSED)


def _one_name(word: str) -> str:
    """Return one word for a person, a country and the like: "me" and "I", "Canadian" and "Canada"."""
    return words_en.OBJECTS.get(word) or ONE_NAME.get(word) or root(word)


def _with_object_last(words: list[str]) -> list[str]:
    """Turn "what did Ann tell Bob" into "Ann tell Bob what"; "which team did Ann beat" likewise."""
    if not words or words[0] not in words_en.ASKED_OBJECTS:
        return words
    at = next((at for at, word in enumerate(words[1:5], 1) if word in ("do", "does", "did")), 0)
    if not at:
        return words
    rest = words[at + 1 :]
    end = next((n for n, word in enumerate(rest[:-1]) if n > 1 and word in words_en.PREPOSITIONS), len(rest))
    return [*rest[:end], *words[:at], *rest[end:]]


def _with_agents_first(words: list[str]) -> list[str]:
    """Turn "Ann was called by Bob" into "Bob call Ann", for the first such part."""
    for at in range(2, len(words) - 1):
        if words[at] == "by" and _is_participle(words[at - 1]):
            be = next((n for n in range(at - 2, -1, -1) if words[n] in words_en.PASSIVE), None)
            if be is not None and be >= at - 8:
                return _turned(words, be, at)
    return words


def _turned(words: list[str], be: int, by: int) -> list[str]:
    end = next((n for n in range(by + 1, len(words)) if n > by + 1 and words[n] in _ENDS), len(words))
    agent, rest = words[by + 1 : end], words[end:]
    between = words[be + 1 : by - 1]
    if any(word not in words_en.UNSTRESSED for word in between):  # "was Ann called by Bob"
        return [*words[:be], *agent, words[by - 1], *between, *rest]
    start = next((n + 1 for n in range(be - 1, -1, -1) if words[n] in _STARTS), 0)
    return [*words[:start], *agent, words[by - 1], *words[start:be], *rest]


def _is_participle(word: str) -> bool:
    return word.endswith(("ed", "en", "wn")) or word in words_en.IRREGULAR


def parts_exchanged(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    """Find two parts of the question that changed places around what stands between them."""
    one, other = statement(asked.text), statement(stored.text)
    if one == other or sorted(one) != sorted(other):
        return False
    parts = _exchanged(one, other)
    # "The fare is what" asks what "what is the fare" asks.
    return bool(parts) and (_ASKED.isdisjoint(parts) or (_asks_first(asked) and _asks_first(stored)))


def _asks_first(question: QuestionFeatures) -> bool:
    """Return whether the question begins with a question word."""
    return root(next(iter(question.words), "")) in _ASKED


def _exchanged(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words of A and B if one is A, P, B, the other B, P, A, and P says who acts; else ()."""
    start, end = 0, len(one)
    while one[start] == other[start]:
        start += 1
    while one[end - 1] == other[end - 1]:
        end -= 1
    if _renamed(one, other, one[start], other[start]):
        return (one[start], other[start])
    before, here, there, after = one[:start], one[start:end], other[start:end], one[end:]
    size = len(here)
    first = next((n for n in range(1, LONGEST_PART + 1) if here[:n] == there[-n:]), size)
    last = next((n for n in range(1, LONGEST_PART + 1) if here[-n:] == there[:n]), size)
    between = here[first : size - last]
    if not between or between != there[last : size - first]:
        return ()
    only_moved = not {here[0], here[size - last]}.isdisjoint(_PREPOSITIONS)
    if only_moved or _LINKING.issuperset(between) or _of_a_list(before, between, after):
        return ()
    return (*here[:first], *here[size - last :])


def _renamed(one: tuple[str, ...], other: tuple[str, ...], a: str, b: str) -> bool:
    """Return whether one is the other with a for b and b for a, in more places than one of each."""
    names = {a: b, b: a}
    return one.count(a) + one.count(b) > 2 and tuple(names.get(word, word) for word in one) == other


def _of_a_list(before: tuple[str, ...], between: tuple[str, ...], after: tuple[str, ...]) -> bool:
    """Return whether A and B are members of a list with a common word: "civil cases and criminal cases"."""
    if between[-1] in _LINKS:
        return after[: len(between) - 1] == between[:-1]
    return between[0] in _LINKS and before[len(before) - len(between) + 1 :] == between[1:]


# The first guard that fails names the reason of a miss, so the order is fixed: what is compared letter by
# letter first, what needs the grammar of the sentence behind it, and last what costs most (`parts_exchanged`)
# or rests on the least understanding (`order_differs`).
GUARDS: tuple[NamedGuard, ...] = (
    ("invisible", holds_hidden),
    ("numbers", numbers_differ),
    ("dates", dates_differ),
    ("identifiers", identifiers_differ),
    ("opposites", are_contrary),
    ("spelling", spelling_differs),
    ("code", code_differs),
    ("roles", roles_exchanged),
    ("asking", asks_differ),
    ("quantifiers", quantifiers_differ),
    ("roles", parts_exchanged),
    ("order", order_differs),
)


# beside a model that reads both questions -----------------------------------------------------------------


def numbers_conflict(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    """Find numbers on either side that the other has not, the same ones in another order, or other units."""
    return _units_differ(asked, stored) or _conflict(asked.numbers, stored.numbers)


def dates_conflict(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    """Find dates on either side that the other has not; this, last, next of one thing."""
    both = bool(asked.dates - stored.dates and stored.dates - asked.dates)
    return both or _point_elsewhere(asked, stored)


def code_conflicts(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    """Find pieces of code on either side that the other has not, or the same ones in another order."""
    return _conflict(asked.code, stored.code)


def _conflict(ours: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
    """Return whether each has something that the other has not, or both have the same in another order."""
    here, there = Counter(ours), Counter(theirs)
    return bool(here - there and there - here) or (here == there and ours != theirs)


_CONFLICTS: dict[Guard, Guard] = {
    numbers_differ: numbers_conflict,
    dates_differ: dates_conflict,
    code_differs: code_conflicts,
}


@lru_cache(maxsize=64)
def where_read(guards: tuple[NamedGuard, ...]) -> tuple[NamedGuard, ...]:
    """Return the guards that pay beside a model that reads both questions.

    Whether it matters that only one of them has a number, a date or a piece of code is for the model to say:
    on held-out groups these refused four rewordings for each near miss that it would have served. Two numbers
    that contradict each other are no question of meaning.
    """
    return tuple((name, _CONFLICTS.get(guard, guard)) for name, guard in guards)


def with_guards(guards: Sequence[Guard]) -> tuple[NamedGuard, ...]:
    """Return `GUARDS` and behind them a user's guards, by the names of these functions.

    Raises:
        InvalidInput: One is not a function with a name of its own.
    """
    if not isinstance(guards, (list, tuple)):
        raise InvalidInput(f"guards must be a list of functions, not {type(guards).__name__}")
    named = list(GUARDS)
    for guard in guards:
        name = getattr(guard, "__name__", "")
        if not callable(guard) or not name.isidentifier():
            raise InvalidInput(
                f"guards must be functions with names, for the reasons of misses, not {guard!r}"
            )
        if any(name == known for known, _ in named):
            raise InvalidInput(f"guards: there is another guard of the name {name!r}")
        named.append((name, guard))
    return tuple(named)


def failed_guard(asked: str, stored: str, guards: Sequence[NamedGuard] = GUARDS) -> str | None:
    """Return the name of the first guard that forbids `stored`'s answer for `asked`, None if none does."""
    if asked == stored:
        return None
    one, other = parse_question(asked), parse_question(stored)
    return next((name for name, guard in guards if guard(one, other)), None)
