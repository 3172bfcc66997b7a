"""The earlier turns of a conversation: told apart from the prompt, and compared by digests.

A conversation is known by the digest of its turns, each with the digest of those before it. Where an answer
came from the cache, the turn counts with the stored question (`ibidem.storage.turns`): rewording an early
question does not make a new conversation of it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ibidem.errors import InvalidInput
from ibidem.prompts.documents import Message, Prompt, of_messages
from ibidem.prompts.standing_alone import is_small_talk
from ibidem.types import turn_digest

HistoryMode = Literal["exact", "standalone", "meaning", "ignore"]
MODES: tuple[HistoryMode, ...] = ("exact", "standalone", "meaning", "ignore")
DEFAULT: HistoryMode = "standalone"
VARIABLE = "IBIDEM_HISTORY"


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user said, and what was answered: the texts of one message each, as a rule."""

    said: tuple[str, ...]
    answered: tuple[str, ...]

    @property
    def question(self) -> str:
        """Return what the user said, as one text."""
        return "\n".join(self.said)

    @property
    def answer(self) -> str:
        """Return what was answered, as one text."""
        return "\n".join(self.answered)

    @property
    def digest(self) -> str:
        """Hash the turn; with several messages or none it is never one of single messages."""
        if len(self.said) == len(self.answered) == 1:
            return turn_digest(self.said[0], self.answered[0])
        return turn_digest(json.dumps([self.said, self.answered]), "\0")


def mode_of(given: str | None = None) -> HistoryMode:
    """Return how histories are compared: as given, else by the variable, else by default.

    Raises:
        InvalidInput: There is no such way.
    """
    found = given if given is not None else os.environ.get(VARIABLE) or DEFAULT
    for mode in MODES:
        if found == mode:
            return mode
    name = "history" if given is not None else VARIABLE
    raise InvalidInput(f"{name} must be one of {', '.join(MODES)}, not {found!r}")


def split_history(prompt: Prompt) -> tuple[Prompt, tuple[Turn, ...]] | None:
    """Split a prompt that ends with what the user says: without the turns before it, and these turns.

    None if they are not texts alone: calls of tools, images, names of speakers.
    """
    if not prompt.messages or prompt.messages[-1].role != "human":
        return None
    *before, last = prompt.messages
    said = [message for message in before if message.role != "system"]
    if not all(message.plain and message.role in ("human", "ai") for message in said):
        return None
    if not said:
        return prompt, ()
    kept = [message for message in before if message.role == "system"]
    kind = _KIND.match(prompt.frame)
    return of_messages([*kept, last], kind[1] if kind else ""), tuple(_turns(said))


_KIND = re.compile(r'\["(\w+)", \[')


def _turns(messages: Sequence[Message]) -> list[Turn]:
    """Return the turns: all that the user says at one time, and all that is answered."""
    turns: list[tuple[list[str], list[str]]] = []
    for message in messages:
        said = message.role == "human"
        if not turns or (said and turns[-1][1]):
            turns.append(([], []))
        question, answer = turns[-1]
        (question if said else answer).append(message.text)
    return [Turn(tuple(said), tuple(answered)) for said, answered in turns]


def told(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return the turns that count: without greetings and thanks."""
    return tuple(turn for turn in turns if not is_small_talk(turn.question, turn.answer))
