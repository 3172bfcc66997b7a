"""Does the last message of a conversation stand alone? Rules for English; in doubt it does not.

A message stands alone if its answer is the same whatever was said before: it names its subject, refers to
nothing, and nothing said before is about its subject or holds for all answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from ibidem._util import dialogue_en as en
from ibidem._util.words_en import CONTRACTIONS, PERSONS, PREPOSITIONS, SMALL_WORDS
from ibidem.matching.text import parse_question, stem

# Least cosine, of the default embedder, of a question and an earlier message about the same subject.
RELATED = 0.25
_LONGEST = 40  # words; a longer message brings a context of its own, or is a text to work on
_LONGEST_TEXT, _MOST_TURNS = 2_000, 16  # characters of a message; turns that are read and embedded
_ENGLISH_SHARE, _FEW = 0.2, 8  # least share of small words in an English text; words that do not tell
_RICH = 3  # words for its subject, with which a question hardly means a part of what was named before
_SHORT_REPLY = 30  # words of an answer to a greeting
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d[\d.,:/-]*")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
_POLITE = re.compile(
    r"^(?:(?:hi|hello|hey|thanks|thank you|thx|ok|okay|great|perfect|cool|nice|awesome|please|excellent|"
    r"alright|all right|got it|good (?:morning|afternoon|evening)|there|again|so much|very much|a lot|"
    r"for the help)\b[\s,.!;:-]*)+"
)
_HARMLESS = re.compile("|".join(en.HARMLESS))
_ABOUT = re.compile("|".join(en.ABOUT_CONVERSATION))
_INSTRUCTION = re.compile("|".join(en.INSTRUCTIONS))
_SYSTEM = re.compile("|".join(en.HISTORY_MATTERS), re.IGNORECASE)
_REFERS_BACK = re.compile("|".join(en.REFERS_BACK), re.IGNORECASE)
_CONTINUING, _FACT = re.compile(en.CONTINUING), re.compile(en.FACTS)
_NAME = re.compile(
    r"(?<![.!?:\n] )(?<!^)\b[A-Z][\w&+-]*|\b\w*\d\w*|\b[A-Z]{2,}\w*\b|\b[a-z]+[A-Z]\w*|"
    r"[\"“'`][^\"”'`]+[\"”'`]"
)
_WANTS = re.compile(
    r"^(?:i|we)(?: would|'d)? (?:want|need|like|wish|have)(?: to (?:know|ask|find out|understand))\b"
)
_DEFINITE = re.compile(r"\bthe ((?:[\w-]+ )?[\w-]+)\b(?! of\b)")
_OPEN_WHICH = re.compile(r"\bwhich (?:is|are|was|were|do|does|did|can|should|would|will|has|have|of|to|$)")
_DANGLING = re.compile(
    r"\b(?:about|for|with|from|to|on|in|at|of|by|than|the|most|least|cheapest|best|fastest)\s*[?.!]*$"
)


def dependence(
    question: str, turns: Sequence[tuple[str, str]], system: str = "", *, condensed: bool = False
) -> str:
    """Return in what way the question may depend on what was said before; "" if it stands alone.

    Args:
        question: The last message of the user.
        turns: What the user said before, each with the answer.
        system: The system prompt.
        condensed: Whether a model made the question of the last message and the turns: then it may be about
            their subject.
    """
    if len(turns) > _MOST_TURNS or any(len(one) > _LONGEST_TEXT for one in (question, *dict(turns))):
        return "long"
    if reason := unclear(question):
        return reason
    if matters(system):
        return "system prompt"
    return concerns(question, turns, system, condensed=condensed)


def concerns(
    question: str, turns: Sequence[tuple[str, str]], system: str = "", *, condensed: bool = False
) -> str:
    """Return in what way turns before a question may matter to it, in their words; "" if in none."""
    if any(tells(said) or not parse_question(said).is_english for said, _ in turns if said):
        return "told"
    if condensed:
        return ""
    subject, known = _subject(question), set[str]()
    for said, answer in turns:
        known |= _content(said) | _content(_last_question(answer))
    if subject & known:
        return "same subject"
    named = {name for said, _ in turns for name in _names(said)} - set(_words(f"{question} {system}"))
    if named - en.GENERIC_NAMES and not _names(question) and len(subject) < _RICH:
        return "named before"
    return ""


@lru_cache(maxsize=64)
def matters(system: str) -> bool:
    """Return whether a system prompt makes what was said before matter to every answer, or may do so."""
    return bool(_SYSTEM.search(system)) or _is_foreign(system)


def _is_foreign(text: str) -> bool:
    """Return whether a text is in another language than English, where its words tell."""
    words = _words(text)
    return len(words) > _FEW and sum(word in SMALL_WORDS for word in words) < _ENGLISH_SHARE * len(words)


@lru_cache(maxsize=4096)
def unclear(question: str) -> str:
    """Return why a message cannot be understood by itself; "" if it can."""
    text = _plain(question)
    if "\n" in question.strip() or len(text.split()) > _LONGEST:
        return "long"
    if not parse_question(question).is_english:
        return "language"
    text = _POLITE.sub("", text)
    if _CONTINUING.match(text):
        return "goes on"
    words = _words(text)
    if not words or (words[0] not in en.ASKING and not _WANTS.match(text)):
        return "no question"
    if _ABOUT.search(text):
        return "about the conversation"
    rest = _words(_HARMLESS.sub(" ", text))
    if not en.REFERRING.isdisjoint(rest) or not en.COMPARATIVES.isdisjoint(rest):
        return "refers"
    if _OPEN_WHICH.search(text) or _DANGLING.search(text):
        return "incomplete"
    # "The postage" is that of something; a gym of the hotel is not.
    definite = {stem(word) for found in _DEFINITE.findall(text) for word in _words(found)}
    return "" if _names(question) or _subject(question) - definite else "no subject"


_POINTING = frozenset(("goes on", "about the conversation", "refers", "incomplete", "no subject"))


def points_back(question: str) -> bool:
    """Return whether a message surely means something said before: without that it is no question."""
    return unclear(question) in _POINTING


def asks(message: str) -> bool:
    """Return whether a message, or what follows "and" and the like, asks something: no reply, no order."""
    text = _POLITE.sub("", _plain(message))
    words = _words(re.sub(r"^(?:and|but|so|or|also|then)\b[\s,]*", "", text))
    return message.rstrip().endswith("?") or (bool(words) and words[0] in en.ASKING)


def is_about_answer(message: str) -> bool:
    """Return whether a message may be about the answer before it: a reply, an order, "the second one"."""
    text = _plain(message)
    return not asks(message) or bool(_ABOUT.search(text)) or not en.ABOUT_ANSWERS.isdisjoint(_words(text))


def is_about_all(message: str) -> bool:
    """Return whether a message may be about more than the turn before it."""
    return not en.ABOUT_SEVERAL.isdisjoint(_words(_plain(message)))


def refers_back(answer: str) -> bool:
    """Return whether an answer refers to what was said before it."""
    return bool(_REFERS_BACK.search(answer.replace("’", "'")))


def is_small_talk(said: str, answer: str) -> bool:
    """Return whether a turn is a greeting, thanks and the like, and its answer no more than that.

    Such a turn says nothing that a later one could mean.
    """
    words = _words(_plain(said))
    if not en.SMALL_TALK.issuperset(words) or len(words) > 12:
        return False
    if not (words or answer.strip()):
        return False
    replied = answer.split()
    return len(replied) <= _SHORT_REPLY and not any(character.isdigit() for character in answer)


def tells(said: str) -> bool:
    """Return whether a message says something of its author, or how to answer, rather than asking."""
    if is_small_talk(said, ""):
        return False
    text = _plain(said)
    if _INSTRUCTION.search(text):
        return True
    for sentence in _SENTENCE.findall(text):
        sentence = _POLITE.sub("", sentence.strip())
        words = _words(sentence)
        if not words or en.SMALL_TALK.issuperset(words):
            continue
        asks = sentence.rstrip().endswith("?") or words[0] in en.ASKING
        if not asks or _FACT.search(sentence):
            return True
    return False


def _plain(text: str) -> str:
    return text.strip().lower().replace("’", "'")


def _words(text: str) -> list[str]:
    return [word for found in _WORD.findall(text.lower()) for word in CONTRACTIONS.get(found, found).split()]


@lru_cache(maxsize=4096)
def _content(text: str) -> frozenset[str]:
    """Return the stems of the words that say what a text is about."""
    return frozenset(
        stem(word)
        for word in _words(text)
        if word not in SMALL_WORDS and word not in en.SMALL_TALK and len(word) > 2
    )


_COMMON = frozenset(map(stem, en.ATTRIBUTES | en.VERBS))


def _subject(question: str) -> frozenset[str]:
    """Return the stems of the words that name what a question is about."""
    small = SMALL_WORDS | PERSONS.keys() | PREPOSITIONS | en.ASKING
    names = frozenset(stem(word) for name in _names(question) for word in _words(name))
    found = frozenset(stem(w) for w in _words(question) if w not in small and len(w) > 2)
    return frozenset(found - _COMMON) | (names - frozenset(map(stem, small)))


def _names(text: str) -> frozenset[str]:
    """Return the names, numbers and quotations of a text, in lower case."""
    found = (name.strip("\"“”'`").lower() for name in _NAME.findall(text.strip()))
    return frozenset(name for name in found if name not in ("i", "i'm", "i've", "i'd", "i'll", "ok"))


def _last_question(answer: str) -> str:
    sentences = _SENTENCE.findall(answer.strip())
    return sentences[-1] if sentences and sentences[-1].rstrip().endswith("?") else ""
