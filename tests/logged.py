"""A log made up for the tests of reports: lookups, entries, examples and judgements of some weeks."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ibidem.example import Example
from ibidem.storage.logs import JudgementRow, LookupRow
from ibidem.storage.store import Store
from ibidem.types import Answer, Entry, digest

NOW = 1_790_000_000.0  # a Monday in September 2026
WEEKS = 4 * 7 * 86_400.0
MODELS = ("gpt-4o-mini-2024-07-18", "gpt-4o-2024-11-20", "claude-sonnet-4-5-20250929", "our-own-7b", "")
REASONS = ("below_threshold", "empty", "guard:numbers", "documents_changed", "question_unknown", "expired")
GONE = 9  # entries that are no longer stored, but in the example log
NAMESPACES = ("", "acme", "globex", "initech")
_SUBJECTS = "the invoice,my order,a parcel,the contract,our account,a refund,the warranty,my card".split(",")
_VERBS = "cancel,change,return,find,renew,pay,track,download".split(",")


def gone_id(n: int) -> str:
    """The id of an entry that is no longer stored."""
    return digest(f"gone {n}")


def question(draw: random.Random) -> str:
    """One of some hundred questions, asked in several ways."""
    begin = draw.choice(("How do I", "How can I", "Please tell me how to", "What must I do to"))
    return f"{begin} {draw.choice(_VERBS)} {draw.choice(_SUBJECTS)} within {draw.randrange(2, 9)} days?"


def entries(count: int, seed: int = 1) -> list[Entry]:
    """Stored answers, some without tokens or seconds, some younger than lookups that they served."""
    draw = random.Random(seed)
    return [
        Entry(
            id=digest(str(n)),
            namespace=draw.choice(NAMESPACES),
            scope=f"{n % 7:032x}",
            question=question(draw),
            documents="0" * 32,
            semantic=False,
            answer=Answer(
                f"answer {n} " + "word " * draw.randrange(90),
                model=draw.choice(MODELS),
                input_tokens=draw.choice((None, 150_000, *[draw.randrange(200, 4_000)] * 28)),
                output_tokens=draw.choice((None, *[draw.randrange(20, 600)] * 18)),
                seconds=draw.choice((None, *[draw.uniform(0.5, 9.0)] * 4)),
            ),
            created=NOW - draw.choice((0.2, 0.9, 1.0, 1.0)) * draw.uniform(1.0, 1.8) * WEEKS,
            expires=None,
        )
        for n in range(count)
    ]


def lookups(count: int, stored: Sequence[Entry], seed: int = 2) -> list[LookupRow]:
    """Lookups over four weeks, more of them hits as time goes by; some hits of entries that are gone."""
    draw, scores, found = random.Random(seed), random.Random(seed + 1), []
    for n in range(count):
        share = (n + 1) / count
        at = NOW - WEEKS + (WEEKS - 1) * share
        one = stored[min(int(draw.expovariate(8.0) * len(stored)), len(stored) - 1)]
        tier = draw.choices(("exact", "semantic", ""), (0.25 * share, 0.3 * share, 1 - 0.55 * share))[0]
        similarity = {"exact": 1.0, "semantic": min(1.0, draw.triangular(0.93, 1.0, 0.985))}.get(tier)
        reason = "" if tier else draw.choices(REASONS, (8, 3, 2, 1, 1, 1))[0]
        if reason not in ("", "empty", "question_unknown"):
            similarity = min(0.97, max(0.2, draw.gauss(0.78, 0.1)))
        entry_id, tokens = one.id if similarity is not None else None, one.answer.tokens
        if tier and draw.random() < 0.05:  # its entry is gone, and now and then its example is another answer
            gone = draw.randrange(min(GONE, len(stored)))
            entry_id, tokens = gone_id(gone), stored[gone].answer.tokens + draw.choice((0, 0, 1))
        found.append(
            LookupRow(
                at=at,
                namespace=one.namespace if tier else draw.choice(NAMESPACES),
                scope=one.scope,
                question=None if reason == "question_unknown" else question(draw),
                tier=tier,
                reason=reason,
                entry_id=entry_id,
                similarity=similarity,
                seconds=draw.uniform(0.0005, 0.01),
                tokens_saved=tokens if tier else 0,
                score=scores.choice((None, scores.random())) if entry_id and tier != "exact" else None,
            )
        )
    return found


def examples(stored: Sequence[Entry]) -> list[Example]:
    """Answers of entries that are gone, as the example log still has them."""
    return [
        Example(
            f"gone {n}?",
            one.answer.text,
            at=NOW - WEEKS,
            namespace=one.namespace,
            model=one.answer.model,
            input_tokens=one.answer.input_tokens,
            output_tokens=one.answer.output_tokens,
            seconds=one.answer.seconds,
            entry_id=gone_id(n),
        )
        for n, one in enumerate(stored[:GONE])
    ]


def judgements(count: int, stored: Sequence[Entry], seed: int = 3) -> list[JudgementRow]:
    """Audits and probes, and some feedback; of what would have been served few are wrong."""
    draw, found = random.Random(seed), []
    for n in range(count):
        one, score = draw.choice(stored), draw.uniform(0.85, 1.0)
        source = "feedback" if draw.random() < 0.1 else "audit" if score > 0.95 else "probe"
        right = draw.random() < (0.995 if score > 0.95 else 0.8)
        at = NOW - WEEKS + (WEEKS - 1) * (n + 1) / count
        texts = (question(draw), one.question or "")
        judged = (at, one.namespace, one.scope, one.id, *texts, min(score, 0.99), score)
        found.append(JudgementRow(*judged, "" if source == "feedback" else "scorer", right, source))
    return found


def fill(store: Store, *, lookups_: int, entries_: int, judgements_: int, examples_: int = 0) -> list[Entry]:
    """Write such a log, with so many examples more that belong to no hit; its entries."""
    stored = entries(entries_)
    for one in stored:
        store.entries.put(one, "embedder")
    rows = lookups(lookups_, stored)
    for start in range(0, len(rows), 5_000):
        store.lookups.add(rows[start : start + 5_000])
    store.examples.add(examples(stored))
    more = [Example(f"{n}?", "a", at=NOW - WEEKS, entry_id=gone_id(GONE + n)) for n in range(examples_)]
    for start in range(0, len(more), 5_000):
        store.examples.add(more[start : start + 5_000])
    if judgements_:
        store.judgements.add(judgements(judgements_, stored))
    return stored
