"""What is advised on logs in which the right advice is known, and on logs in which there is none."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ibidem_lab
from ibidem import Answer, Document, Example, InvalidInput, Request
from ibidem.cli.main import app
from ibidem.embedding.base import CheckedEmbedder
from ibidem.matching.fitted import key_of
from ibidem.storage.logs import JudgementRow, LookupRow
from ibidem.storage.store import Store
from ibidem_lab.advice.advising import Advised, advise
from ibidem_lab.advice.intents import intents
from ibidem_lab.advice.misses import REMEDIES
from ibidem_lab.advice.traffic import evenly
from tests.embedders import BagOfWords
from tests.helpers import question

SCOPE = Request("x", scope="a prompt").scope_digest


@pytest.fixture
def store(tmp_path: Path) -> Iterable[Store]:
    """An empty place."""
    opened = Store(f"sqlite:///{tmp_path / 'ibidem.sqlite3'}")
    yield opened
    opened.close()


@pytest.fixture
def advised(store: Store) -> Callable[..., Advised]:
    """What is advised about the place."""
    embedder = CheckedEmbedder(BagOfWords(), store.meta.set_default)
    return lambda **changes: advise(store, embedder, **{"threshold": 0.95, **changes})


def lookup(text: str, reason: str = "below_threshold", **changes: object) -> LookupRow:
    """A line of the lookup log: a miss, unless `tier` says otherwise."""
    given = {
        "at": 1.0,
        "namespace": "",
        "scope": SCOPE,
        "question": text,
        "tier": "",
        "reason": reason,
        "entry_id": None,
        "similarity": 0.3,
        "seconds": 0.01,
        "tokens_saved": 0,
        **changes,
    }
    return LookupRow(**given)


def mixed(count: int) -> list[LookupRow]:
    """Questions that have nothing in common, half of them hits."""
    hit = {"tier": "exact", "reason": ""}
    return [lookup(question(n), **(hit if n % 2 else {})) for n in range(count)]


def steps(found: Advised) -> list[str]:
    """What was advised about."""
    return [one.step for one in found.advice]


def kind(n: int, variant: int) -> str:
    """A wording of the n-th intent: most words are those of the intent."""
    return f"{question(n, 9)} {question(10_000 + variant, 2)}"


# no advice --------------------------------------------------------------------------------------------


def test_an_empty_log_gives_no_advice_and_says_what_is_lacking(advised) -> None:
    """For each step that needs more."""
    found = advised()

    assert found.advice == ()
    assert [lack.step for lack in found.lacking] == ["cache", "few-shot", "fine-tuning"]
    assert "0 lookups in the log; 200 are needed" in found.lacking[0].text
    assert (found.lookups, found.examples, found.sampled, found.intents) == (0, 0, 0, ())


def test_a_log_without_a_fault_gives_no_advice(store: Store, advised) -> None:
    """Questions of all kinds, half hits, good answers here and there a bad one, short prompts."""
    store.lookups.add(mixed(2_000))
    draw = random.Random(1)
    store.examples.add(
        [
            Example(
                question(n),
                "An answer.",
                scope=SCOPE,
                input_tokens=draw.randrange(120, 400),
                output_tokens=90,
                feedback=draw.choice([True] * 19 + [False]) if n % 3 == 0 else None,
            )
            for n in range(2_000)
        ]
    )

    found = advised()

    assert found.advice == ()
    assert found.lacking == ()
    assert (found.lookups, found.hits, found.examples, found.sampled) == (2_000, 1_000, 2_000, 1_000)


@pytest.mark.parametrize("seed", range(3))
def test_chance_gives_no_advice(store: Store, advised, seed: int) -> None:
    """Repeated intents, a tenth of the answers called bad wherever it falls, few tokens, many reasons."""
    draw = random.Random(seed)
    reasons = ["documents_changed", "expired", "question_unknown", "guard:numbers", "below_threshold"]
    store.lookups.add(
        [lookup(kind(n % 40, n), draw.choice([*reasons, *["below_threshold"] * 6])) for n in range(1_000)]
    )
    store.examples.add(
        [Example(kind(n % 40, n), "a", feedback=draw.random() > 0.1, input_tokens=50) for n in range(1_000)]
    )

    assert advised().advice == ()


# the cache --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [name for name in REMEDIES if name != "guard"])
def test_a_reason_that_costs_much_has_a_remedy(store: Store, advised, reason: str) -> None:
    """With its share of the lookups, and when not to."""
    store.lookups.add([*mixed(400), *(lookup(question(1000 + n), reason) for n in range(100))])

    (advice,) = advised().advice

    assert advice.title == REMEDIES[reason].title
    assert advice.figures["missed so"].startswith("20.0% (")
    assert advice.figures["lookups"] == "500"
    assert advice.do
    assert advice.unless


def test_guards_count_together(store: Store, advised) -> None:
    """Whichever of them refuses."""
    refused = [lookup(question(n), f"guard:{('numbers', 'dates', 'roles')[n % 3]}") for n in range(100)]
    store.lookups.add([*mixed(400), *refused])

    assert [one.title for one in advised().advice] == [REMEDIES["guard"].title]


def test_misses_close_to_the_threshold_want_labels(store: Store, advised) -> None:
    """Far ones do not."""
    near = [lookup(question(1000 + n), similarity=0.9) for n in range(100)]
    store.lookups.add([*mixed(400), *near])

    (advice,) = advised().advice

    assert "close to the threshold" in advice.title
    assert "ibidem teach" in advice.do
    assert advised(threshold=0.999 + 0.002).advice == ()


def test_a_rare_reason_is_left_alone(store: Store, advised) -> None:
    """Also one that is above a tenth by chance alone."""
    store.lookups.add([*mixed(300), *(lookup(question(1000 + n), "expired") for n in range(35))])

    assert advised().advice == ()


def judgement(n: int, right: bool) -> JudgementRow:
    """One of an audit."""
    return JudgementRow(1.0, "", "", "", f"asked {n}", f"stored {n}", 0.9, 0.9, "s", right, "audit")


def test_enough_judgements_are_to_be_learned_from(store: Store, advised) -> None:
    """Too few say how many are lacking; where a score is fitted, nothing."""
    store.judgements.add([judgement(n, n % 4 > 0) for n in range(150)])
    assert "150 questions judged by audits, 112 right and 38 wrong" in advised().lacking[1].text
    store.judgements.add([judgement(n, n % 4 > 0) for n in range(150, 260)])

    (advice,) = advised().advice

    assert (advice.step, advice.figures["questions judged"]) == ("labels", "260")
    store.meta.set(key_of("bag-of-words-256"), "{}")
    assert advised().advice == ()


# the ladder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("good", [40, 0])
def test_bad_answers_to_one_kind_of_question_want_few_shot(store: Store, advised, good: int) -> None:
    """The kind is named; without good answers, somebody has to write some."""
    store.examples.add([Example(kind(1, n), "a", feedback=n % 2 == 0) for n in range(40)])
    if good:
        store.examples.add([Example(question(500 + n), "a", feedback=True) for n in range(good)])
    else:  # the last word on the same questions
        store.examples.add([Example(kind(1, n), "a", feedback=False) for n in range(40)])

    (advice,) = advised().advice

    assert advice.step == "few-shot"
    assert any(name.startswith(f"bad: {question(1, 9)}") for name in advice.figures)
    assert ("cache.examples.select" in advice.do) == bool(good)
    assert ("cache.examples.add" in advice.do) == (not good)


def stored(cache, n: int, text: str, documents: tuple[Document, ...]) -> None:
    """An answer over documents."""
    assert cache.store(Request(question(n), namespace="docs", documents=documents), Answer(text))


def test_answers_that_no_document_supports_want_documents(open_cache, advised_of) -> None:
    """Where documents are usual; where they do support the answers, nothing is said."""
    cache = open_cache()
    for n in range(120):
        other = n if n % 2 else n + 1000
        stored(cache, n, f"It is {question(n)}.", (Document(str(n), f"We say it is {question(other)}."),))

    (advice,) = advised_of(cache).advice

    assert (advice.step, advice.figures["namespace"]) == ("documents", "docs")
    assert advice.figures["unsupported"].startswith("50.0% (")


def test_supported_answers_want_no_documents(open_cache, advised_of) -> None:
    """Nor a namespace in which documents are not usual."""
    cache = open_cache()
    for n in range(120):
        stored(cache, n, f"It is {question(n)}.", (Document(str(n), f"We say it is {question(n)}."),))
        cache.store(Request(question(n), namespace="chat"), Answer("It is so."))

    assert advised_of(cache).advice == ()


def test_answers_without_documents_are_told_where_documents_are_usual(open_cache, advised_of) -> None:
    """A third without any."""
    cache = open_cache()
    for n in range(150):
        documents = (Document(str(n), f"We say it is {question(n)}."),) if n % 3 else ()
        stored(cache, n, f"It is {question(n)}.", documents)

    (advice,) = advised_of(cache).advice

    assert "without documents" in advice.title
    assert advice.figures["without"].startswith("33.3% (")


@pytest.fixture
def advised_of() -> Callable[..., Advised]:
    """What is advised about an open cache."""

    def found(cache) -> Advised:
        cache.flush()
        return advise(cache._runtime.store, cache._runtime.embedder, threshold=0.8)

    return found


def calls(count: int, prompt: Callable[[int], int], **changes: object) -> list[Example]:
    """Answers of a model whose prompts have so many tokens."""
    return [
        Example(question(n), "a", scope=SCOPE, input_tokens=prompt(n), output_tokens=20, **changes)
        for n in range(count)
    ]


def test_a_long_prompt_that_is_always_the_same_is_told(store: Store, advised) -> None:
    """With the tokens of it; a long one that varies is not."""
    store.examples.add(calls(200, lambda n: 1_500 + n % 7))

    (advice,) = advised().advice

    assert advice.step == "prompt"
    assert advice.figures["calls"] == "200"
    assert 1_350 < int(advice.figures["the same in each"].split()[1].replace(",", "")) < 1_500
    store.clear()
    store.examples.add(calls(200, lambda n: 100 if n == 3 else 1_500))
    assert advised().advice == ()


def learnable(groups: int, count: int, **changes: object) -> tuple[list[LookupRow], list[Example]]:
    """Traffic of so many intents, and its answers, 900 tokens each."""
    texts = [kind(n % groups, n) for n in range(count)]
    spent = {"input_tokens": 400, "output_tokens": 500, **changes}
    return [lookup(text) for text in texts], [Example(text, "a", **spent) for text in texts]


def test_repeated_intents_with_good_answers_want_fine_tuning(store: Store, advised) -> None:
    """After the other steps; with its figures, and without feedback a warning."""
    asked, told = learnable(25, 1_000)
    store.lookups.add(asked)
    store.examples.add(told)

    (advice,) = advised().advice

    assert advice.step == "fine-tuning"
    assert advice.figures["answered questions"] == "1,000"
    assert advice.figures["traffic in 25 groups of 0.5% or more of it"].startswith("100.0% (")
    assert advice.figures["called good"] == "not known: no feedback"
    assert "without feedback nobody knows" in advice.unless
    assert "ibidem export" in advice.do
    assert len(advised().intents) == 10
    text, count, of_lookups, of_tokens = advised().intents[0]
    assert (text[: len(question(0, 9))], count, of_lookups) == (question(0, 9), 40, 0.04)
    assert of_tokens == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("groups", "changes", "why"),
    [
        (25, {"documents": (Document("d", "text"),)}, "the answers rest on documents"),
        (25, {"input_tokens": 10, "output_tokens": 10}, "there is nothing to save"),
        (500, {}, "nothing is asked again and again"),
    ],
)
def test_fine_tuning_is_not_advised_where_it_does_not_pay(
    store: Store, advised, groups: int, changes: dict[str, object], why: str
) -> None:
    """Because of one thing that is otherwise."""
    asked, told = learnable(groups, 1_000, **changes)
    store.lookups.add(asked)
    store.examples.add(told)

    assert steps(advised()) == [], why


def test_a_model_is_not_trained_on_bad_answers(store: Store, advised) -> None:
    """Few-shot is what comes first then."""
    asked, told = learnable(25, 1_000)
    store.lookups.add(asked)
    store.examples.add(
        [Example(e.question, e.answer, feedback=n % 2 > 0, output_tokens=900) for n, e in enumerate(told)]
    )

    assert steps(advised()) == ["few-shot"]


def test_one_namespace_alone(store: Store, advised) -> None:
    """What others do is not its own."""
    store.lookups.add(mixed(400))
    store.lookups.add([lookup(question(n), "expired", namespace="acme") for n in range(300)])

    assert advised(namespace="acme").lookups == 300
    assert [one.title for one in advised(namespace="acme").advice] == [REMEDIES["expired"].title]
    assert advised(namespace="").advice == ()


# parts ------------------------------------------------------------------------------------------------


def test_groups_are_those_of_the_meaning() -> None:
    """Counted with how often each was asked, and what it cost."""
    texts = [kind(n, variant) for n in range(5) for variant in range(4)]
    vectors = dict(zip(texts, BagOfWords().embed(texts), strict=True))

    found = intents({text: 1 + n for n, text in enumerate(texts)}, {texts[0]: 7}, vectors)

    assert [sorted(one.texts) for one in found] == [sorted(texts[at : at + 4]) for at in (16, 12, 8, 4, 0)]
    assert [one.count for one in found] == [74, 58, 42, 26, 10]
    assert found[-1].tokens == 7
    assert found[0].question == texts[19]
    assert intents({}, {}, {}) == []
    assert intents({"unread": 3}, {}, {}) == []


def test_a_sample_is_spread_over_the_log() -> None:
    """As many as wanted, evenly; all of fewer."""
    assert list(evenly(range(10), 5)) == [0, 2, 4, 6, 8]
    assert list(evenly(range(3), 5)) == [0, 1, 2]


@pytest.mark.alone
def test_tens_of_thousands_of_lookups_take_seconds(store: Store, advised) -> None:
    """And as many examples."""
    for start in range(0, 30_000, 10_000):
        numbers = range(start, start + 10_000)
        store.lookups.add([lookup(kind(n % 5_000, n % 7)) for n in numbers])
        store.examples.add([Example(question(n % 9_000), "a", scope=SCOPE, input_tokens=90) for n in numbers])
    started = time.process_time()

    found = advised()

    assert time.process_time() - started < 4
    assert (found.lookups, found.examples, found.sampled) == (30_000, 30_000, 1_000)


def test_what_is_no_namespace_is_refused(cache) -> None:
    """By name."""
    for wrong in (3, "\ud800"):
        with pytest.raises(InvalidInput, match="namespace"):
            ibidem_lab.advise(cache, namespace=wrong)


@pytest.mark.usefixtures("wide_console")
def test_advise_on_the_command_line(open_cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a text and as JSON; hostile questions are shown as text."""
    monkeypatch.setattr("ibidem.active_model.resolve_embedder", lambda spec: BagOfWords())
    cache = open_cache()
    cache._runtime.store.lookups.add(
        [lookup("[red]what[/red] is this", "expired") for _ in range(300)]
        + [lookup("what is \x1b[31mthis", "expired")]  # hides something: in no intent
    )
    cache.close()

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["advise", "--path", str(tmp_path / "cache"), *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    said = run()
    assert "Read 301 lookups, hit rate 0.0%, 0 examples; compared 301 lookups by meaning." in said
    assert "1. Answers expire before they are asked for again (cache)" in said
    assert "Do: a longer ttl" in said
    assert "Not if the answers are out of date" in said
    assert "[red]what[/red]" in said
    assert "\x1b[31m" not in said
    assert "Cannot tell yet (few-shot)" in said
    told = json.loads(run("--json"))
    assert told["advice"][0]["step"] == "cache"
    assert told["intents"][0][1:3] == [300, pytest.approx(300 / 301)]
    assert json.loads(run("--json", "--namespace", "none"))["advice"] == []
    assert "No advice" in run("--namespace", "none")
