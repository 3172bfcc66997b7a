"""Collect pairs of questions from lookups, audits and feedback, and the questions that are stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ibidem.storage.logs import JUDGEMENT_LIMIT, LOG_LIMIT, OPINION, PEOPLE, REVIEW
from ibidem.types import digest_of, key_of, normalise, to_vector
from ibidem_lab.labelling.pairs import QuestionPair

if TYPE_CHECKING:
    from ibidem.example import Example
    from ibidem.storage.logs import JudgementRow, LookupRow
    from ibidem.storage.store import Store
    from ibidem.types import Vector

MOST = 10_000  # newest questions of one kind that are read: comparing all pairs of more takes minutes
# The label's source, by the source of a judgement.
_LABELLED_BY = {
    "audit": "judgement",
    "probe": "judgement",
    "feedback": "feedback",
    REVIEW: REVIEW,
    OPINION: OPINION,
}
_LAST_WORD = {REVIEW: 0, OPINION: 2}  # a reviewer has it, and a small model only where nobody else has judged
DELETED = "the stored question is not known any more: its entry was deleted"


@dataclass(slots=True)
class Kept:
    """A question with the answers stored for it, by scope and digest of the documents."""

    text: str
    vector: Vector | None = None
    answers: dict[tuple[str, str], str] = field(default_factory=dict)


@dataclass(slots=True)
class Gathered:
    """Pairs of questions from the logs, and the questions of each namespace, newest first.

    `left_out` counts the unusable ones by reason.
    """

    met: list[QuestionPair]
    kept: dict[str, dict[str, Kept]]
    left_out: Counter[str]


def gather(store: Store, embedder: str, namespace: str | None = None) -> Gathered:
    """Read the logs and the stored questions; `embedder` is the fingerprint whose stored vectors are used.

    Of pairs judged more than once the last judgement counts. Raises `StorageError`.
    """
    left_out: Counter[str] = Counter()
    rows = store.judgements.recent(JUDGEMENT_LIMIT, namespace)
    told = {(pair.namespace, pair.a, pair.b): pair for pair in _judged(rows)}
    lookups = store.lookups.recent(LOG_LIMIT, namespace)
    examples = store.examples.recent(2 * MOST, namespace)
    known = _stored_texts(store, rows, examples, lookups)
    for pair in _looked_up(lookups, known, left_out):
        told.setdefault((pair.namespace, pair.a, pair.b), pair)
    kept: dict[str, dict[str, Kept]] = {}
    for row in store.entries.newest_questions(2 * MOST, embedder, namespace):
        one = _of(kept, row.namespace, row.question)
        one.vector = row.vector if one.vector is None else one.vector
        one.answers.setdefault((row.scope, row.documents), row.answer)
    _add_examples(kept, examples, store, embedder)
    return Gathered(list(told.values()), kept, left_out)


def _judged(rows: Iterable[JudgementRow]) -> Iterable[QuestionPair]:
    """Yield the pairs that were judged, by who has the last word, newest first."""
    seen: set[tuple[str, str, str]] = set()
    for row in sorted(rows, key=lambda row: _LAST_WORD.get(row.source, 1)):
        asked, stored = normalise(row.asked), normalise(row.stored)
        if row.source not in _LABELLED_BY or not asked or not stored or asked == stored:
            continue
        if (key := (row.namespace, asked, stored)) not in seen:
            seen.add(key)
            yield QuestionPair(
                asked,
                stored,
                row.right,
                source=row.source if row.source in (*PEOPLE, OPINION) else "audit",
                namespace=row.namespace,
                labelled_by=_LABELLED_BY[row.source],
            )


def _met(row: LookupRow) -> bool:
    """Return whether a lookup matched a stored question of another wording."""
    return row.question is not None and row.entry_id is not None and row.tier != "exact"


def _stored_texts(
    store: Store,
    judged: Iterable[JudgementRow],
    examples: Iterable[Example],
    lookups: Iterable[LookupRow],
) -> dict[str, str]:
    """Return stored questions by entry id; judgements and examples hold some whose entry is gone."""
    wanted = dict.fromkeys(row.entry_id for row in lookups if _met(row) and row.entry_id)
    told = {one.entry_id: one.question for one in examples if one.entry_id and _is_its_own(one)}
    remembered = {row.entry_id: row.stored for row in judged if row.entry_id}
    return {**told, **remembered, **store.entries.questions(list(wanted))}


def _is_its_own(example: Example) -> bool:
    """Return whether the entry was stored for this question, and not reused for another one."""
    documents = digest_of(document.digest for document in example.documents)
    key = key_of(example.namespace, example.scope, normalise(example.question), documents)
    return key == example.entry_id


def _looked_up(
    rows: Iterable[LookupRow], stored: dict[str, str], left_out: Counter[str]
) -> Iterable[QuestionPair]:
    """Yield near misses and hits by meaning, newest first."""
    count = 0
    for row in rows:
        if not _met(row) or count == MOST:
            continue
        if (there := stored.get(row.entry_id or "")) is None:
            left_out[DELETED] += 1
            continue
        a, b = normalise(row.question or ""), normalise(there)
        if a and a != b:
            count += 1
            yield QuestionPair(a, b, source="hit" if row.tier else "near_miss", namespace=row.namespace)


def _of(kept: dict[str, dict[str, Kept]], namespace: str, question: str) -> Kept:
    text = normalise(question)
    return kept.setdefault(namespace, {}).setdefault(text, Kept(text))


def _add_examples(
    kept: dict[str, dict[str, Kept]], examples: Iterable[Example], store: Store, embedder: str
) -> None:
    """Add the questions of the example log, newest first, with their stored vectors."""
    lacking: dict[str, dict[int, Kept]] = {}
    for example in examples:
        one = _of(kept, example.namespace, example.question)
        if one.vector is None and example.id is not None:
            lacking.setdefault(example.namespace, {})[example.id] = one
        # A reused answer is that of another question, and would say that the two are alike.
        own = example.entry_id is None or _is_its_own(example)
        if example.scope and own and example.feedback is not False:
            documents = digest_of(document.digest for document in example.documents)
            one.answers.setdefault((example.scope, documents), example.answer)
    for namespace, by_id in lacking.items():
        for id_, raw in store.examples.vectors(namespace, embedder, ids=list(by_id)):
            by_id[id_].vector = None if raw is None else to_vector(raw)


def sift(gathered: Gathered, refusal: Callable[[str], str | None]) -> Gathered:
    """Keep the questions that may be compared by meaning, at most the newest `MOST` of each namespace.

    `refusal` returns the reason against a question, or None; it is called once for each text.
    """
    known: dict[str, str | None] = {}
    left_out = Counter(gathered.left_out)

    def usable(text: str) -> bool:
        if text not in known:
            known[text] = refusal(text)
            if (why := known[text]) is not None:
                left_out[why] += 1
        return known[text] is None

    kept = {}
    for namespace, questions in gathered.kept.items():
        newest = list(questions.items())[:MOST]
        kept[namespace] = {text: one for text, one in newest if usable(text)}
    met = [pair for pair in gathered.met if usable(pair.a) and usable(pair.b)]
    return Gathered(met, kept, left_out)
