"""The conversation that a request belongs to, and others that mean the same.

A turn that was answered from the cache counts as the stored one. Where no answer was given in this very
conversation, one may have been in another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ibidem._util.concurrency import deadline
from ibidem.matching.guards import failed_guard
from ibidem.matching.pair_model import PairModelFailed
from ibidem.matching.policy import Policy, Verdict
from ibidem.matching.scorers import Candidate, Verifier
from ibidem.matching.text import parse_question
from ibidem.prompts.likeness import Conversation, Likeness, Relations, compare, plain
from ibidem.prompts.standing_alone import RELATED, points_back, refers_back, tells
from ibidem.scope import current
from ibidem.storage.turns import AnsweredTurn, said_in
from ibidem.types import conversation_digests, normalise, turn_digest, with_history

if TYPE_CHECKING:
    from ibidem.index.search import SemanticIndex
    from ibidem.runtime import Runtime
    from ibidem.types import Answer, Hit, Request, Turns

MOST = 2  # conversations whose last message is read: each takes milliseconds, and its turns as much
ALIKE = 0.6  # least cosine of two answers that say the same; of others that differ up to 0.67 was seen
_LONGEST_TEXT = 500  # characters of a message that a small model is shown
Decide = Callable[["SemanticIndex", "Request", Sequence[Candidate]], tuple[Verifier, Policy, Verdict]]


@dataclass(frozen=True, slots=True)
class OtherConversation:
    """An answer of another conversation, and how like it is.

    `candidate` has the least score of all that was compared, `stored` and `asked` are the two conversations
    in words.
    """

    candidate: Candidate
    verifier: Verifier
    policy: Policy
    likeness: Likeness
    stored: str
    asked: str


class Conversations:
    """The conversations of one cache.

    Args:
        runtime: Database and vectors.
        decide: Compares last messages, as any two questions.
        is_private: Says which texts must not be embedded.
    """

    def __init__(self, runtime: Runtime, decide: Decide, is_private: Callable[[str], bool]) -> None:
        self._runtime, self._decide, self._is_private = runtime, decide, is_private

    def resolve(self, request: Request) -> Request:
        """Return the request in its conversation as it is stored, if turns of it were answered from there.

        A question that seems to stand alone does not, if an earlier turn is about the same subject.
        """
        history = request.history
        if history is None or not history.turns or history.stored is not None or is_bypassed(request):
            return request
        stored, alone = history.conversation, False
        try:
            with deadline():
                stored = self._runtime.turns.stored_wording(request.namespace, history)
                alone = history.alone and not self._is_related(request.question, history.said)
        except Exception as error:  # then the turns are compared, as they were said
            self._runtime.faults.note("look up earlier turns", error)
        return with_history(request, replace(history, stored=stored, alone=alone))

    def _is_related(self, question: str, said: Sequence[str]) -> bool:
        """Return whether a question is near to one of these texts, or cannot be compared with all of them."""
        if not said:
            return False
        embedder = self._runtime.semantic_index.embedder
        if any(self._is_private(text) or embedder.refusal(text) for text in (question, *said)):
            return True
        asked = embedder.vector_of(question)
        return any(float(embedder.vector_of(text) @ asked) >= RELATED for text in said)

    def remember(self, request: Request, hit: Hit) -> None:
        """Remember that a hit answers a reworded question: what follows may follow the stored one.

        Not if either says something beside the question, such as "I live on an island": what follows differs.
        """
        history = request.history
        if history is None or hit.question is None or normalise(history.asked) != request.question:
            return
        asked, stored = (turn_digest(one, hit.answer.text) for one in (request.question, hit.question))
        if asked != stored and not tells(request.question) and not tells(hit.question):
            said = conversation_digests((*history.turns, asked))[-1]
            after = conversation_digests((stored,), history.conversation)[-1]
            key = said_in(request.namespace, said)
            self._runtime.turns.put(AnsweredTurn(key, after, hit.entry_id, request.namespace))

    def find(
        self,
        index: SemanticIndex,
        request: Request,
        candidates: Sequence[Candidate],
        min_cosine: float,
        asked_from: float | None,
    ) -> OtherConversation | None:
        """Return an answer that serves, or one that may.

        Args:
            index: The semantic index of this lookup.
            request: The request, with its conversation.
            candidates: Answers of other conversations.
            min_cosine: Least cosine of two turns that may mean the same.
            asked_from: Score from which on a small model is asked; None if none is.
        """
        words = None if request.history is None else request.history.words
        if words is None or not candidates or _is_any_private(words, self._is_private):
            return None
        asked = Conversation(request.question, words)
        try:
            return self._find(index, request, asked, candidates, min_cosine, asked_from)
        except PairModelFailed:  # what it cannot read is not the same
            return None

    def _find(
        self,
        index: SemanticIndex,
        request: Request,
        asked: Conversation,
        candidates: Sequence[Candidate],
        min_cosine: float,
        asked_from: float | None,
    ) -> OtherConversation | None:
        quick = Turnwise(index, min_cosine).relations
        if asked_from is None:  # then doubt need not be told from what is other
            quick = replace(quick, near=lambda *_: False)
        prospects = list[tuple[bool, float, Candidate]]()
        for one in candidates:
            if one.similarity >= min_cosine:
                found = compare(asked, _stored(one), quick)
                if found == "same" or (found == "doubt" and asked_from is not None):
                    prospects.append((found != "same", -one.similarity, one))
        prospects.sort(key=lambda prospect: prospect[:2])
        shown = [one for _, _, one in prospects[:MOST]]
        if not shown:
            return None
        verifier, policy, verdict = self._decide(index, request, shown)
        scored = sorted(verdict.scored, key=lambda one: -one.score)
        for one in scored:
            if one.score >= policy.threshold and not refers_back(one.entry.answer.text):
                surely = Turnwise(index, min_cosine, verifier, policy.threshold, one)
                if compare(asked, _stored(one), surely.relations) == "same":
                    sure = replace(one, score=min(one.score, surely.least))
                    return _found(asked, sure, verifier, policy, "same")
        if asked_from is None or not scored or scored[0].score < asked_from:
            return None
        return _found(asked, scored[0], verifier, policy, "doubt")


def is_bypassed(request: Request) -> bool:
    """Return whether the current scope, or that of the request, keeps it from the cache."""
    scope = request.scope_context
    return current().bypass or (scope is not None and scope.bypass)


def in_conversation(request: Request, answer: Answer) -> Request:
    """Return the request to store an answer for: with the earlier turns if the answer refers to them."""
    history = request.history
    if history is None or not history.alone or not refers_back(answer.text):
        return request
    return with_history(request, replace(history, alone=False))


def stands_alone(request: Request, answer: Answer) -> bool:
    """Return whether question and answer can be understood without the turns before them."""
    history = request.history
    if history is None or not history.turns or history.alone:
        return True
    return not (points_back(request.question) or refers_back(answer.text))


def kept_turns(request: Request, is_private: Callable[[str], bool]) -> Turns:
    """Return the turns that are kept beside an answer: none if the question stands alone."""
    history = request.history
    if history is None or history.alone or not history.words:
        return ()
    return () if _is_any_private(history.words, is_private) else history.words


def _is_any_private(turns: Turns, is_private: Callable[[str], bool]) -> bool:
    return any(is_private(text) for turn in turns for text in turn)


def _found(
    asked: Conversation, one: Candidate, verifier: Verifier, policy: Policy, likeness: Likeness
) -> OtherConversation:
    stored = _stored(one)
    return OtherConversation(one, verifier, policy, likeness, _in_words(stored), _in_words(asked))


def _stored(candidate: Candidate) -> Conversation:
    return Conversation(candidate.entry.question or "", candidate.entry.turns)


def _in_words(conversation: Conversation) -> str:
    """Format a conversation for a small model, which ends with the question."""
    lines = [
        line for turn in conversation.turns for line in zip(("User: ", "Assistant: "), turn, strict=True)
    ]
    lines.append(("User: ", conversation.last))
    return "\n".join(
        who + (text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} [...]") for who, text in lines
    )


class Turnwise:
    """Compares turns of users: by their words and vectors, and with a verifier by what that reads.

    What tells something must be told in the same words, and with a verifier of the user's own each turn must.
    `least` is the least score so far.
    """

    def __init__(
        self,
        index: SemanticIndex,
        min_cosine: float,
        verifier: Verifier | None = None,
        threshold: float = 0.0,
        candidate: Candidate | None = None,
    ) -> None:
        self._embedder, self._min_cosine = index.embedder, min_cosine
        self._verifier, self._threshold, self._candidate = verifier, threshold, candidate
        self._reads = verifier is None or verifier.name in index.scorers
        self._scores: dict[tuple[str, str], float] = {}
        self.relations = Relations(self._same, self._near, self._related, self._alike)

    @property
    def least(self) -> float:
        """The least score that a pair of turns has got."""
        return min((score for score in self._scores.values() if score >= self._threshold), default=1.0)

    def _same(self, asked: str, stored: str) -> bool:
        if plain(asked) == plain(stored):
            return True
        if not self._reads or any(
            tells(one) or not parse_question(one).is_english for one in (asked, stored)
        ):
            return False
        if not self._near(asked, stored):
            return False
        if self._verifier is None or self._candidate is None:
            return True
        if (asked, stored) not in self._scores:
            self._scores[asked, stored] = self._score(self._verifier, self._candidate, asked, stored)
        return self._scores[asked, stored] >= self._threshold

    def _score(self, verifier: Verifier, candidate: Candidate, asked: str, stored: str) -> float:
        vectors = self._embedder.vector_of(asked), self._embedder.vector_of(stored)
        entry = replace(candidate.entry, question=stored)
        return verifier.verify(asked, [Candidate(entry, self._cosine(asked, stored), vectors=vectors)])[0]

    def _near(self, asked: str, stored: str) -> bool:
        if plain(asked) == plain(stored):
            return True
        return self._cosine(asked, stored) >= self._min_cosine and failed_guard(asked, stored) is None

    def _related(self, one: str, other: str) -> bool:
        return self._cosine(one, other, unknown=1.0) >= RELATED

    def _alike(self, one: str, other: str) -> bool:
        return self._cosine(one, other) >= ALIKE

    def _cosine(self, one: str, other: str, *, unknown: float = -1.0) -> float:
        """Return the cosine of two texts, or what stands for it if one cannot be embedded."""
        if any(map(self._embedder.refusal, (one, other))):
            return unknown
        return float(self._embedder.vector_of(one) @ self._embedder.vector_of(other))
