"""Whether two conversations mean the same, so that the last answer of one may be given in the other.

Pure: whether two turns of users mean the same, and whether two texts are on related subjects, is asked. The
last messages themselves are compared elsewhere, as any two questions are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ibidem.prompts.standing_alone import asks, concerns, is_about_all, is_about_answer, unclear
from ibidem.types import Turns

Relation = Callable[[str, str], bool]
Likeness = Literal["same", "doubt", "other"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """The last message of a user, and the turns before it."""

    last: str
    turns: Turns

    @property
    def needed(self) -> int:
        """How many turns the last message needs to be understood: back to one that is clear by itself.

        All if it is about several, or asks nothing: a reply may accept what was offered long before.
        """
        if is_about_all(self.last) or not asks(self.last):
            return len(self.turns)
        text = self.last
        for count, (said, _) in enumerate(reversed(self.turns)):
            if not unclear(text):
                return count
            text = said
        return len(self.turns)

    def after(self, number: int) -> str:
        """Return what the user says after a turn, which is counted from the end."""
        return self.last if number == 1 else self.turns[1 - number][0]

    def split(self, number: int) -> tuple[list[str], list[str]]:
        """Return what the user says before the last so many turns, and in them."""
        said, at = [said for said, _ in self.turns], len(self.turns) - number
        return said[:at], said[at:]


@dataclass(frozen=True, slots=True)
class Relations:
    """How turns of users are compared.

    Attributes:
        same: Whether two mean the same.
        near: Whether they may, so that it is worth asking.
        related: Whether they are on related subjects.
        alike: Whether two answers say about the same.
    """

    same: Relation
    near: Relation
    related: Relation
    alike: Relation


def compare(asked: Conversation, stored: Conversation, relations: Relations) -> Likeness:
    """Return whether two conversations mean the same, if their last messages do.

    They do if the turns that the last message needs are the same, and no other turn, of either, can matter to
    it. In doubt, all turns that it needs in one may be said in the other too, or it needs none.
    """
    needed = max(asked.needed, stored.needed)
    if _agree(asked, stored, needed, relations) and _others_do_not_matter(asked, stored, needed, relations):
        return "same"
    if not unclear(asked.last) or not unclear(stored.last):
        return "doubt"
    pairs = ((stored, asked), (asked, stored))
    return "doubt" if any(_is_said_in(one, other, relations.near) for one, other in pairs) else "other"


def _agree(asked: Conversation, stored: Conversation, needed: int, relations: Relations) -> bool:
    """Return whether the last so many turns are the same, and answered alike where that matters."""
    if min(len(asked.turns), len(stored.turns)) < needed:
        return False
    replies = not asks(asked.last) or not asks(stored.last)
    for number in range(1, needed + 1):
        (said, answer), (said_there, answer_there) = asked.turns[-number], stored.turns[-number]
        follows = [one.last if replies else one.after(number) for one in (asked, stored)]
        if not answers_agree(answer, answer_there, follows):
            return False
        if number == 1 and plain(answer) != plain(answer_there) and not relations.alike(answer, answer_there):
            return False
        if not relations.same(said, said_there):
            return False
    return True


def _others_do_not_matter(
    asked: Conversation, stored: Conversation, needed: int, relations: Relations
) -> bool:
    """Return whether the turns before the last so many are the same, or can matter to none of these."""
    (before, kept), (before_there, kept_there) = asked.split(needed), stored.split(needed)
    while before and before_there and relations.same(before[-1], before_there[-1]):
        before, before_there = before[:-1], before_there[:-1]
    sides = ((before, [*kept, asked.last]), (before_there, [*kept_there, stored.last]))
    return not any(_may_matter(others, texts, relations.related) for others, texts in sides)


def _may_matter(others: Sequence[str], texts: Sequence[str], related: Relation) -> bool:
    turns = [(said, "") for said in others]
    if any(concerns(text, turns) for text in texts):
        return True
    return any(related(text, said) for text in texts for said in others)


def _is_said_in(one: Conversation, other: Conversation, near: Relation) -> bool:
    """Return whether what the last message of one needs may be said in the other, too."""
    _, needed = one.split(one.needed)
    return all(any(near(said, there) for there, _ in other.turns) for said in needed)


_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
_CLOSING = re.compile(
    r"\b(?:anything|something) else\b|\b(?:how|what) (?:else )?(?:can|may) i (?:do|help)|"
    r"\b(?:does|did) (?:that|this) help|\bwhat (?:would you like|do you want) to know"
)
_DENIES = re.compile(r"\b(?:no|not|never|none|nobody|nothing|cannot|unable|impossible|without|only)\b|n't\b")
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")


def answers_agree(one: str, other: str, follows: Sequence[str]) -> bool:
    """Return whether what the user says after it means the same after either answer.

    So it does after the same text. After others if the user is still with what he asked himself, neither
    asks him something, and they hold no other numbers, nor one of them alone a denial.
    """
    one, other = plain(one), plain(other)
    if one == other:
        return True
    if any(map(is_about_answer, follows)):
        return False
    one, other = _without_closing(one), _without_closing(other)
    numbers, others = set(_NUMBER.findall(one)), set(_NUMBER.findall(other))
    if "?" in one + other or (numbers and others and numbers != others):
        return False
    return bool(_DENIES.search(one)) == bool(_DENIES.search(other))


def _without_closing(text: str) -> str:
    """Return a text without the questions by which assistants end: whether there is anything else."""
    said = _SENTENCE.findall(text)
    return " ".join(one for one in said if not (one.endswith("?") and _CLOSING.search(one)))


def plain(text: str) -> str:
    """Return a text without what matters to no reader: case, kinds of apostrophes, blanks."""
    return " ".join(text.casefold().replace("\u2019", "'").split())
