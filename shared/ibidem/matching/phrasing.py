"""How a question is put: words in one spelling, what they are about, who does what to whom. Pure; English.

Unlike `wording`, which finds what must not differ, this finds what may: politeness, contractions, spelling,
word order, slips of the keyboard.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from ibidem._util.text import strip_invisible
from ibidem.matching import english
from ibidem.matching.english import FILLERS, PERSONS, SMALL_WORDS

_MOST_TWINS = 64  # words of one side that are compared with all of the other
ENGLISH_SHARE = 0.3  # least share of known small words

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d+(?:[.,:]\d+)*")
_AMOUNT = re.compile(r"\bhow (?:many|much)\b|\bnumber of\b|\bcount\b|\btotal\b")
_ISE = re.compile(r"(\w{3,})is(e|es|ed|ing|ation|ations)")
_NOT_IZE = frozenset(
    (
        "prom adv exerc surpr superv rev comprom desp disgu improv telev franch appra conc merchand enterpr "
        "prec parad expert otherw likew adver cru bru pra"
    ).split()
)


@dataclass(frozen=True, slots=True)
class Phrasing:
    """A question taken apart.

    `words` in one spelling and in order; `stems` of the content words; `fillers`, `prepositions` and
    `comparisons` counted; `asks` who, when, how, an amount; `mode` what a yes-or-no question begins with, ""
    for others; `modal` the first such word behind a question word; `quantifiers` all or any; `roles` the
    direction word before each content word; `phrases` runs of content words with the direction word before
    each; `bag` all words sorted, "me" as "i"; `small_share` of the words that are small words of English.
    """

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
    bag: tuple[str, ...]
    small_share: float

    @property
    def is_english(self) -> bool:
        """Whether enough of its words are understood to judge how they are put together."""
        return self.small_share >= ENGLISH_SHARE


@lru_cache(maxsize=4096)
def take_apart(text: str) -> Phrasing:
    """Read a question; some tens of microseconds, remembered for the last 4,096."""
    words = list(words_of(text))
    small = sum(word in SMALL_WORDS for word in words)
    return Phrasing(
        words=tuple(words),
        stems=tuple(stem(word) for word in words if word not in SMALL_WORDS),
        fillers=Counter(word for word in words if word in FILLERS),
        prepositions=Counter(word for word in words if word in english.PREPOSITIONS),
        comparisons=Counter(english.COMPARISONS[word] for word in words if word in english.COMPARISONS),
        asks=_asks(words),
        mode=_mode(words),
        modal=_modal(words),
        quantifiers=frozenset(english.QUANTIFIERS[word] for word in words if word in english.QUANTIFIERS),
        negations=sum(word in english.NEGATIONS for word in words),
        roles=_roles(words),
        phrases=_phrases(words),
        bag=tuple(sorted(PERSONS.get(word, word) for word in words)),
        small_share=small / len(words) if words else 0.0,
    )


def words_of(text: str) -> Iterator[str]:
    """The words of a text in one spelling, contractions and short forms written out."""
    for word in _WORD.findall(strip_invisible(text).lower().replace("\u2019", "'")):
        if word in english.CONTRACTIONS:
            yield from english.CONTRACTIONS[word].split()
        elif word.endswith("n't"):
            yield from (word[:-3], "not")
        elif word in english.SHORT_FORMS:
            yield from english.SHORT_FORMS[word].split()
        else:
            yield american(word.removesuffix("'s"))


@lru_cache(maxsize=16384)
def american(word: str) -> str:
    """The word in American spelling, as most models have seen it most."""
    singular = word.removesuffix("s")
    if word in english.SPELLINGS:
        return english.SPELLINGS[word]
    if singular in english.SPELLINGS:
        return english.SPELLINGS[singular] + "s"
    found = _ISE.fullmatch(word)
    return f"{found[1]}iz{found[2]}" if found and found[1] not in _NOT_IZE else word


def _asks(words: list[str]) -> frozenset[str]:
    asks = {english.QUESTION_WORDS[word] for word in words if word in english.QUESTION_WORDS}
    if _AMOUNT.search(" ".join(words)):
        asks.add("amount")
    elif "how" in words:
        asks.add("how")
    return frozenset(asks)


def _mode(words: list[str]) -> str:
    """What a yes-or-no question begins with; "do I have to", "do I need to" is "must"."""
    if not words or words[0] not in english.MODES:
        return ""
    if re.match(r"(?:do|does) (?:\w+ ){1,6}?(?:have|need) to\b", " ".join(words)):
        return "must"
    return english.MODES[words[0]]


def _modal(words: list[str]) -> str:
    """May, must, should, was, will in "when may I", "how long before I start must I"; "" for yes or no."""
    if not words or words[0] not in english.ASKED_FOR:
        return ""
    return next((english.MODES[word] for word in words[1:10] if word in english.MODES), "")


def _roles(words: list[str]) -> dict[str, str]:
    """Content words and persons -> the direction word before their phrase: "from", "to"; "" if none."""
    roles: dict[str, str] = {}
    direction, inside = "", False
    for word in words:
        if word in english.DIRECTIONS:
            direction, inside = english.SAME_DIRECTION.get(word, word), False
        elif word in english.SPEAKERS:
            roles.setdefault(
                "@" + PERSONS[word], direction or ("subject" if word in english.SUBJECTS else "")
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
    found: Counter[tuple[str, ...]] = Counter()
    direction = ""
    run: list[str] = []
    for word in (*words, "the"):
        if word in PERSONS or word in english.NEGATIONS:
            run.append("@" + PERSONS.get(word, "not"))
        elif word in SMALL_WORDS:
            if run:
                phrase = (direction, *run)
                found[phrase] += 1
                direction, run = "", []
            direction = english.SAME_DIRECTION.get(word, word) if word in english.DIRECTIONS else direction
        else:
            run.append(stem(word))
    return found


@lru_cache(maxsize=16384)
def stem(word: str) -> str:
    """Without the commonest endings of English."""
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
    """What the forms of a word have in common: "hire", "hires", "hired", "hiring"; "tell", "told"."""
    word = english.IRREGULAR.get(word, word)
    if len(word) > 4 and word.endswith(("ies", "ied")):
        return word[:-3] + "y"
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith(("ss", "ee", "eed")):
            word = word.removesuffix(ending)
            break
    word = english.SPELLINGS.get(word, word)
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def unshared(one: Phrasing, other: Phrasing) -> tuple[list[str], list[str]]:
    """Content words of one side only; a word and its misspelling count as shared."""
    if one.stems == other.stems:
        return [], []
    a, b = Counter(one.stems), Counter(other.stems)
    here, there = list((a - b).elements()), list((b - a).elements())
    # Of more words that differ, misspellings do not make the same question.
    for word in list(here) if max(len(here), len(there)) <= _MOST_TWINS else ():
        twin = next((candidate for candidate in there if misspelt(word, candidate)), None)
        if twin is not None:
            here.remove(word)
            there.remove(twin)
    return ([], []) if "".join(here) == "".join(there) else (here, there)


@lru_cache(maxsize=16384)
def misspelt(one: str, other: str) -> bool:
    """Whether one word is likely the other with a slip or another ending."""
    if min(len(one), len(other)) < 4 or one.isdigit() or other.isdigit():
        return False
    if any({one[: len(a)], other[: len(b)]} == {a, b} for x in english.PREFIXES for a, b in (x, x[::-1])):
        return False
    of_one_kind = min(len(one), len(other)) >= 5 and abs(len(one) - len(other)) <= 4
    if of_one_kind and (one.startswith(other[:-2]) or other.startswith(one[:-2])):
        return True
    a, b = _pairs(one), _pairs(other)
    alike = 2 * len(a & b) / (len(a) + len(b))
    return alike >= (0.62 if one[0] == other[0] else 0.75)


def _pairs(word: str) -> frozenset[str]:
    word = f"^{word}$"
    return frozenset(word[at : at + 2] for at in range(len(word) - 1))


def same_place(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether the two have as many words, and at most two neighbouring ones differ."""
    if len(one) != len(other):
        return False
    differing = [at for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    return bool(differing) and differing[-1] - differing[0] <= 1


def roles_exchanged(one: Phrasing, other: Phrasing) -> bool:
    """Whether the same words have other roles.

    Two shared words swap their direction words ("bytes to string", "string to bytes"), one has the contrary
    one ("to Boston", "from Boston"), or all words are the same and phrases are not just put elsewhere ("dog
    bites man", "can I sue you"; but "on Monday, which flights" is "which flights on Monday").
    """
    if one.bag == other.bag and one.words != other.words and one.phrases != other.phrases:
        return not (_listed_otherwise(one, other) or _not_elsewhere(one, other))
    moves = {
        (role, other.roles[word]) for word, role in one.roles.items() if other.roles.get(word, role) != role
    }
    return any((there, here) in moves or (here, there) in english.CONTRARY for here, there in moves)


def _not_elsewhere(one: Phrasing, other: Phrasing) -> bool:
    """Whether only "not" changed places: "why is it not charging", "why isn't it charging"."""
    if one.negations != 1 or {"but", "rather", "and", "or"} & set(one.words):
        return False
    return [w for w in one.words if w != "not"] == [w for w in other.words if w != "not"]


def _listed_otherwise(one: Phrasing, other: Phrasing) -> bool:
    """Whether only the members of one list changed places: "eggs, onions and salt", "salt, eggs and onions".

    One stretch of words differs, it holds "and" or "or", and nothing in it says who acts on whom.
    """
    differing = [at for at, (a, b) in enumerate(zip(one.words, other.words, strict=True)) if a != b]
    start, end = differing[0], differing[-1] + 1
    stretch = one.words[start:end]
    active = (
        english.PREPOSITIONS | english.SPEAKERS | english.NEGATIONS | english.MODES.keys() | {"than", "as"}
    )
    return bool({"and", "or"} & set(stretch)) and not active & set(stretch) and len(stretch) <= 7


def asks_otherwise(one: Phrasing, other: Phrasing) -> bool:
    """Whether the same is asked of another mode, time or kind: may I, must I; did it, does it; why, whether.

    By a contrast of what two yes-or-no questions begin with, or of the modal verbs of two others, or by the
    one word that differs at all.
    """
    if frozenset((one.mode, other.mode)) in english.CONTRASTS:
        return True
    if frozenset((one.modal, other.modal)) in english.CONTRASTS_WITHIN:
        return True
    if (one.words[:1] == ("why",) and other.mode) or (other.words[:1] == ("why",) and one.mode):
        return one.asks != other.asks
    if len(one.words) != len(other.words):
        return False
    differing = [(a, b) for a, b in zip(one.words, other.words, strict=True) if a != b]
    if len(differing) != 1:
        return False
    kinds = [frozenset(map(table.get, differing[0])) for table in (english.TENSES, english.ASKED_FOR)]
    return any(len(kind - {None}) == 2 for kind in kinds)


def quantified_otherwise(one: Phrasing, other: Phrasing) -> bool:
    """All here, any there."""
    return bool(one.quantifiers and other.quantifiers) and not one.quantifiers & other.quantifiers
