"""An explanation of a lookup, and its reasons in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ibidem.matching.documents import DocumentChange
from ibidem.types import SECOND_OPINION, Tier

SHORT = 160  # characters of a stored question in a step
# Why an answer is not repeated, as of a `Miss`, and of neighbours.
REASONS = {
    "": "sure enough",
    "below_threshold": "not sure enough",
    "below_budget": "below what the audits of this namespace allow",
    "not_scored": "not read, as nearer ones are",
    "expired": "expired",
    "documents_changed": "other documents",
    "documents_added": "new documents",
    "question_unknown": "the question is not known apart from the rest of the prompt",
    "question_private": "`redact` would change the question",
    "question_too_long": "the question is longer than the embedder reads",
    "question_not_covered": "the question is in a language or in letters that the embedder does not know",
    "question_hides_text": "the question holds characters that nobody sees",
}
SAME_PARTS = (
    "system prompt, conversation, history, tools, model or parameters"  # those that scopes usually have
)


def in_words(reason: str) -> str:
    """Say why an answer is not repeated; the reason itself where there are no words for it."""
    kind, _, detail = reason.partition(":")
    if kind == SECOND_OPINION and detail:
        return f"in doubt, and the second opinion was {detail}"
    return f"guard {detail}" if kind == "guard" else REASONS.get(reason, reason)


def differing(parts: Iterable[str]) -> str:
    """Say which parts of two scopes differ: "the model and the tools differ"; "" if that is not known."""
    *others, last = [f"the {part}" for part in parts] or [""]
    if not last:
        return ""
    return f"{', '.join(others)} and {last} differ" if others else f"{last} differs"


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A stored question near the one asked, and why its answer would not be repeated.

    Attributes:
        question: The stored question.
        entry_id: Id of the entry.
        similarity: The cosine of the two questions.
        density: The mean cosine of the other stored questions near the one asked; the higher, the lower the
            score. 0 where it does not count.
        score: What is compared with the threshold; None where a verifier of your own was not asked.
        reason: Why the answer would not be repeated, as of a `Miss`, or `not_scored`, as the verifier reads
            the nearest only, and nothing else speaks against it; "" if it would.
        documents: Those that differ, if the reason is `documents_changed` or `documents_added`.
        namespace: Of the entry.
        scopes: Of how many scopes it is, where those of several are looked at.
        differs: The parts in which its scope, the most similar of these, differs from that of the request;
            none where that is not known.
    """

    question: str
    entry_id: str
    similarity: float
    score: float | None
    reason: str
    documents: tuple[DocumentChange, ...] = ()
    namespace: str = ""
    scopes: int = 1
    differs: tuple[str, ...] = ()
    density: float = 0.0

    def __str__(self) -> str:
        short = self.question if len(self.question) <= SHORT else f"{self.question[:SHORT]}..."
        scored = "" if self.score is None else f", score {self.score:.4f}"
        scopes = f", in {self.scopes:,} scopes" if self.scopes > 1 else ""
        others = f" (others {self.density:.2f})" if self.density else ""
        figures = f"cosine {self.similarity:.4f}{others}{scored}"
        scope = f"; {differing(self.differs)}" if self.differs else ""
        return f"{short!r} ({self.entry_id[:8]}{scopes}): {figures}: {meaning_of(self)}{scope}"


def meaning_of(one: Neighbour) -> str:
    """Say why the answer to a neighbour would not be repeated, or that it would."""
    if one.reason == "below_threshold" and one.score is None:
        return "too far off to be scored"
    if one.reason == "not_scored" and one.score is not None:
        return "sure enough, if no nearer one is"
    changes = ", ".join(f"{change.id} {change.change}" for change in one.documents)
    return in_words(one.reason) + (f": {changes}" if changes else "")


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a lookup would do with a request now, and why; as a `str` the steps, a line each.

    Attributes:
        question: The question asked.
        tier: How the answer would be found, as of a `Hit`; None if it would not.
        reason: Why there would be none, as of a `Miss`; "" if there would. `scope_unknown` where a question
            alone is explained; `second_opinion` where a small model would be asked, which is not done here.
            Audits draw by chance: what would be a hit may be an audit instead.
        entry_id: Id of the entry whose answer would be repeated.
        threshold: The least score that is served, infinite while audits serve nothing; None if the question
            is not compared by meaning.
        decided_by: What gives the scores; "" if the question is not compared by meaning.
        nearest: The nearest stored questions of its scope, the most similar first; of a question alone, those
            of all scopes.
        elsewhere: Where the scope holds nothing near enough: nearer ones of the same namespace in other
            scopes, whatever their documents.
        steps: The steps as sentences.
    """

    question: str
    tier: Tier | None = None
    reason: str = ""
    entry_id: str | None = None
    threshold: float | None = None
    decided_by: str = ""
    nearest: tuple[Neighbour, ...] = ()
    elsewhere: tuple[Neighbour, ...] = ()
    steps: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.tier is not None

    def __str__(self) -> str:
        return "\n".join(self.steps)
