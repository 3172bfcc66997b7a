"""What an advice is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Step = Literal["cache", "labels", "few-shot", "documents", "prompt", "fine-tuning"]


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing that would pay.

    The `step` it belongs to, the `figures` it rests on by name, the command or option to use, when not to.
    """

    step: Step
    title: str
    figures: dict[str, str]
    do: str
    unless: str


@dataclass(frozen=True, slots=True)
class Lacking:
    """What cannot be told yet, and what is lacking for it."""

    step: Step
    text: str
