"""Answers that are no examples: refusals, what says that there is no answer, error messages, cut-off texts.

A provider's finish reason tells some of these, and then nothing is stored. The rest is told by the words, in
English. `python -m tests.benchmarks.clean` measures how often that is right.

An answer is a refusal, or no answer, if it begins by saying so and says little else: courtesy, reasons and
offers do not count. "I can't see your screen, but ..." goes on with an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

from ibidem._util import declining_en as en

Flaw = Literal["refusal", "no_answer", "error", "truncated"]

_MOST = 2_000  # characters that are read: what begins with a refusal and is longer goes on with an answer
# Words, and their share, from which on an answer says something beside that there is none.
_SUBSTANCE, _SHARE = 7, 0.25
_LONGEST_ERROR = 600  # characters; a longer text that begins so explains the error
_FEWEST_WORDS = 4  # of a text whose last word tells that it was cut: shorter ones are names and labels

_QUOTES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u201c": '"', "\u201d": '"'})
_WRAPPING = " \t\n*_\"'`#>"
_SPEAKER = re.compile(r"(?:assistant|ai|bot|answer|response)\s{0,2}:\s{0,2}", re.IGNORECASE)
_BLANKS = re.compile(r"[^\S\n]+")
_CLAUSE_ENDS = re.compile(
    r"[.!?][\"')]{0,2}(?=\s|$)|\n|; | -{1,2} |\u2014|: |"
    r",? (?:but|however|though|so|because|since|instead)\b,? ?|"
    r",? and (?=(?:i|it|that|this)\b)|, (?=here\b|i\b|you can\b)",
    re.IGNORECASE,
)
_REFUSAL = re.compile(f"{en.LEAD}(?:{'|'.join(en.REFUSALS)})", re.IGNORECASE)
_NO_ANSWER = re.compile(f"{en.LEAD}(?:{'|'.join(en.NO_ANSWERS)})", re.IGNORECASE)
_BASED_ON, _CANNOT_SAY = re.compile(en.BASED_ON, re.IGNORECASE), re.compile(en.CANNOT_SAY, re.IGNORECASE)
_NOTHING = re.compile(en.NOTHING, re.IGNORECASE)
_COURTESY, _BESIDE = re.compile(en.COURTESY, re.IGNORECASE), re.compile(en.BESIDE, re.IGNORECASE)
_LECTURE = re.compile(en.LECTURE, re.IGNORECASE)

_TRACEBACK = "Traceback (most recent call last):"
_RAISED = re.compile(r"(?:\w{1,60}\.){0,8}[A-Z]\w{0,60}(?:Error|Exception|Timeout|Warning): ")
_FAILURE, _FAILED = re.compile(en.FAILURE, re.IGNORECASE), re.compile(en.FAILED, re.IGNORECASE)
_EXPLAINED = re.compile(en.EXPLAINED, re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]{0,3}```", re.MULTILINE)
_LAST_WORD = re.compile(r"(?:^|\s)([a-z]+)$")


def flaw_of(answer: str) -> Flaw | None:
    """Return why the answer is no example of how to answer, or None. Takes time linear in its length."""
    text = answer.strip()
    if _is_error(text):
        return "error"
    if _is_cut(text):
        return "truncated"
    if len(text) > _MOST:
        return None
    text = text.translate(_QUOTES).strip(_WRAPPING)
    if spoken := _SPEAKER.match(text):
        text = text[spoken.end() :]
    if _NOTHING.fullmatch(text.rstrip(" .!").removeprefix("Sorry, ")):
        return "no_answer"
    return _declined(text)


@lru_cache(maxsize=1024)  # 2 MB at most; selections for one prompt after the other meet the same examples
def _declined(text: str) -> Flaw | None:
    """Return whether the text begins with a refusal, or with there being no answer, and says little else."""
    found: Flaw | None = None
    substance = words = 0
    for clause in _clauses(text):
        words += len(clause.split())
        if flaw := _flaw_of_clause(clause):
            found = found or flaw
        elif found is None and not _COURTESY.match(clause):
            return None
        elif found is not None and not _says_nothing(clause):
            substance += len(clause.split())
    return found if substance < max(_SUBSTANCE, _SHARE * words) else None


def _clauses(text: str) -> Iterator[str]:
    """Yield the clauses one by one: of most answers the first says that there is nothing to find."""
    text, begin = _BLANKS.sub(" ", text), 0
    for end in _CLAUSE_ENDS.finditer(text):
        if clause := text[begin : end.start()].strip(_WRAPPING + ",-"):
            yield clause
        begin = end.end()
    if clause := text[begin:].strip(_WRAPPING + ",-"):
        yield clause


def _flaw_of_clause(clause: str) -> Flaw | None:
    if _NO_ANSWER.match(clause):
        return "no_answer"
    if (based := _BASED_ON.match(clause)) and _CANNOT_SAY.match(clause, based.end()):
        return "no_answer"
    return "refusal" if _REFUSAL.match(clause) else None


def _says_nothing(clause: str) -> bool:
    """Return whether a clause beside a refusal is courtesy, an offer, or a lecture."""
    return bool(_COURTESY.match(clause) or _BESIDE.match(clause) or _LECTURE.search(clause))


def _is_error(text: str) -> bool:
    if text.startswith(_TRACEBACK):
        return True
    if len(text) > _LONGEST_ERROR:
        return False
    if text.startswith("{"):
        return _is_error_object(text)
    begins = _RAISED.match(text) or _FAILURE.match(text)
    return bool(_FAILED.fullmatch(text) or (begins and not _EXPLAINED.search(text)))


def _is_error_object(text: str) -> bool:
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(read, dict) and any(read.get(name) for name in ("error", "errors"))


def _is_cut(text: str) -> bool:
    """Return whether the text stops where no text ends: in a block of code, a list, a sentence."""
    if len(_FENCE.findall(text)) % 2 or text.endswith((",", "(", "[", "{")):
        return True
    last = _LAST_WORD.search(text[-40:])
    return (
        last is not None and last[1] in en.GOES_ON and len(text.split(None, _FEWEST_WORDS)) >= _FEWEST_WORDS
    )
