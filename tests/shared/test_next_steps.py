"""The next steps on logs for which the right one is known, and on logs for which there is none."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ibidem_lab
from ibidem import Answer, Document, EmbedderUnavailable, Example, InvalidInput, Request
from ibidem.cli.commands import app
from ibidem.embedding.base import CheckedEmbedder
from ibidem.storage.logs import LookupRow
from ibidem.storage.store import Store
from ibidem_lab.report.intents import copies, intents
from ibidem_lab.report.next_steps import NextStep, evenly, judge_steps, read_traffic
from tests.embedders import BagOfWords
from tests.helpers import question

SCOPE = Request("x", scope="a prompt").scope_digest
Steps = Callable[..., dict[str, NextStep]]


@pytest.fixture
def store(tmp_path: Path) -> Iterable[Store]:
    """An empty database."""
    opened = Store(f"sqlite:///{tmp_path / 'ibidem.sqlite3'}")
    yield opened
    opened.close()


@pytest.fixture
def steps(store: Store) -> Steps:
    """The next steps by name; of several on documents the first."""
    embedder = CheckedEmbedder(BagOfWords(), store.meta.set_default)
    return lambda *namespace: {step.name: step for step in reversed(judge_steps(store, embedder, *namespace))}


def lookup(text: str, **changes: object) -> LookupRow:
    """A line of the lookup log: a miss, unless `tier` says otherwise."""
    given = {
        "at": 1.0,
        "namespace": "",
        "scope": SCOPE,
        "question": text,
        "tier": "",
        "reason": "below_threshold",
        "entry_id": None,
        "similarity": 0.3,
        "seconds": 0.01,
        "tokens_saved": 0,
        **changes,
    }
    return LookupRow(**given)


def kind(n: int, variant: int) -> str:
    """A wording of the n-th intent: most words are those of the intent."""
    return f"{question(n, 9)} {question(10_000 + variant, 2)}"


def verdicts(found: dict[str, NextStep]) -> list[bool | None]:
    """Whether few-shot, documents and fine-tuning are advised."""
    assert sorted(found) == ["documents", "few-shot", "fine-tuning"]
    return [found[name].advised for name in ("few-shot", "documents", "fine-tuning")]


def test_an_empty_log_says_what_is_missing(steps: Steps) -> None:
    """For each step."""
    found = steps()

    assert verdicts(found) == [None, None, None]
    assert "0 questions with feedback; 30 are needed" in found["few-shot"].finding
    assert "0 answered questions in the log; 500 are needed" in found["fine-tuning"].finding


def test_a_log_without_a_fault_asks_for_nothing(store: Store, steps: Steps) -> None:
    """Questions of all kinds, good answers and here and there a bad one."""
    store.lookups.add([lookup(question(n)) for n in range(2_000)])
    draw = random.Random(1)
    store.examples.add(
        [
            Example(
                question(n),
                f"Answer {n}.",
                scope=SCOPE,
                input_tokens=draw.randrange(120, 400),
                output_tokens=90,
                feedback=draw.choice([True] * 19 + [False]) if n % 3 == 0 else None,
            )
            for n in range(2_000)
        ]
    )
    found = steps()

    assert verdicts(found) == [False, None, False]
    assert found["few-shot"].figures["questions with feedback"] == "667"
    assert found["fine-tuning"].finding == "Nothing is asked again and again"


@pytest.mark.parametrize("seed", range(3))
def test_chance_is_not_advised(store: Store, steps: Steps, seed: int) -> None:
    """Repeated intents, a tenth of the answers called bad wherever it falls, few tokens."""
    draw = random.Random(seed)
    store.lookups.add([lookup(kind(n % 40, n)) for n in range(1_000)])
    store.examples.add(
        [Example(kind(n % 40, n), "a", feedback=draw.random() > 0.1, input_tokens=50) for n in range(1_000)]
    )

    assert verdicts(steps()) == [False, None, False]


@pytest.mark.parametrize("good", [40, 0])
def test_bad_answers_to_one_kind_of_question_ask_for_few_shot(store: Store, steps: Steps, good: int) -> None:
    """The kind is named; without good answers, somebody has to write some."""
    store.examples.add([Example(kind(1, n), "a", feedback=n % 2 == 0) for n in range(40)])
    if good:
        store.examples.add([Example(question(500 + n), "a", feedback=True) for n in range(good)])
    else:  # the last word on the same questions
        store.examples.add([Example(kind(1, n), "a", feedback=False) for n in range(40)])
    step = steps()["few-shot"]

    assert step.advised
    assert any(name.startswith((f"bad: {question(1, 9)}", "bad: all")) for name in step.figures)
    assert ("cache.examples.select" in step.action) == bool(good)
    assert ("cache.examples.add" in step.action) == (not good)


def test_bad_answers_whose_neighbours_have_other_ones_ask_for_documents(store: Store, steps: Steps) -> None:
    """What a person wrote in the place of a bad answer does not make it good, and tells what was right."""
    for n in range(60):
        store.examples.add([Example(kind(n % 4, n), "I do not know", model="m", feedback=False)])
        store.examples.add([Example(kind(n % 4, n), f"{n} euro", feedback=True)])
    found = steps()

    assert verdicts(found) == [False, True, None]
    assert found["few-shot"].figures["called good"] == "0"
    assert "different answers" in found["documents"].finding
    assert found["documents"].figures["the nearest example has the right answer"].startswith("0.0")


def stored(cache, n: int, text: str, documents: tuple[Document, ...]) -> None:
    """Store an answer over documents."""
    assert cache.store(Request(question(n), namespace="docs", documents=documents), Answer(text))


def documents_step(cache) -> NextStep:
    """The verdict on documents for an open cache."""
    (found,) = [step for step in ibidem_lab.next_steps(cache) if step.name == "documents"]
    return found


def test_answers_that_no_document_supports_ask_for_documents(open_cache) -> None:
    """Where documents are usual."""
    cache = open_cache()
    for n in range(120):
        other = n if n % 2 else n + 1000
        stored(cache, n, f"It is {question(n)}.", (Document(str(n), f"We say it is {question(other)}."),))
    step = documents_step(cache)

    assert (step.advised, step.figures["namespace"]) == (True, "docs")
    assert step.figures["unsupported"].startswith("50.0\N{NO-BREAK SPACE}% (")


def test_supported_answers_ask_for_no_documents(open_cache) -> None:
    """Nor a namespace in which documents are not usual."""
    cache = open_cache()
    for n in range(120):
        stored(cache, n, f"It is {question(n)}.", (Document(str(n), f"We say it is {question(n)}."),))
        cache.store(Request(question(n), namespace="chat"), Answer("It is so."))
    step = documents_step(cache)

    assert step.advised is False
    assert step.figures == {"namespaces with documents": "1"}


def test_answers_without_documents_are_named_where_documents_are_usual(open_cache) -> None:
    """A third without any."""
    cache = open_cache()
    for n in range(150):
        documents = (Document(str(n), f"We say it is {question(n)}."),) if n % 3 else ()
        stored(cache, n, f"It is {question(n)}.", documents)
    step = documents_step(cache)

    assert "without documents" in step.finding
    assert step.figures["without"].startswith("33.3\N{NO-BREAK SPACE}% (")


def learnable(groups: int, count: int, **changes: object) -> tuple[list[LookupRow], list[Example]]:
    """Traffic of so many intents, and its answers, 900 tokens each."""
    texts = [kind(n % groups, n) for n in range(count)]
    spent = {"input_tokens": 400, "output_tokens": 500, **changes}
    return [lookup(text) for text in texts], [Example(text, "a", **spent) for text in texts]


def test_repeated_intents_with_good_answers_ask_for_fine_tuning(store: Store, steps: Steps) -> None:
    """With its figures, and without feedback a warning."""
    asked, told = learnable(25, 1_000)
    store.lookups.add(asked)
    store.examples.add(told)
    step = steps()["fine-tuning"]

    assert step.advised
    assert step.figures["answered questions"] == "1,000"
    assert step.figures["traffic in 25 groups of 0.5\N{NO-BREAK SPACE}% or more of it"].startswith(
        "100.0\N{NO-BREAK SPACE}% ("
    )
    assert step.figures["called good"] == "not known: no feedback"
    assert "without feedback nobody knows" in step.unless
    assert "ibidem export" in step.action


@pytest.mark.parametrize(
    ("groups", "changes", "why"),
    [
        (
            25,
            {"documents": (Document("d", "text"),)},
            "The answers rest on documents, which a model does not learn",
        ),
        (25, {"input_tokens": 10, "output_tokens": 10}, "The models in the log cost little"),
        (500, {}, "Nothing is asked again and again"),
    ],
)
def test_fine_tuning_is_not_advised_where_it_does_not_pay(
    store: Store, steps: Steps, groups: int, changes: dict[str, object], why: str
) -> None:
    """Because of one thing that is otherwise."""
    asked, told = learnable(groups, 1_000, **changes)
    store.lookups.add(asked)
    store.examples.add(told)

    step = steps()["fine-tuning"]

    assert (step.advised, step.finding) == (False, why)


@pytest.mark.parametrize("rest", [None, True])
def test_a_model_is_not_trained_on_bad_answers(store: Store, steps: Steps, rest: bool | None) -> None:
    """Half of those that were judged are bad: so may be the others. What is called bad is left out."""
    asked, told = learnable(25, 1_000)
    store.lookups.add(asked)
    verdict = (False, True, rest)
    store.examples.add(
        [
            Example(e.question, e.answer, feedback=verdict[n % 3], output_tokens=900)
            for n, e in enumerate(told)
        ]
    )

    assert verdicts(steps()) == [True, None, bool(rest)]


def test_one_namespace_alone(store: Store, steps: Steps) -> None:
    """The logs of others are not read."""
    store.examples.add([Example(question(n), "a", namespace="acme") for n in range(510)])

    assert steps("acme")["fine-tuning"].figures["answered questions"] == "510"
    assert steps("")["fine-tuning"].advised is None


# parts ------------------------------------------------------------------------------------------------


def test_groups_are_those_of_the_meaning() -> None:
    """Counted with how often each was asked."""
    texts = [kind(n, variant) for n in range(5) for variant in range(4)]
    vectors = dict(zip(texts, BagOfWords().embed(texts), strict=True))

    found = intents({text: 1 + n for n, text in enumerate(texts)}, vectors)

    assert [sorted(one.texts) for one in found] == [sorted(texts[at : at + 4]) for at in (16, 12, 8, 4, 0)]
    assert [one.count for one in found] == [74, 58, 42, 26, 10]
    assert found[0].question == texts[19]
    assert intents({}, {}) == []
    assert intents({"unread": 3}, {}) == []


def test_the_nearest_question_has_the_same_answer_or_another() -> None:
    """Short answers word for word, longer ones by most of their words."""
    long = "You can send it back within thirty days, unworn and with the receipt."
    answers = {
        kind(1, 1): "4 euro",
        kind(1, 2): "5 euro",
        kind(2, 1): long,
        kind(2, 2): long.replace("can", "may"),
    }
    vectors = dict(zip(answers, BagOfWords().embed(list(answers)), strict=True))

    assert [*copies(answers, vectors, [*answers, "unknown"]).values()] == [False, False, True, True]
    assert copies({"one": "1"}, vectors, ["one"]) == {}


def test_a_sample_is_spread_over_the_log() -> None:
    """As many as wanted, evenly; all of fewer."""
    assert list(evenly(range(10), 5)) == [0, 2, 4, 6, 8]
    assert list(evenly(range(3), 5)) == [0, 1, 2]


@pytest.mark.alone
def test_tens_of_thousands_of_lookups_take_seconds(store: Store, steps: Steps) -> None:
    """And as many examples."""
    for start in range(0, 30_000, 10_000):
        numbers = range(start, start + 10_000)
        store.lookups.add([lookup(kind(n % 5_000, n % 7)) for n in numbers])
        store.examples.add([Example(question(n % 9_000), "a", scope=SCOPE, input_tokens=90) for n in numbers])
    started = time.process_time()

    traffic = read_traffic(store, CheckedEmbedder(BagOfWords(), store.meta.set_default), None)
    steps()

    assert time.process_time() - started < 8
    assert (len(traffic.examples), traffic.sampled) == (30_000, 1_000)


def test_what_is_no_namespace_is_refused(cache) -> None:
    """By name."""
    for wrong in (3, "\ud800"):
        with pytest.raises(InvalidInput, match="namespace"):
            ibidem_lab.next_steps(cache, namespace=wrong)


@pytest.mark.usefixtures("wide_console")
def test_the_report_prints_the_steps(open_cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And writes them into the page; hostile questions are shown as text."""
    monkeypatch.setattr("ibidem.active_model.resolve_embedder", lambda spec: BagOfWords())
    monkeypatch.setattr("ibidem_lab.report.page.draw", lambda _: "<svg></svg>")
    with open_cache() as cache:
        cache._runtime.store.examples.add(
            [Example(f"[red]what[/red] is <i>this</i> {n % 20}", "a", feedback=False) for n in range(40)]
            + [Example(question(n), "a", feedback=True) for n in range(40)]
        )
    page = tmp_path / "report.html"
    done = CliRunner().invoke(app, ["report", "--path", str(tmp_path / "cache"), "--out", str(page)])
    said, written = done.output, page.read_text(encoding="utf-8")

    assert done.exit_code == 0, said
    assert "Few-shot: advised. Answers to some kinds of questions are often bad." in said
    assert "bad: [red]what[/red] is <i>this</i>" in said
    assert "Do: put good answers into the prompt" in said
    assert "Fine-tuning: cannot tell yet. 40 answered questions" in said
    assert "What to do next" in written
    assert "bad: [red]what[/red] is &lt;i&gt;this&lt;/i&gt;" in written


def test_a_report_without_the_embedding_model_has_no_next_steps(
    open_cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All else is there, and the terminal says why."""

    def fails(spec: object) -> None:
        raise EmbedderUnavailable("no model")

    open_cache().close()
    monkeypatch.setattr("ibidem.active_model.resolve_embedder", fails)
    page = tmp_path / "report.html"
    done = CliRunner().invoke(app, ["report", "--path", str(tmp_path / "cache"), "--out", str(page)])

    assert done.exit_code == 0, done.output
    assert "What to do next is left out: no model" in done.output
    assert "What to do next" not in page.read_text(encoding="utf-8")
