"""A place with something to judge: audits, hits and near misses, some of hostile or right-to-left text."""

from __future__ import annotations

from collections.abc import Sequence

from ibidem.storage.logs import JudgementRow, LookupRow
from ibidem.storage.store import Store
from ibidem.types import Answer, Entry, Request, Source, digest

AT = 1_790_000_000.0
SCOPE = Request("x", scope="the model").scope_digest
PLANTED = (
    "<script>window.ran = 'script'</script>\"'><img src=x onerror=\"window.ran = 'image'\">"
    "</textarea></title><svg onload=alert(1)> {{ 7 * 7 }} javascript:alert(1) \x1b[31m \u202etxt.exe "
    + "W"
    * 400
)
ARABIC = "كم يوما لدي لإرجاع البضائع؟"
HEBREW = "תוך 30 יום, עם הקבלה (invoice no. 17)."


def entry(
    question: str, answer: str, *, namespace: str = "", docs: Sequence[Source] = (), at: float = AT
) -> Entry:
    """A stored answer; its id is that of the request."""
    documents = digest(*sorted({one.digest for one in docs}))
    return Entry(
        id=digest("semantic", namespace, SCOPE, question, documents),
        namespace=namespace,
        scope=SCOPE,
        question=question,
        documents=documents,
        semantic=True,
        answer=Answer(answer, model="gpt-4o-mini", input_tokens=900, output_tokens=40, seconds=1.4),
        created=at,
        sources=tuple(docs),
        tags=("terms", "<b>bold</b>"),
    )


def looked_up(
    asked: str, met: Entry, similarity: float, *, reason: str = "", at: float = AT + 60
) -> LookupRow:
    """A lookup that met this entry: a hit, or a miss with a reason."""
    tier = "" if reason else "semantic"
    return LookupRow(at, met.namespace, met.scope, asked, tier, reason, met.id, similarity, 0.002, 0)


def audited(asked: str, met: Entry, score: float, right: bool, *, source: str = "audit") -> JudgementRow:
    """What an audit or a probe found."""
    stored = met.question or ""
    return JudgementRow(
        AT + 60, met.namespace, met.scope, met.id, asked, stored, score, score, "scorer", right, source
    )


def fill(store: Store) -> None:
    """A few pairs of each kind."""
    terms = Source("terms#4", digest("terms"), True, "docs/terms.md")
    shop = entry(
        "How long can I return goods?",
        "Within 30 days, with the receipt.\n\nUnworn shoes too.",
        docs=(terms,),
    )
    password = entry("How do I change my password?", 'Under Account, Security, choose "Change password".')
    parcel = entry("Where is my parcel?", "Open Orders and choose Track.", namespace="acme")
    changed = Source("terms#4", digest("terms, as of May"), True, "docs/terms.md")
    fresh = entry("How long may I return the goods I bought?", "Within 14 days.", docs=(changed,), at=AT + 70)
    hostile, arabic = entry(PLANTED, PLANTED), entry(ARABIC, HEBREW)
    for one in (shop, password, parcel, fresh, hostile, arabic):
        store.entries.put(one, "embedder")
    store.judgements.add(
        [
            audited("How do I reset my password?", password, 0.957, True),
            audited("Where is my invoice?", parcel, 0.941, False, source="probe"),
        ]
    )
    store.lookups.add(
        [
            looked_up("How long can I return shoes?", shop, 0.95),
            looked_up("How long may I return the goods I bought?", shop, 0.94, reason="documents_changed"),
            looked_up("May I return goods?", shop, 0.91, reason="below_threshold"),
            looked_up("How long can I not return goods?", shop, 0.97, reason="guard:opposites"),
            looked_up("a question " + PLANTED, hostile, 0.93, reason="below_threshold"),
            looked_up("هل يمكنني إرجاع البضائع؟", arabic, 0.9, reason="below_threshold"),
        ]
    )
