"""Few-shot selection: near the question, different from each other, never bad, never over the budget."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ibidem import Answer, CacheClosed, Document, Example, InvalidInput, Request, StorageError
from ibidem.cache import SemanticCache
from ibidem.embedding.adapters import estimate_tokens
from ibidem.examples.selection import GOOD_BONUS, Candidate, pick, tokens_of, usable
from tests.embedders import BagOfWords, Constant

ASKED = "how do I return my shoes"
NEAR = (
    "how do I return my coat",
    "how do I return my hat",
    "how do I return these trousers please",
    "may I return my socks later",
)
FAR = ("when does the museum open", "who painted the ceiling")


def fill(cache: SemanticCache, *questions: str, **fields: object) -> None:
    """Add an example for each question, and wait until they are written."""
    for question in questions:
        assert cache.examples.add(Example(question, f"answer to {question}", **fields))
    cache.flush()


def questions(found: list[Example]) -> list[str]:
    """What they ask."""
    return [example.question for example in found]


@pytest.fixture
def filled(cache: SemanticCache) -> SemanticCache:
    """A cache with near and far examples."""
    fill(cache, *NEAR, *FAR)
    return cache


def test_the_nearest_come_first(filled: SemanticCache) -> None:
    """Without diversity in the order of similarity; the same again, in another object too."""
    found = filled.examples.select(ASKED, 3, diversity=0.0)

    assert questions(found)[:2] == ["how do I return my hat", "how do I return my coat"]  # as near: the newer
    assert questions(found)[2] == "how do I return these trousers please"
    assert filled.examples.select(ASKED, 3, diversity=0.0) == found
    assert [example.id for example in found] == [2, 1, 3]


def test_diversity_prefers_what_is_not_said_yet(filled: SemanticCache) -> None:
    """Maximal marginal relevance: the second of two that are alike gives way."""
    alike = filled.examples.select(ASKED, 2, diversity=0.0)
    mixed = filled.examples.select(ASKED, 2, diversity=0.6)

    assert questions(alike) == ["how do I return my hat", "how do I return my coat"]
    assert questions(mixed)[0] == questions(alike)[0]
    assert questions(mixed)[1] != questions(alike)[1]


def test_the_bad_are_never_selected_and_the_good_come_first(filled: SemanticCache) -> None:
    """Feedback counts at once; None takes it back."""
    log = filled.examples
    hat, coat = log.select(ASKED, 2, diversity=0.0)
    assert log.feedback(hat.id, good=False)
    assert "how do I return my hat" not in questions(log.select(ASKED, 9))
    assert log.feedback(hat.id, good=None)
    assert log.feedback(coat.id, good=True)
    assert questions(log.select(ASKED, 2, diversity=0.0)) == [coat.question, hat.question]
    assert questions(log.select(ASKED, 9, min_feedback=True)) == [coat.question]
    assert log.select(ASKED, 1)[0].feedback is True
    assert not log.feedback(10**6, good=True)


REFUSED = "I'm sorry, but I can't help with that."
MISSING = "The context does not contain that."


@pytest.mark.parametrize("flawed", [REFUSED, MISSING, "Error: 429 Too Many Requests", "Print the label and"])
def test_no_answer_is_no_example(filled: SemanticCache, flawed: str) -> None:
    """Unless somebody says that it is the right one."""
    log = filled.examples
    log.add(Example("how do I return my socks", flawed))
    filled.flush()
    assert "how do I return my socks" not in questions(log.select(ASKED, 9))
    (added,) = (one for one in log.recent() if one.answer == flawed)
    log.feedback(added.id, good=True)
    assert "how do I return my socks" in questions(log.select(ASKED, 9))


@pytest.mark.parametrize("tags", [(), ("x",)])
def test_a_bad_answer_is_bad_wherever_it_is_given_again(cache: SemanticCache, tags: tuple[str, ...]) -> None:
    """The same answer to such a question, also beyond the tags that are selected; another answer is not."""
    log = cache.examples
    log.add(Example("how do I return my hat", "Throw it away.", feedback=False))
    log.add(Example("How do I return my hat?", "throw it  away.", tags=("x",)))
    log.add(Example("how do I return my own old coat", "By mail.", tags=("x",)))
    cache.flush()
    assert questions(log.select(ASKED, 9, tags=tags)) == ["how do I return my own old coat"]
    log.add(Example("how do I return my hat", "In the shop.", tags=("x",)))
    cache.flush()
    assert "how do I return my hat" in questions(log.select(ASKED, 9, tags=tags))


def test_of_repetitions_one_is_selected(open_cache) -> None:
    """The nearest; unless a number, a negation or the like keeps them apart."""
    cache = open_cache(embedder=Constant())
    fill(
        cache,
        "how do i close an account",
        "how do i close an account please",
        "how do i not close an account",
    )
    fill(cache, "how do i close 2 accounts")
    found = cache.examples.select("where is the bank", 9)

    assert len(found) == 3
    assert sum("2" not in one.question and "not" not in one.question for one in found) == 1


def test_a_corrected_answer_is_the_example(cache: SemanticCache) -> None:
    """The former one never is, whoever logged it; corrected again, the last one is."""
    stored = cache.store(Request("how do I return my hat"), Answer("Throw it away."))
    cache.examples.add(Example("how do I return my hat", "Throw it away.", model="of a handler"))
    cache.flush()
    for text in ("By mail.", "In the shop."):
        cache.correct(stored, text)
        found = cache.examples.select(ASKED, 9)
        assert [(one.answer, one.feedback) for one in found] == [(text, True)]


def test_a_good_example_is_not_taken_from_far_away(filled: SemanticCache) -> None:
    """The bonus orders what is similar; it does not make a museum a shoe."""
    log = filled.examples
    museum = next(example for example in log.recent() if "museum" in example.question)
    log.feedback(museum.id, good=True)

    assert log.select(ASKED, 1)[0].question in NEAR


def test_neither_the_question_itself_nor_one_question_twice(cache: SemanticCache) -> None:
    """Up to case, blanks and final punctuation; of the same question the good one, else the newest."""
    fill(cache, ASKED, "How do I  return my SHOES?", "how do I return my hat")
    cache.examples.add(Example("How do I return my hat?", "the second"))
    cache.flush()
    (newest,) = cache.examples.select(ASKED, 9)
    assert newest.answer == "the second"
    first = next(example for example in cache.examples.recent() if example.answer.endswith("hat"))
    cache.examples.feedback(first.id, good=True)

    (good,) = cache.examples.select(ASKED, 9)
    assert (good.id, good.feedback) == (first.id, True)


def test_filters(cache: SemanticCache) -> None:
    """Namespace, model and tags; all tags must be there, and one is no part of another."""
    fill(cache, NEAR[0], namespace="a", model="m", tags=("x", "y"))
    fill(cache, NEAR[1], namespace="a", model="n", tags=("xy",))
    fill(cache, NEAR[2], namespace="b", tags=(", ", '"x"'))
    select = cache.examples.select

    assert select(ASKED) == []
    assert len(select(ASKED, namespace="a")) == 2
    assert questions(select(ASKED, namespace="a", model="n")) == [NEAR[1]]
    assert questions(select(ASKED, namespace="a", tags=["x"])) == [NEAR[0]]
    assert questions(select(ASKED, namespace="a", tags=["y", "x"])) == [NEAR[0]]
    assert select(ASKED, namespace="a", tags=["x", "xy"]) == []
    assert questions(select(ASKED, namespace="b", tags=['"x"', ", "])) == [NEAR[2]]
    assert select(ASKED, namespace="b", tags=["x"]) == []
    assert select(ASKED, namespace="a", model="none") == []


def test_more_than_the_nearest_are_looked_at_if_they_are_bad(cache: SemanticCache) -> None:
    """However many bad examples stand before a good one."""
    fill(cache, *(f"how do I return my shoes number {n}" for n in range(200)), "how may shoes be sent")
    for example in cache.examples.recent(1000):
        if "number" in example.question:
            cache.examples.feedback(example.id, good=False)
    while cache.examples.select("warm") and cache._runtime.examples.selector.behind:
        cache._runtime.examples.selector.work()

    assert questions(cache.examples.select(ASKED)) == ["how may shoes be sent"]


def test_what_was_deleted_is_not_selected(filled: SemanticCache, open_cache) -> None:
    """Cleared, invalidated or replaced by another process; and what came since is."""
    other = open_cache(namespace_ttl={"x": 5})
    assert len(filled.examples.select(ASKED, 9)) == 6
    other.clear()
    assert filled.examples.select(ASKED, 9) == []
    fill(other, NEAR[0])
    assert questions(filled.examples.select(ASKED, 9)) == [NEAR[0]]


def test_stored_answers_bring_their_vectors(open_cache) -> None:
    """Nothing is embedded twice, and a selection for a question asked before embeds nothing."""
    embedder = BagOfWords()
    cache = open_cache(embedder=embedder)
    for question in NEAR:
        cache.store(Request(question), Answer("yes"))
    cache.lookup(Request(ASKED))
    cache.flush()
    before = embedder.calls
    found = cache.examples.select(ASKED)

    assert {*questions(found)} == {*NEAR}
    assert embedder.calls == before


def test_an_old_log_is_embedded_bit_by_bit(open_cache, monkeypatch) -> None:
    """A selection embeds the newest at once, and the background the others; also for another embedder."""
    monkeypatch.setattr("ibidem.examples.selection.AT_ONCE", 4)
    first = open_cache()
    fill(first, *(f"how do I return shoe {n}" for n in range(10)))
    newest = {f"how do I return shoe {n}" for n in (9, 8, 7, 6)}
    assert {*questions(first.examples.select(ASKED, 20))} >= newest
    done = threading.Event()
    for _ in range(100):
        if len(first.examples.select(ASKED, 20)) == 10:
            break
        done.wait(0.05)
    assert len(first.examples.select(ASKED, 20)) == 10
    first.close()

    second = open_cache(embedder=BagOfWords(64))
    for _ in range(100):
        if len(found := second.examples.select(ASKED, 20)) == 10:
            break
        done.wait(0.05)
    assert len(found) == 10
    assert second.stats().faults == {}


def test_what_the_embedder_cannot_read(cache: SemanticCache) -> None:
    """A question too long gets no examples, and is no example; the others are."""
    long = "word " * 300
    fill(cache, long, NEAR[0])

    assert cache.examples.select(long) == []
    assert questions(cache.examples.select(ASKED)) == [NEAR[0]]
    assert questions(cache.examples.select(ASKED)) == [NEAR[0]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"question": 7}, "question must be a str"),
        ({"k": -1}, "k must be a whole number"),
        ({"k": True}, "k must be a whole number"),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number"),
        ({"namespace": None}, "namespace must be a str"),
        ({"min_feedback": False}, "min_feedback must be True"),
        ({"min_feedback": 1}, "min_feedback must be True"),
        ({"diversity": 1.1}, "diversity must be a number from 0 to 1"),
        ({"diversity": True}, "diversity must be a number from 0 to 1"),
        ({"tags": "x"}, "tags must be a list"),
        ({"model": 4}, "model must be a str"),
    ],
)
def test_misuse_is_an_error(cache: SemanticCache, given: dict[str, object], message: str) -> None:
    """Told at once, also while the log is empty."""
    with pytest.raises(InvalidInput, match=message):
        cache.examples.select(**{"question": ASKED, **given})


def test_misuse_of_feedback_is_an_error(cache: SemanticCache) -> None:
    """An id is a number, and an opinion is one of three."""
    for wrong in ("1", 1.0, True, None):
        with pytest.raises(InvalidInput, match="example_id must be an int"):
            cache.examples.feedback(wrong, good=True)
    with pytest.raises(InvalidInput, match="good must be True, False or None"):
        cache.examples.feedback(1, good="yes")
    assert [cache.examples.feedback(id_, good=True) for id_ in (0, -1, 2**70)] == [False] * 3


def test_failures_are_told(cache: SemanticCache, monkeypatch) -> None:
    """By the plain interface; a closed cache says so."""

    def fail(*_: object, **__: object) -> None:
        raise StorageError("disk I/O error")

    monkeypatch.setattr(cache._runtime.store.examples, "vector_range", fail)
    with pytest.raises(StorageError, match="disk I/O error"):
        cache.examples.select(ASKED)
    cache.close()
    for use in (lambda: cache.examples.select(ASKED), lambda: cache.examples.feedback(1, good=True)):
        with pytest.raises(CacheClosed):
            use()
    with pytest.raises(CacheClosed):
        cache.examples.stats()


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)
spoken = text.filter(lambda value: value.strip())
candidates = st.lists(
    st.builds(
        lambda question, answer, feedback, n, seed: Candidate(
            Example(question, answer, feedback=feedback, id=n),
            _unit(np.random.default_rng(seed)),
            float(np.random.default_rng(seed).uniform(-1, 1)),
        ),
        spoken,
        spoken,
        st.none() | st.booleans(),
        st.integers(1, 10**6),
        st.integers(0, 2**32 - 1),
    ),
    max_size=12,
)


def _unit(random: np.random.Generator) -> np.ndarray:
    vector = random.standard_normal(8).astype(np.float32)
    return vector / np.linalg.norm(vector)


@settings(max_examples=200, deadline=None)
@given(
    found=candidates,
    k=st.integers(0, 12),
    budget=st.none() | st.integers(0, 600),
    diversity=st.floats(0, 1),
    order=st.randoms(use_true_random=False),
)
def test_the_budget_holds_in_any_order_of_candidates(found, k, budget, diversity, order) -> None:
    """For any texts; at most k, none bad, none twice; what was passed over would not have fitted."""
    left = usable(found, "a question")
    picked = pick(left, k, diversity=diversity, max_tokens=budget)

    spent = sum(map(tokens_of, picked))
    assert len(picked) <= k
    assert budget is None or spent <= budget
    assert all(example.feedback is not False for example in picked)
    assert len({" ".join(example.question.casefold().split()) for example in picked}) == len(picked)
    if len(picked) < min(k, len(left)):
        rest = [one.example for one in left if one.example not in picked]
        assert all(tokens_of(example) > budget - spent for example in rest)
    if len({one.example.id for one in found}) == len(found):
        shuffled = [*found]
        order.shuffle(shuffled)
        assert pick(usable(shuffled, "a question"), k, diversity=diversity, max_tokens=budget) == picked


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(budget=st.integers(0, 120), k=st.integers(1, 8))
def test_the_budget_holds_in_a_cache(filled: SemanticCache, budget: int, k: int) -> None:
    """By the bound, and by the counter of a user."""
    found = filled.examples.select(ASKED, k, max_tokens=budget)
    assert sum(estimate_tokens(one.question) + estimate_tokens(one.answer) for one in found) <= budget
    found = filled.examples.select(ASKED, k, max_tokens=budget, count_tokens=len)
    assert sum(len(one.question) + len(one.answer) for one in found) <= budget


def test_a_large_example_leaves_room_for_small_ones(cache: SemanticCache) -> None:
    """It is passed over."""
    cache.examples.add(Example(NEAR[0], "word " * 500))
    fill(cache, NEAR[1])

    assert questions(cache.examples.select(ASKED, 2, max_tokens=60)) == [NEAR[1]]


def test_the_bonus_is_a_tie_breaker() -> None:
    """As documented."""
    assert Candidate(Example("q", "a", feedback=True), np.ones(1), 0.5).relevance == 0.5 + GOOD_BONUS
    assert Candidate(Example("q", "a"), np.ones(1), 0.5).relevance == 0.5


# The log ------------------------------------------------------------------------------------------------


def test_a_stored_answer_is_one_example(cache: SemanticCache) -> None:
    """With all that is known of it."""
    document = Document("d", "text", source="file")
    request = Request("how long", scope="s", namespace="n", documents=(document,))
    answer = Answer("30 days", model="m", input_tokens=7, output_tokens=2, seconds=0.5)
    stored = cache.store(request, answer, tags=["t"])
    cache.lookup(request)
    (kept,) = cache.examples.recent()

    assert kept == Example(
        "how long", "30 days", at=kept.at, namespace="n", model="m", documents=(document,), input_tokens=7,
        output_tokens=2, seconds=0.5, entry_id=stored.entry_id, scope=request.scope_digest, tags=("t",),
    )  # fmt: skip


def test_an_answer_that_was_asked_for_is_one_example(cache: SemanticCache) -> None:
    """By `cache.answer`: the model's; a repeated one is none."""
    for _ in range(3):
        assert cache.answer(Request("how long"), lambda request: Answer("30 days")).text == "30 days"

    assert questions(cache.examples.recent()) == ["how long"]


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (Request("how long", semantic=False), Answer("30 days")),
        (Request("how long", example=False), Answer("30 days")),
        (Request("how long"), Answer("{}", semantic=False)),
        (Request("how long"), Answer("30", finish_reason="length")),
        (Request("who is Bob"), Answer("a builder")),
    ],
    ids=["question unknown", "a step", "for programs", "cut off", "private"],
)
def test_what_is_no_example(open_cache, request_: Request, answer: Answer) -> None:
    """Where the question is not known or private, a program reads the answer, or nothing was stored."""
    cache = open_cache(redact=lambda text: text.replace("Bob", "somebody"))
    cache.store(request_, answer)

    assert cache.examples.recent() == []


