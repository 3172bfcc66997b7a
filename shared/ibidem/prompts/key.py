"""A prompt as the model sees it: its texts in order, and everything that is not text."""

from __future__ import annotations

from dataclasses import dataclass

from ibidem.types import digest


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of text in the prompt, and who says it: human, system, ai, tool, function."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Cut:
    """A part of the text of a segment that is not compared, and what is said in its place."""

    segment: int
    start: int
    end: int
    said: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt taken apart: its texts in order, and the frame, canonical JSON of all that is not text.

    `known` is False for a prompt that is neither plain text nor messages we understand. `cut` is what a
    skeleton of it leaves out.
    """

    frame: str
    segments: tuple[Segment, ...]
    known: bool = True
    cut: Cut | None = None

    @property
    def fingerprint(self) -> str:
        """Equal for two prompts that look the same to the model."""
        return digest(self.frame, *(segment.text for segment in self.segments))

    @property
    def last_human(self) -> str:
        """The last text the user says; empty if there is none."""
        return next((s.text for s in reversed(self.segments) if s.role == "human"), "")


def plain(text: str) -> Prompt:
    """The prompt of a completion model."""
    return Prompt("text", (Segment("human", text),))


class Ordinals:
    """Random ids of tool calls -> the order in which they appear, which is all a model can use them for."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of(self, call_id: object) -> int:
        """The number of this id, a new one if it was not seen before."""
        return self._numbers.setdefault(str(call_id), len(self._numbers))
