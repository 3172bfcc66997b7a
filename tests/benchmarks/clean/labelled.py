r"""Labelled answers and texts, and how often they are judged rightly.

`answers*.txt` have a label and an answer a line, `personal*.txt` a text with each personal detail in double
braces; `\\n` is the end of a line in a text. The files `*_held_out.txt` are no part of what the rules were
written on. About half of each file are near misses.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ibidem.examples.flaws import flaw_of

FOLDER = Path(__file__).parent
_PLACEHOLDER = re.compile(r"\[[a-z ]{2,20}\]")


@dataclass(slots=True)
class Found:
    """How much of what should be found was found, and how much of what was found should be."""

    right: int = 0
    missed: int = 0
    wrong: int = 0
    mistakes: list[str] = field(default_factory=list)

    @property
    def recall(self) -> float:
        """The share of what should be found."""
        return self.right / max(1, self.right + self.missed)

    @property
    def precision(self) -> float:
        """The share of what was found rightly."""
        return self.right / max(1, self.right + self.wrong)

    def count(self, *, wanted: int, found: int, text: str) -> None:
        """Count a text in which so many should be found."""
        self.right += min(wanted, found)
        self.missed += max(0, wanted - found)
        self.wrong += max(0, found - wanted)
        if wanted != found:
            self.mistakes.append(text)


def answers(name: str) -> list[tuple[str, str]]:
    """Return labels and answers of a file; the label of what is an example is `answer`."""
    lines = (FOLDER / name).read_text("utf-8").splitlines()
    parted = (line.partition(": ") for line in lines)
    return [(label, text.replace("\\n", "\n")) for label, _, text in parted]


def judged_answers(rows: list[tuple[str, str]]) -> Found:
    """Judge answers: whether each is an example, not of which kind it is if it is none."""
    found = Found()
    for label, text in rows:
        flaw = flaw_of(text)
        found.count(wanted=int(label != "answer"), found=int(flaw is not None), text=f"{label}: {text}")
    return found


def judged_texts(name: str, redact: Callable[[str], str]) -> Found:
    """Judge a redaction on a file: a detail is found if it is gone, and what else has changed is wrong."""
    found = Found()
    for line in (FOLDER / name).read_text("utf-8").splitlines():
        parts = re.split(r"\{\{|\}\}", line.replace("\\n", "\n"))
        shown = redact("".join(parts))
        gone = sum(detail not in shown for detail in parts[1::2])
        others = max(0, len(_PLACEHOLDER.findall(shown)) - gone)
        if not others and not _stays(parts[0::2], shown):
            others = 1
        found.right += gone
        found.missed += len(parts) // 2 - gone
        found.wrong += others
        if others or gone < len(parts) // 2:
            found.mistakes.append(f"{line} -> {shown}")
    return found


def _stays(texts: list[str], shown: str) -> bool:
    at = 0
    for text in texts:
        at = shown.find(text, at)
        if at < 0:
            return False
        at += len(text)
    return True