def test_no_examples_are_kept_if_they_are_switched_off(open_cache, monkeypatch) -> None:
    """By argument or environment; nothing is counted as a fault."""
    quiet = open_cache(examples=False)
    quiet.store(Request("how long"), Answer("30 days"))
    assert not quiet.examples.add(Example("q", "a"))
    assert (quiet.examples.count(), quiet.stats().entries, quiet.stats().faults) == (0, 1, {})
    monkeypatch.setenv("IBIDEM_EXAMPLES", "0")
    assert not open_cache().examples.add(Example("q", "a"))
    assert open_cache(examples=True).examples.add(Example("q", "a"))


def test_old_examples_are_deleted(open_cache) -> None:
    """`example_ttl`, by the time of the answer; the shorter of two caches on one place holds."""
    cache = open_cache(example_ttl=1e10)
    cache.examples.add(Example("old", "a", at=5.0))
    cache.examples.add(Example("new", "a"))
    assert len(cache.examples.recent()) == 2
    cache._runtime.examples.expiry._next_at = 0.0
    open_cache(example_ttl=60.0).flush()

    assert questions(cache.examples.recent()) == ["new"]


def test_one_answer_told_of_twice_is_one_example(cache: SemanticCache) -> None:
    """By a store and by a handler, in either order; what either knows is kept, and a tenant's is his own."""
    request = Request("how long")
    told = Example(" how long", "30 days", model="m", output_tokens=0, streamed=True, feedback=False)
    stored = cache.store(request, Answer("30 days", input_tokens=7, output_tokens=5))
    cache.examples.add(told)
    cache.examples.add(Example("how long", "30 days", namespace="other"))
    other, one = cache.examples.recent()
    assert (one.entry_id, one.model, one.output_tokens, one.streamed) == (stored.entry_id, "m", 5, True)
    assert (one.feedback, one.scope, other.namespace) == (False, request.scope_digest, "other")
    cache.examples.add(told)  # somebody was asked again
    assert cache.examples.count() == 3


