"""Advice about what the cache misses, and about the labels it could learn from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ibidem_lab.advice.traffic import Traffic
from ibidem_lab.advice.values import Advice, Lacking
from ibidem_lab.fitting.learning import LEAST_LABELS, LEAST_OF_A_KIND
from ibidem_lab.replay import share

LOOKUPS = 200  # below which shares of the lookups say little
OFTEN = 0.1  # of the lookups: a reason that costs less is not worth the trouble
NEAR = 0.1  # below the threshold: where labels may show that more can be served
EDGES = ("below_threshold", "below_budget")


class Remedy(NamedTuple):
    """What to do against misses for one reason."""

    title: str
    do: str
    unless: str


REMEDIES = {
    "documents_changed": Remedy(
        "The documents behind stored answers keep changing",
        "document_policy='supporting' if it is 'all'; give each Document an id and a text that stay the same "
        "from one retrieval to the next",
        "the documents do change and the answers with them",
    ),
    "expired": Remedy(
        "Answers expire before they are asked for again",
        "a longer ttl, or stale_while_revalidate to serve while one caller refreshes",
        "the answers are out of date by then",
    ),
    "question_unknown": Remedy(
        "The question cannot be told apart from its prompt, so only identical prompts are hits",
        "name the template variable: question_keys=['...'], or any_message=True for a support chat",
        "these prompts hold material to work on (translate, summarise) and no question",
    ),
    "question_too_long": Remedy(
        "Questions are longer than the embedder's window",
        "embedder= a model with a longer window",
        "they are pasted texts that nobody asks twice",
    ),
    "question_not_covered": Remedy(
        "The embedder does not know the script of the questions",
        "embedder= a multilingual model",
        "the other languages are rare and not worth a larger model",
    ),
    "question_hides_text": Remedy(
        "Questions hold characters that nobody sees, so only identical questions are hits",
        "take out direction marks, fillers and the like where the questions come in; ibidem log shows which",
        "they are attempts to hide something: then each of these is a wrong answer less",
    ),
    "no_index": Remedy(
        "The vector index was away, so nothing was found by meaning",
        "ibidem doctor",
        "it is known and repaired: the log also holds what was before",
    ),
    "error": Remedy(
        "Lookups failed",
        "ibidem doctor, and cache.stats().faults",
        "it is known and repaired: the log also holds what was before",
    ),
    "guard": Remedy(
        "Guards refuse near questions",
        "ibidem log shows which; ibidem replay on labelled questions counts how many rightly. They cannot be "
        "switched off",
        "the numbers, dates or names in them do differ: then each refusal is a wrong answer less",
    ),
}


def of_misses(traffic: Traffic) -> Iterator[Advice | Lacking]:
    """For each reason that costs a tenth of the lookups, what to do."""
    total = len(traffic.lookups)
    if total < LOOKUPS:
        yield Lacking("cache", f"{total:,} lookups in the log; {LOOKUPS:,} are needed to tell why they miss")
        return
    counts = dict(traffic.reasons)
    counts["guard"] = sum(n for reason, n in counts.items() if reason.startswith("guard:"))
    for reason, remedy in REMEDIES.items():
        cost = share(counts.get(reason, 0), total)
        if cost.low >= OFTEN:
            rate = str(share(traffic.hits, total))
            figures = {"lookups": f"{total:,}", "hits": rate, "missed so": str(cost)}
            yield Advice("cache", remedy.title, figures, remedy.do, remedy.unless)
    yield from _near_the_threshold(traffic)


def _near_the_threshold(traffic: Traffic) -> Iterator[Advice]:
    rows = [row for row in traffic.lookups if row.reason in EDGES and row.similarity is not None]
    near = sum((row.similarity or 0.0) >= traffic.threshold - NEAR for row in rows)
    cost = share(near, len(traffic.lookups))
    if cost.low < OFTEN:
        return
    figures = {
        "lookups": f"{len(traffic.lookups):,}",
        "hits": str(share(traffic.hits, len(traffic.lookups))),
        f"missed with a cosine of {traffic.threshold - NEAR:.2f} or more": str(cost),
    }
    yield Advice(
        "cache",
        "Many questions miss close to the threshold",
        figures,
        "audit_rate=0.05 to learn how many would be right; or ibidem pairs, ibidem teach, then ibidem fit",
        "ibidem audit shows that max_error_rate is used up already",
    )


def of_labels(traffic: Traffic) -> Iterator[Advice | Lacking]:
    """Whether what audits judged is enough to fit the threshold."""
    asked = {(row.namespace, row.asked) for row in traffic.judgements}
    right = sum(row.right for row in traffic.judgements)
    wrong = len(traffic.judgements) - right
    if not traffic.judgements or traffic.fitted:
        return
    if len(asked) < LEAST_LABELS or min(right, wrong) < LEAST_OF_A_KIND:
        known = f"{len(asked):,} questions judged by audits, {right:,} right and {wrong:,} wrong"
        need = f"to fit the threshold, {LEAST_LABELS:,} are needed, {LEAST_OF_A_KIND:,} of each kind"
        yield Lacking("labels", f"{known}; {need}: ibidem pairs and ibidem teach give more")
        return
    figures = {"questions judged": f"{len(asked):,}", "right": f"{right:,}", "wrong": f"{wrong:,}"}
    yield Advice(
        "labels",
        "There are enough judgements to fit the threshold",
        figures,
        "ibidem fit --dry-run; with 1,000 pairs of each kind also ibidem tune",
        "it tells that the threshold stays, or audits decide already",
    )
