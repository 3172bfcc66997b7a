"""What a cache did with a question, in a line for people."""

from __future__ import annotations

import ibidem

Lookup = ibidem.Hit | ibidem.Miss

WHY = {
    "empty": "nothing is stored yet",
    "below_threshold": "no stored question is similar enough",
    "documents_changed": "the documents behind the stored answer are not retrieved as they were",
    "documents_added": "a document is retrieved that is newer than the stored answer",
    "expired": "the stored answer is too old",
}


def told(found: Lookup | None) -> str:
    """Whether an answer was repeated, of which question; or why the model was asked."""
    if found is None:
        return "asked the model: the cache was not asked"
    if isinstance(found, ibidem.Hit):
        how = "same words" if found.tier == "exact" else f"by meaning, {found.score:.2f}"
        return f"repeated ({how}): {found.question!r} was answered {found.age:.0f} s ago"
    why = WHY.get(found.reason, found.reason)
    nearest = f"; nearest: {found.nearest!r}, {found.similarity:.2f}" if found.nearest else ""
    return f"asked the model: {why}{nearest}"
