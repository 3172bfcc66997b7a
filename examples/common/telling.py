"""What a cache did, for people: with a question, and in all."""

from __future__ import annotations

import ibidem
from ibidem.cache import Stats

Lookup = ibidem.Hit | ibidem.Miss

WHY = {
    "empty": "nothing is stored yet",
    "below_threshold": "no stored question is similar enough",
    "documents_changed": "the documents behind the stored answer are not retrieved as they were",
    "documents_added": "a document is retrieved that is newer than the stored answer",
    "expired": "the stored answer is too old",
    "answer_exact_only": "what is stored is repeated for the same request only",
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


def summary(stats: Stats) -> str:
    """Hits, misses with their reasons, and what was saved, since the cache was made."""
    tiers = ", ".join(f"{count} {tier}" for tier, count in sorted(stats.hits.items()))
    lines = ["What the cache did", f"  hits {sum(stats.hits.values())}{tiers and ': '}{tiers}"]
    lines.append(f"  misses {sum(stats.misses.values())}")
    lines += [
        f"    {count} {reason}{': ' if reason in WHY else ''}{WHY.get(reason, '')}"
        for reason, count in sorted(stats.misses.items())
    ]
    saved = f"  calls of the model saved {sum(stats.hits.values())}, tokens {stats.tokens_saved:,}"
    money = "" if stats.money_saved is None else f", {stats.money_saved:.4f} {stats.currency}"
    return "\n".join([*lines, saved + money])
