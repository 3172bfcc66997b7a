"""Advice about what the model is given: examples, documents, a long prompt, or other weights.

Few-shot and documents first; fine-tuning when these are not enough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ibidem._util.intervals import clopper_pearson
from ibidem.embedding.adapters import estimate_tokens
from ibidem.examples.example import Example
from ibidem.types import normalise
from ibidem_lab.advice.traffic import Traffic, evenly
from ibidem_lab.advice.values import Advice, Lacking
from ibidem_lab.replay import Share, share

TOLD = 30  # examples with feedback, below which it says little
TOLD_EACH = 8  # questions with feedback in a group
BAD = 0.1  # of the examples of a group: worth doing something about
GOOD_EXAMPLES = 10  # called good, for few-shot
ANSWERS = 100  # of one namespace, below which nothing is said of its documents
USUAL = 0.5  # of the answers: documents belong to the prompts of this namespace
WITHOUT = 0.1  # of the answers, without a document where documents are usual
UNSUPPORTED = 0.2  # of the answers with documents that none of these supports
SCOPE = 50  # calls with one prompt around the question
FIXED_TOKENS, FIXED_SHARE = 500, 0.5  # of a prompt that is always the same
TRAINING = 500  # distinct answered questions, for fine-tuning
LARGE = 0.005  # of the sampled lookups: a group that a small model can learn
COVERED = 0.5  # of the sampled lookups in such groups
COSTS = 100_000  # tokens of models in the log, below which nobody trains a model
GOOD = 0.8  # of the examples with feedback: a model learns mistakes too


def few_shot(traffic: Traffic) -> Iterator[Advice | Lacking]:
    """Groups of questions whose answers people call bad, while good examples are there."""
    told = (one for one in reversed(traffic.examples) if one.feedback is not None)
    said = {normalise(one.question): bool(one.feedback) for one in told}  # the newest word on a question
    good = sum(said.values())
    if len(said) < TOLD:
        yield Lacking(
            "few-shot",
            f"{len(said):,} questions with feedback; {TOLD:,} are needed to tell which answers are bad: "
            "cache.feedback, ibidem feedback",
        )
        return
    groups = [intent for intent in traffic.judged if len(intent.texts) >= TOLD_EACH]
    # Among many groups one looks bad by chance: the more there are, the wider the intervals.
    bad = [(intent, _bad(intent.texts, said, 1.0 - 0.05 / len(groups))) for intent in groups]
    worst = [(intent, cost) for intent, cost in bad if cost.low >= BAD]
    if not worst:
        return
    figures = {"questions with feedback": f"{len(said):,}", "called good": f"{good:,}"}
    figures |= {f"bad: {intent.question}": str(cost) for intent, cost in worst[:3]}
    if good >= GOOD_EXAMPLES:
        do = "good answers as examples in the prompt: cache.examples.select, IbidemExampleSelector, few_shot"
    else:
        do = f"write good answers to some (cache.examples.add); few-shot needs {GOOD_EXAMPLES} or more"
    unless = "the bad answers lack a fact that no example holds: then they need documents"
    yield Advice("few-shot", "Answers to some kinds of questions are often bad", figures, do, unless)


def _bad(texts: Iterable[str], said: Mapping[str, bool], confidence: float) -> Share:
    known = [said[text] for text in texts if text in said]
    wrong = known.count(False)
    return Share(wrong / len(known), *clopper_pearson(wrong, len(known), confidence))


def documents(traffic: Traffic) -> Iterator[Advice | Lacking]:
    """Namespaces in which documents are usual, and answers come without, or are not supported by them."""
    for namespace, found in sorted(traffic.support.items(), key=lambda item: -item[1].answers):
        usual = share(found.with_documents, found.answers)
        if found.answers < ANSWERS or usual.value < USUAL:
            continue
        figures = {"namespace": namespace or "-", "stored answers": f"{found.answers:,}"}
        without = share(found.answers - found.with_documents, found.answers)
        if without.low >= WITHOUT:
            yield Advice(
                "documents",
                "Answers come without documents where documents are usual",
                {**figures, "without": str(without)},
                "look at their questions (ibidem ls): add documents to the retriever, or lower its cut-off",
                "these are greetings and the like that need none",
            )
        unsupported = share(found.with_documents - found.supported, found.with_documents)
        if unsupported.low >= UNSUPPORTED:
            yield Advice(
                "documents",
                "Many answers rest on none of the documents that were retrieved",
                {**figures, "unsupported": str(unsupported)},
                "look at some (ibidem show ID): add the documents that are missing, cut them otherwise, or "
                "retrieve more of them",
                "the answers say in other words what the documents say: support is estimated by wording",
            )


def prompt_text(traffic: Traffic) -> Iterator[Advice | Lacking]:
    """Prompts of which most is the same in every call: instructions and examples."""
    calls: dict[tuple[str, str], list[Example]] = {}
    for one in traffic.examples:
        if one.scope and one.input_tokens and not one.documents:
            calls.setdefault((one.namespace, one.scope), []).append(one)
    spent = sum(one.input_tokens or 0 for one in traffic.examples)
    for (namespace, scope), group in sorted(calls.items(), key=lambda item: -len(item[1])):
        if len(group) < SCOPE:
            continue
        some = evenly(group)
        fixed = min((one.input_tokens or 0) - estimate_tokens(one.question) for one in some)
        cost = fixed * len(group)
        if fixed < FIXED_TOKENS or cost < FIXED_SHARE * spent or spent < COSTS:
            continue
        yield Advice(
            "prompt",
            "Most prompt tokens are spent on text that is the same in every call",
            {
                "namespace": namespace or "-",
                "prompt": f"scope {scope[:8]}",
                "calls": f"{len(group):,}",
                "the same in each": f"about {fixed:,} tokens",
                "of all prompt tokens in the log": f"{cost / spent:.0%}",
            },
            "shorten it; give fewer examples, chosen for the question (cache.examples.select, max_tokens); "
            "a model that is fine-tuned on the answers needs neither examples nor most instructions",
            "the provider charges little for repeated beginnings of prompts",
        )


def fine_tuning(traffic: Traffic) -> Iterator[Advice | Lacking]:
    """Whether a small model of one's own would cover the traffic, and whether there is enough to train it."""
    usable = [one for one in traffic.examples if one.feedback is not False]
    questions = len({normalise(one.question) for one in usable})
    spent = sum((one.input_tokens or 0) + (one.output_tokens or 0) for one in traffic.examples)
    if questions < TRAINING:
        yield Lacking("fine-tuning", f"{questions:,} answered questions in the log; {TRAINING:,} are needed")
        return
    said = [one.feedback for one in traffic.examples if one.feedback is not None]
    good = share(sum(said), len(said))
    least = max(2, round(LARGE * traffic.sampled))
    large = [intent for intent in traffic.asked if intent.count >= least]
    covered = share(sum(intent.count for intent in large), traffic.sampled)
    rests = _rests_on_documents(traffic.examples)
    if covered.low < COVERED or spent < COSTS or (said and good.high < GOOD) or rests.low > USUAL:
        return
    figures = {
        "answered questions": f"{questions:,}",
        "called good": f"{good}, of {len(said):,} with feedback" if said else "not known: no feedback",
        "tokens of models in the log": f"{spent:,}",
        f"traffic in {len(large):,} groups of {LARGE:.1%} or more of it": str(covered),
        "answers with documents": str(rests),
    }
    yield Advice(
        "fine-tuning",
        "A small model trained on the answers could take most of the traffic",
        figures,
        "after few-shot and documents: ibidem export --format openai-chat",
        "answers change often, or few-shot is good enough: it needs no training and no second model"
        + ("" if said else "; without feedback nobody knows whether the answers are worth learning"),
    )


def _rests_on_documents(examples: Sequence[Example]) -> Share:
    kinds = Counter(bool(one.documents) for one in examples)
    return share(kinds[True], kinds.total())
