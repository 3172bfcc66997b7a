"""Compare who acts on whom, whatever the verb: same words, but two parts exchanged. Pure; English.

No verb is known here. A question becomes its significant words in the order of a plain statement: the object
behind the verb ("who did Ann call": Ann call who), the agent before it ("Ann was called by Bob": Bob call
Ann). If one then reads A, verb, B and the other B, verb, A, the roles are exchanged. They are not where a
part only moved, or the members of a list did.
"""

from __future__ import annotations

import re
from functools import lru_cache

from ibidem.matching import words_en
from ibidem.matching.opposites_en import ONE_NAME
from ibidem.matching.text import QuestionFeatures, root, words_of

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