@pytest.mark.parametrize("first", ["store", "add"])
def test_one_answer_is_one_example_if_the_first_was_written_already(cache: SemanticCache, first: str) -> None:
    """Whoever comes first."""

    def store() -> None:
        cache.store(Request("how long"), Answer("30 days"))

    def add() -> None:
        cache.examples.add(Example("how long", "30 days"))

    for tell in (store, add) if first == "store" else (add, store):
        tell()
        cache.flush()
    assert cache.examples.count() == 1
    cache.clear()
    (add if first == "store" else store)()
    assert cache.examples.count() == 1


def test_entries_with_one_text_are_two_examples(cache: SemanticCache) -> None:
    """The same answer over other documents."""
    for text in ("one", "two"):
        cache.store(Request("how long", documents=(Document(text, text),)), Answer("30 days"))
        cache.flush()

    assert cache.examples.count() == 2


def test_the_same_answer_later_is_another_example(cache: SemanticCache, monkeypatch) -> None:
    """Told of twice is a matter of moments."""
    monkeypatch.setattr("ibidem.examples.log.JOIN_SECONDS", 0.0)
    cache.store(Request("how long"), Answer("30 days"))
    cache.examples.add(Example("how long", "30 days"))

    assert cache.examples.count() == 2


@pytest.mark.parametrize("good", [True, False])
def test_feedback_on_an_answer_marks_its_examples(cache: SemanticCache, good: bool) -> None:
    """Those that name the entry and those with its question and answer; no others. They stay."""
    stored = cache.store(Request("how long"), Answer("30 days"))
    cache.flush()
    cache.store(Request("how long"), Answer("40 days"))
    cache.examples.add(Example("how long", "40 days", namespace="other"))
    cache.examples.add(Example("how long", "40 days at most"))
    assert cache.feedback(stored, good=good)
    marked = {(one.answer, one.namespace): one.feedback for one in cache.examples.recent()}

    assert marked == {
        ("30 days", ""): None,
        ("40 days", ""): good,
        ("40 days", "other"): None,
        ("40 days at most", ""): None,
    }
    assert cache.stats().entries == (1 if good else 0)


def test_counts(cache: SemanticCache) -> None:
    """By namespace, model and feedback; tokens where they are known."""
    fill(cache, "a", "b", model="m", input_tokens=10, output_tokens=1)
    fill(cache, "c", namespace="n", feedback=True)
    fill(cache, "d", namespace="n", feedback=False, input_tokens=5)
    stats = cache.examples.stats()

    assert (stats.total, stats.namespaces, stats.models) == (4, {"": 2, "n": 2}, {"m": 2, "": 2})
    assert (stats.good, stats.bad, stats.unknown) == (1, 1, 2)
    assert (stats.input_tokens, stats.output_tokens) == (25, 2)
    assert cache.examples.stats("n").total == 2
