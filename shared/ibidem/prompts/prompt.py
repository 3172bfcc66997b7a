"""Represent a prompt as the model sees it: its texts in order, and the frame of everything else."""

from __future__ import annotations

from dataclasses import dataclass

from ibidem.types import digest


@dataclass(frozen=True, slots=True)
class Segment:
    """A text of the prompt and the role that says it: human, system, ai, tool or function."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Cut:
    """A range of a segment's text that is not compared, and the label that is compared instead."""

    segment: int
    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt split into its texts, in order, and its frame: canonical JSON of everything that is not text.

    `known` is False for a prompt that is neither plain text nor messages of a known kind. `cut` is a range
    of its text that is left out of the comparison.
    """

    frame: str
    segments: tuple[Segment, ...]
    known: bool = True
    cut: Cut | None = None

    @property
    def fingerprint(self) -> str:
        """Hash the prompt: equal for two prompts that look the same to the model."""
        return digest(self.frame, *(segment.text for segment in self.segments))

    @property
    def last_human(self) -> str:
        """Return the last text of the user; empty if there is none."""
        return next((s.text for s in reversed(self.segments) if s.role == "human"), "")


def plain(text: str) -> Prompt:
    """Build the prompt of a completion model."""
    return Prompt("text", (Segment("human", text),))


class Ordinals:
    """Numbers random ids of tool calls in order of appearance, the only thing a model can use of them."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of(self, call_id: object) -> int:
        """Return the number of this id, a new one if it was not seen before."""
        return self._numbers.setdefault(str(call_id), len(self._numbers))
