"""Few-shot, documents or fine-tuning? What the logs say would pay, in the order in which to try it.

A share that decides is taken at the end of its 95 % interval that speaks against the step: what may be
chance is not advised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeVar

from ibidem._util.intervals import clopper_pearson
from ibidem.cli.formatting import percent
from ibidem.storage.examples import EXAMPLE_LIMIT
from ibidem.storage.logs import LOG_LIMIT
from ibidem.types import Vector, normalise, require_name, to_vector
from ibidem_lab.replay import Share, share
from ibidem_lab.report.intents import Intent, copies, intents

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache
    from ibidem.embedding.base import CheckedEmbedder
    from ibidem.example import Example
    from ibidem.storage.statistics import Support
    from ibidem.storage.store import Store

Row = TypeVar("Row")
Name = Literal["few-shot", "documents", "fine-tuning"]

SAMPLE = 1_000  # lookups, and examples, whose questions are compared by meaning: they must be embedded
NEAR = 5_000  # examples called good, the newest, of which the nearest is looked for
BATCH = 64
JUDGED = 30  # questions with feedback, below which it says little
JUDGED_EACH = 8  # questions with feedback in a group
BAD = 0.1  # of the answers of a group: worth doing something about
GOOD_EXAMPLES = 10  # called good, for few-shot
RECURS = 0.5  # of the right answers are those of the nearest question too: the wording tells them, no fact
ANSWERS = 100  # of one namespace, below which nothing is said of its documents
USUAL = 0.5  # of the answers: documents belong to the prompts of this namespace
WITHOUT = 0.1  # of the answers, without a document where documents are usual
UNSUPPORTED = 0.2  # of the answers with documents that none of these supports
TRAINING = 500  # distinct answered questions, for fine-tuning
LARGE = 0.005  # of the sampled lookups: a group that a small model can learn
COVERED = 0.5  # of the sampled lookups in such groups
COSTS = 100_000  # tokens of models in the log, below which nobody trains a model
GOOD = 0.8  # of the answers that are trained on: a model learns mistakes too


@dataclass(frozen=True, slots=True)
class NextStep:
    """One step, whether it would pay, and the figures that say so.

    `advised` is None where the log holds too little to tell: then `finding` says what is missing. `action`
    and `unless` (when not to) are empty unless it is advised.
    """

    name: Name
    advised: bool | None
    finding: str
    figures: Mapping[str, str] = field(default_factory=dict)
    action: str = ""
    unless: str = ""


@dataclass(frozen=True)
class Traffic:
    """The example log, the newest first, and samples of both logs grouped by meaning.

    `asked` are the groups of the `sampled` lookups, `judged` those of examples with feedback. `right` are the
    right answers by question, and `copied` tells whether that of the nearest other one is the same. `support`
    counts by namespace how many stored answers rest on documents.
    """

    examples: Sequence[Example]
    asked: Sequence[Intent]
    sampled: int
    judged: Sequence[Intent]
    right: Mapping[str, str]
    copied: Mapping[str, bool]
    support: Mapping[str, Support]

    @cached_property
    def feedback(self) -> dict[str, bool]:
        """Whether what the program answered is good, by question: the last word on each.

        A good example without a model, of a question that was answered badly, is what a person wrote.
        """
        found: dict[str, bool] = {}
        for one in reversed(self.examples):
            text = normalise(one.question)
            if one.feedback is False or (one.feedback and (one.model or text not in found)):
                found[text] = one.feedback
        return found

    @property
    def good(self) -> Share:
        """The answers that are good."""
        return share(sum(self.feedback.values()), len(self.feedback))

    def recurring(self, questions: Iterable[str] = ()) -> Share | None:
        """Of which of these questions, or of all, the nearest has the same answer; None if few are known."""
        known = [self.copied[text] for text in questions or self.copied if text in self.copied]
        return share(sum(known), len(known)) if len(known) >= (JUDGED_EACH if questions else JUDGED) else None


def next_steps(cache: SemanticCache, *, namespace: str | None = None) -> tuple[NextStep, ...]:
    """Judge by the logs whether few-shot examples, documents or fine-tuning would pay, in this order.

    Takes seconds with 100,000 lookups; others go on meanwhile.

    Args:
        cache: An open cache.
        namespace: Only this one; default: all.

    Raises:
        InvalidInput: The namespace is not a str that can be stored.
        StorageError: The database failed.
        CacheClosed: The cache was closed.
    """
    if namespace is not None:
        require_name("namespace", namespace)
    cache.flush()
    return judge_steps(cache._runtime.store, cache._runtime.embedder, namespace)


def judge_steps(
    store: Store,
    embedder: CheckedEmbedder,
    namespace: str | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> tuple[NextStep, ...]:
    """Read the logs, of all namespaces or of one, and judge each step.

    Args:
        store: The database.
        embedder: Makes the vectors of questions that have none.
        namespace: Only this one; None for all.
        progress: Is told how many questions of how many are embedded.

    Raises:
        StorageError: The database failed.
        Exception: Whatever the embedder raises.
    """
    traffic = read_traffic(store, embedder, namespace, progress)
    return (_few_shot(traffic), *_documents(traffic), _fine_tuning(traffic))


def read_traffic(
    store: Store,
    embedder: CheckedEmbedder,
    namespace: str | None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Traffic:
    """Read both logs and group samples of their questions; raises as `judge_steps`."""
    lookups = store.lookups.recent(LOG_LIMIT, namespace)
    examples = store.examples.recent(EXAMPLE_LIMIT, namespace)
    asked = [normalise(row.question or "") for row in evenly([row for row in lookups if row.question])]
    judged = evenly([normalise(one.question) for one in examples if one.feedback is not None])
    right = _right(examples)
    near = [*right][-NEAR:]
    vectors = _kept({*asked, *judged, *near}, store, examples, embedder)
    _embed([*asked, *judged], vectors, embedder, progress)
    return Traffic(
        examples=examples,
        asked=intents(Counter(asked), vectors),
        sampled=len(asked),
        judged=intents(Counter(judged), vectors),
        right=right,
        copied=copies({text: right[text] for text in {*near, *judged} & right.keys()}, vectors, judged),
        support=store.statistics.support(namespace),
    )


def _right(examples: Sequence[Example]) -> dict[str, str]:
    """The newest answer to each question that was called good, and not bad later."""
    found: dict[str, str] = {}
    for one in reversed(examples):
        question = normalise(one.question)
        if one.feedback:
            found[question] = one.answer
        elif one.feedback is False and found.get(question) == one.answer:
            del found[question]
    return found


def evenly(rows: Sequence[Row], limit: int = SAMPLE) -> Sequence[Row]:
    """Take at most `limit` of the rows, evenly over their order."""
    if len(rows) <= limit:
        return rows
    return [rows[at * len(rows) // limit] for at in range(limit)]


def _kept(
    texts: Collection[str], store: Store, examples: Iterable[Example], embedder: CheckedEmbedder
) -> dict[str, Vector]:
    """Read the vectors that are kept with examples of these questions."""
    by_namespace: dict[str, dict[int, str]] = {}
    for example in examples:
        if (text := normalise(example.question)) in texts and example.id is not None:
            by_namespace.setdefault(example.namespace, {})[example.id] = text
    vectors: dict[str, Vector] = {}
    for namespace, by_id in by_namespace.items():
        for id_, raw in store.examples.vectors(namespace, embedder.fingerprint, ids=list(by_id)):
            if raw is not None:
                vectors[by_id[id_]] = to_vector(raw)
    return vectors


def _embed(
    texts: Iterable[str],
    vectors: dict[str, Vector],
    embedder: CheckedEmbedder,
    progress: Callable[[int, int], object],
) -> None:
    """Embed the questions that have no vector and can be compared by meaning."""
    missing = sorted({text for text in texts if text not in vectors and embedder.refusal(text) is None})
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        vectors.update(zip(batch, embedder.embed(batch), strict=True))
        progress(start + len(batch), len(missing))


def _few_shot(traffic: Traffic) -> NextStep:
    """Find kinds of questions whose answers are often called bad, and whether examples hold better ones."""
    feedback = traffic.feedback
    if len(feedback) < JUDGED:
        missing = (
            f"{len(feedback):,} questions with feedback; {JUDGED:,} are needed to tell which answers are "
            "bad: `cache.feedback`, `ibidem feedback`"
        )
        return NextStep("few-shot", None, missing)
    figures = {"questions with feedback": f"{len(feedback):,}", "called good": f"{sum(feedback.values()):,}"}
    groups = {one.question: one.texts for one in traffic.judged if len(one.texts) >= JUDGED_EACH}
    groups = {"all questions": tuple(feedback), **groups}
    # Among many groups one looks bad by chance: the more there are, the wider the intervals.
    shares = {name: _bad(texts, feedback, 1.0 - 0.05 / len(groups)) for name, texts in groups.items()}
    worst = [name for name, bad in shares.items() if bad.low >= BAD]
    if not worst:
        return NextStep("few-shot", False, "Answers to no kind of question are often called bad", figures)
    figures |= {f"bad: {name}": str(shares[name]) for name in worst[:3]}
    if len(traffic.right) < GOOD_EXAMPLES:
        action = f"write good answers to some (`cache.examples.add`); few-shot needs {GOOD_EXAMPLES} or more"
    else:
        action = (
            "put good answers into the prompt: `cache.examples.select`, `IbidemExampleSelector`, `few_shot`"
        )
        concerned = {text for name in worst for text in groups[name]}
        known = [feedback[text] for text in concerned if text in feedback]
        recurring = traffic.recurring(concerned) or traffic.recurring()
        figures["the nearest example has the right answer"] = str(recurring or "not known")
        if recurring and recurring.low <= share(sum(known), len(known)).high:
            finding = "Answers are often bad, and the nearest examples hold no better ones"
            return NextStep("few-shot", False, finding, figures)
    unless = "the bad answers lack a fact that no example holds: then they need documents"
    return NextStep(
        "few-shot", True, "Answers to some kinds of questions are often bad", figures, action, unless
    )


def _bad(texts: Iterable[str], feedback: Mapping[str, bool], confidence: float) -> Share:
    known = [feedback[text] for text in texts if text in feedback]
    wrong = known.count(False)
    return Share(wrong / len(known), *clopper_pearson(wrong, len(known), confidence))


def _documents(traffic: Traffic) -> Sequence[NextStep]:
    """Find namespaces in which answers come without documents, or rest on none of theirs."""
    usual = {
        namespace: found
        for namespace, found in sorted(traffic.support.items(), key=lambda item: -item[1].answers)
        if found.answers >= ANSWERS and found.with_documents >= USUAL * found.answers
    }
    if not usual and (facts := _of_facts(traffic)):
        return (facts,)
    if not usual:
        missing = (
            f"no namespace has {ANSWERS} stored answers of which {percent(USUAL, 0)} were given documents: "
            "`documents=` of `ibidem.Request`"
        )
        return (NextStep("documents", None, missing),)
    found = [step for namespace, support in usual.items() for step in _of_support(namespace, support)]
    figures = {"namespaces with documents": f"{len(usual):,}"}
    kept = NextStep("documents", False, "Answers rest on the documents that were retrieved", figures)
    return found or (kept,)


def _of_facts(traffic: Traffic) -> NextStep | None:
    """Find out whether bad answers lack facts, where documents are not usual."""
    recurring, good = traffic.recurring(), traffic.good
    if recurring is None or recurring.high >= RECURS or good.high > 1.0 - BAD:
        return None
    figures = {"called good": str(good), "the nearest example has the right answer": str(recurring)}
    return NextStep(
        "documents",
        True,
        "Answers are often bad, and questions that are alike have different answers, so these rest on facts",
        figures,
        "put the documents that hold these facts into the prompt (a retriever; `documents=` of `Request`)",
        "nothing is written that holds them",
    )


def _of_support(namespace: str, support: Support) -> Iterator[NextStep]:
    figures = {"namespace": namespace or "-", "stored answers": f"{support.answers:,}"}
    without = share(support.answers - support.with_documents, support.answers)
    if without.low >= WITHOUT:
        yield NextStep(
            "documents",
            True,
            "Answers come without documents where documents are usual",
            {**figures, "without": str(without)},
            "look at their questions (`ibidem ls`): add documents to the retriever, or lower its cut-off",
            "these are greetings and the like that need none",
        )
    unsupported = share(support.with_documents - support.supported, support.with_documents)
    if unsupported.low >= UNSUPPORTED:
        yield NextStep(
            "documents",
            True,
            "Many answers rest on none of the documents that were retrieved",
            {**figures, "unsupported": str(unsupported)},
            "look at some (`ibidem show ID`): add the documents that are missing, split them otherwise, or "
            "retrieve more of them",
            "the answers say in other words what the documents say: support is estimated by wording",
        )


def _fine_tuning(traffic: Traffic) -> NextStep:
    """Judge whether a small model would cover the traffic, and whether there is enough to train it."""
    usable = [one for one in traffic.examples if one.feedback is not False]
    questions = len({normalise(one.question) for one in usable})
    if questions < TRAINING:
        missing = f"{questions:,} answered questions in the log; {TRAINING:,} are needed"
        return NextStep("fine-tuning", None, missing)
    spent = sum((one.input_tokens or 0) + (one.output_tokens or 0) for one in traffic.examples)
    feedback, good, recurring = traffic.feedback, traffic.good, traffic.recurring()
    judged = sum(one.feedback is not None for one in usable)
    right = share(judged + round((len(usable) - judged) * (good.high if feedback else 1.0)), len(usable))
    large = [one for one in traffic.asked if one.count >= max(2, round(LARGE * traffic.sampled))]
    covered = share(sum(intent.count for intent in large), traffic.sampled)
    rests = share(sum(bool(one.documents) for one in traffic.examples), len(traffic.examples))
    figures = {
        "answered questions": f"{questions:,}",
        "called good": f"{good}, of {len(feedback):,} with feedback"
        if feedback
        else "not known: no feedback",
        "the nearest example has the right answer": str(recurring or "not known"),
        "tokens of models in the log": f"{spent:,}",
        f"traffic in {len(large):,} groups of {percent(LARGE)} or more of it": str(covered),
        "answers with documents": str(rests),
    }
    against = {
        **_hard_to_learn(traffic, covered),
        "The models in the log cost little": spent < COSTS,
        "A model learns mistakes too, and many answers may be bad": right.value < GOOD,
        "The answers rest on documents, which a model does not learn": rests.low > USUAL,
    }
    if any(against.values()):
        return NextStep("fine-tuning", False, next(why for why, so in against.items() if so), figures)
    return NextStep(
        "fine-tuning",
        True,
        "A small model trained on the answers could take most of the traffic",
        figures,
        "after few-shot and documents: `ibidem export --format openai-chat`",
        "answers change often, or few-shot is good enough: it needs no training and no second model"
        + ("" if feedback else "; without feedback nobody knows whether the answers are worth learning"),
    )


def _hard_to_learn(traffic: Traffic, covered: Share) -> dict[str, bool]:
    """Reasons why a model would not learn from the answers what is right."""
    recurring = traffic.recurring() or Share(1.0, 0.0, 1.0)  # nothing is known of them
    return {
        "Nothing is asked again and again": covered.low < COVERED and recurring.low < RECURS,
        "Questions that are alike have different answers, which a model hardly learns": recurring.high
        < RECURS,
        "The answers are better than what a model would learn from them": recurring.high < traffic.good.low,
    }
