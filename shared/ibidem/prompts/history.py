"""The earlier turns of a conversation: told apart from the prompt, and compared by digests.

A conversation is known by the digest of its turns, each with the digest of those before it. Where an answer
came from the cache, the turn counts with the stored question (`ibidem.storage.turns`): rewording an early
question does not make a new conversation of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ibidem.errors import InvalidInput
from ibidem.prompts.documents import Message, Prompt, of_messages
from ibidem.prompts.standing_alone import is_small_talk
from ibidem.types import turn_digest

HistoryMode = Literal["exact", "standalone", "ignore"]
MODES: tuple[HistoryMode, ...] = ("exact", "standalone", "ignore")
DEFAULT: HistoryMode = "standalone"
VARIABLE = "IBIDEM_HISTORY"


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user said, and the answer; either may be empty."""

    question: str
    answer: str

    @property
    def digest(self) -> str:
        """Hash the turn."""
        return turn_digest(self.question, self.answer)


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
    turns: list[Turn] = []
    for message in messages:
        last = turns[-1] if turns else None
        if message.role == "human":
            if last is not None and not last.answer:
                turns[-1] = Turn(f"{last.question}\n{message.text}", "")
            else:
                turns.append(Turn(message.text, ""))
        elif last is None:
            turns.append(Turn("", message.text))
        else:
            turns[-1] = Turn(last.question, f"{last.answer}\n{message.text}" if last.answer else message.text)
    return turns


def told(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return the turns that count: without greetings and thanks."""
    return tuple(turn for turn in turns if not is_small_talk(turn.question, turn.answer))
