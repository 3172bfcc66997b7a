"""Pairs of questions from a cache's own life, and the files they are kept in."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import ibidem_lab
from ibidem import Answer, Example, InvalidInput, Request
from ibidem.cache import SemanticCache
from ibidem.cli.commands import app
from ibidem.matching.guards import failed_guard
from ibidem_lab.fitting.labels import Label, read_labels
from ibidem_lab.labelling.gathering import DELETED, Kept
from ibidem_lab.labelling.mining import EACH, VETOED, compared, nearest, stock_answers
from ibidem_lab.labelling.pairs import QuestionPair, read_pairs, write_pairs
from tests.embedders import BagOfWords
from tests.helpers import eventually, question, reworded

FAR = "please kindly tell me about all of this at once: " + question(1, 6)


def by_text(cache: SemanticCache, **arguments: object) -> dict[tuple[str, str], QuestionPair]:
    """The pairs of a cache by their questions."""
    return {(pair.a, pair.b): pair for pair in ibidem_lab.pairs(cache, **arguments).pairs}


def test_a_near_miss_is_a_pair(cache: SemanticCache) -> None:
    """The question asked, the stored one, their cosine, no label."""
    cache.store(Request(question(1)), Answer("one"))
    asked = question(1) + " " + question(2, 8)
    assert not cache.lookup(Request(asked))

    pair = by_text(cache)[asked, question(1)]

    assert (pair.same, pair.source, pair.labelled_by) == (None, "near_miss", "")
    one, other = BagOfWords().embed([asked, question(1)])
    assert pair.cosine == pytest.approx(float(one @ other), abs=1e-3)


def test_a_hit_by_meaning_is_a_pair_and_the_very_same_question_is_none(cache: SemanticCache) -> None:
    """What was served may have been wrong."""
    cache.store(Request(question(1)), Answer("one"))
    assert cache.lookup(Request(reworded(1)))
    assert cache.lookup(Request(question(1)))

    assert [(pair.a, pair.b, pair.source) for pair in ibidem_lab.pairs(cache).pairs] == [
        (reworded(1), question(1), "hit")
    ]


def test_what_audits_and_people_said_is_a_label(open_cache) -> None:
    """Also once the entry is deleted, which bad feedback does; the last word on a pair counts."""
    cache = open_cache(audit_rate=1.0, max_error_rate=0.1)
    for n, fresh in ((1, "answer one"), (2, "something else entirely")):
        cache.store(Request(question(n)), Answer("answer one"))
        assert not cache.lookup(Request(reworded(n)))
        cache.store(Request(reworded(n)), Answer(fresh))
    stored = cache.store(Request(question(3)), Answer("three"))
    cache.feedback(stored, good=True, question=reworded(3))
    cache.feedback(stored, good=False, question=reworded(3))
    cache.flush()

    found = by_text(cache)

    assert found[reworded(1), question(1)].same is True
    assert found[reworded(1), question(1)].labelled_by == "judgement"
    assert found[reworded(1), question(1)].source == "audit"
    assert found[reworded(2), question(2)].same is False
    told = found[reworded(3), question(3)]
    assert (told.same, told.source, told.labelled_by) == (False, "feedback", "feedback")


def test_stored_questions_and_examples_near_one_another_are_pairs(cache: SemanticCache) -> None:
    """Whoever answered them."""
    cache.store(Request(question(1)), Answer("one"))
    cache.examples.add(Example(reworded(1), "an answer from elsewhere"))
    cache.store(Request(question(2)), Answer("two"))

    (pair,) = ibidem_lab.pairs(cache).pairs

    assert {pair.a, pair.b} == {question(1), reworded(1)}
    assert pair.source == "neighbour"


def test_questions_of_two_namespaces_are_never_paired(open_cache) -> None:
    """Not if they are the same but for a word, and asked for all namespaces or for one."""
    cache = open_cache()
    for tenant in ("a", "b"):
        cache.store(Request(question(1), namespace=tenant), Answer("one"))
        cache.store(Request(f"{tenant}a {question(1)}", namespace=tenant), Answer("one"))
        cache.lookup(Request(f"{tenant}b {question(1)}", namespace=tenant))

    pairs = ibidem_lab.pairs(cache).pairs

    texts = {tenant: {question(1), *(f"{tenant}{x} {question(1)}" for x in "ab")} for tenant in "ab"}
    assert {pair.namespace for pair in pairs} == {"a", "b"}
    assert all({pair.a, pair.b} <= texts[pair.namespace] for pair in pairs)
    assert {pair.namespace for pair in ibidem_lab.pairs(cache, namespace="b").pairs} == {"b"}


def test_a_private_question_is_in_no_pair(open_cache) -> None:
    """Also one that was stored by a cache whose `redact` does not know it."""
    secret = f"hunter dog {question(1)}"
    cache, other = open_cache(redact=lambda text: text.replace("hunter dog", "[...]")), open_cache()
    assert eventually(lambda: not cache._runtime._masking)  # else it would redact the example where it lies
    other.store(Request(secret), Answer("one"))
    other.store(Request(question(1)), Answer("one"))
    other.examples.add(Example(f"really {secret}", "one"))
    assert len(ibidem_lab.pairs(other).pairs) == 3

    mined = ibidem_lab.pairs(cache)

    assert not [pair for pair in mined.pairs if "hunter" in pair.as_line()]
    assert mined.left_out["redact would change the question"] == 2


def test_what_a_guard_refuses_needs_no_label(cache: SemanticCache) -> None:
    """It is left out, and counted."""
    for year in (1999, 2004):
        cache.store(Request(f"who was the mayor of this town in {year}"), Answer(f"mayor {year}"))

    mined = ibidem_lab.pairs(cache)

    assert mined.pairs == ()
    assert mined.left_out == {VETOED: 1}


def test_a_question_too_long_to_compare_is_in_no_pair(cache: SemanticCache) -> None:
    """Its end would be cut off."""
    long = " ".join([question(1), *("word" for _ in range(300))])
    cache.examples.add(Example(long, "one"))
    cache.examples.add(Example(f"{long} more", "one"))

    assert ibidem_lab.pairs(cache).pairs == ()
    assert ibidem_lab.pairs(cache).left_out == {"question_too_long": 2}


@pytest.mark.parametrize("examples", [True, False])
def test_the_question_of_a_deleted_entry_is_known_from_the_example_log(open_cache, examples: bool) -> None:
    """Without it what is lost is told: the lookup log holds the id and not the question."""
    cache = open_cache(examples=examples)
    cache.store(Request(question(1)), Answer("one"), ttl=60)
    cache.lookup(Request(reworded(1)))
    assert cache._runtime.store.evictor.delete_expired(time.time() + 3600) == 1

    mined = ibidem_lab.pairs(cache)

    found = [(pair.a, pair.b, pair.source) for pair in mined.pairs]
    assert found == ([(reworded(1), question(1), "hit")] if examples else [])
    assert mined.left_out == ({} if examples else {DELETED: 1})


def test_each_pair_comes_once_and_always_the_same(open_cache) -> None:
    """Asked twice, met by a lookup and again as neighbours: one pair, in the same order at every call."""
    cache = open_cache()
    for n in range(20):
        for words in ("", "please ", "please kindly "):
            cache.store(Request(f"{words}{question(n)}"), Answer(f"{words}{n}"))
        cache.lookup(Request(f"do {question(n)}"))
        cache.lookup(Request(f"do {question(n)}"))

    pairs = ibidem_lab.pairs(cache).pairs

    assert len(pairs) == len({frozenset((pair.a, pair.b)) for pair in pairs}) >= 60
    assert ibidem_lab.pairs(cache).pairs == pairs


def test_the_cosines_are_spread_and_no_question_fills_the_set(open_cache) -> None:
    """Half the pairs are near the threshold, the others from all bands; five a question at most."""
    cache = open_cache()
    for n in range(60):
        for more in range(0, 12, 2):
            cache.store(Request(f"{question(n)} {question(1000 + n, more)}".strip()), Answer(f"{n} {more}"))

    pairs = ibidem_lab.pairs(cache, limit=100).pairs

    assert len(pairs) == 100
    bands = Counter(min(9, int(pair.cosine * 10)) for pair in pairs)
    assert {6, 7, 8, 9} <= set(bands)
    unsure = [pair for pair in pairs if abs(pair.cosine - 0.8) < 0.02]
    assert 50 <= len(unsure) < 90
    used = Counter(text for pair in pairs for text in (pair.a, pair.b))
    assert max(used.values()) <= EACH


def test_known_labels_come_first(open_cache) -> None:
    """A limit leaves out what has none."""
    cache = open_cache()
    for n in range(10):
        cache.store(Request(reworded(n)), Answer("x"))
        cache.feedback(cache.store(Request(question(n)), Answer("x")), good=True, question=reworded(n))

    mined = ibidem_lab.pairs(cache, limit=6)

    assert {pair.labelled_by for pair in mined.pairs} == {"feedback"}
    assert len(mined.pairs) == 6
    assert mined.left_out["over the limit"] == 4


def test_an_embedder_of_before_is_not_asked(open_cache) -> None:
    """Cosines are those of the embedder in use, whatever was logged."""
    cache = open_cache()
    cache.store(Request(question(1)), Answer("one"))
    cache.lookup(Request(f"{reworded(1)} {question(2, 9)}"))
    cache.close()
    cache = open_cache(embedder=BagOfWords(64))

    (pair,) = ibidem_lab.pairs(cache).pairs

    one, other = BagOfWords(64).embed([pair.a, pair.b])
    assert pair.cosine == pytest.approx(float(one @ other), abs=1e-3)


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": True}, {"limit": 1.5}, {"namespace": 3}])
def test_wrong_arguments_are_refused(cache: SemanticCache, wrong: dict[str, object]) -> None:
    """By name."""
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        ibidem_lab.pairs(cache, **wrong)


# labels of stored answers ---------------------------------------------------------------------------------


def kept(text: str, answer: str, scope: str = "s", documents: str = "d") -> Kept:
    """A question with one answer."""
    return Kept(text, None, {(scope, documents): answer})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("You have thirty days.", "you have thirty days", True),
        ("card_arrival", "card_arrival", True),
        ("card_arrival", "lost_card", False),
        ("Paris.", "Berlin", False),
        ("Yes", "No", False),
        ("Yes.", "Yes", None),
        ("42", "42", None),
        ("Within 30 days.", "Within 60 days.", False),
        ("It is Paris", "Paris", None),
        ("", "", None),
        ("A long answer that goes on and on about the first", "Other words, said at length elsewhere", None),
    ],
)
def test_what_stored_answers_tell(one: str, other: str, same: bool | None) -> None:
    """Equal ones that say something: yes. Short ones that have nothing in common: no."""
    assert compared(kept("a", one), kept("b", other), frozenset())[0] is same


def test_answers_of_other_prompts_or_documents_tell_less() -> None:
    """Other prompt: nothing. Other documents: that they differ says nothing, that they are equal does."""
    equal, other = "in the north wing", "beside the lake"

    assert compared(kept("a", equal), kept("b", equal, scope="t"), frozenset()) == (None, "")
    assert compared(kept("a", equal), kept("b", equal, documents="e"), frozenset())[0] is True
    assert compared(kept("a", equal), kept("b", other, documents="e"), frozenset()) == (None, "")


def test_a_stock_answer_tells_nothing() -> None:
    """Such as "Please ask our support": it was given to questions that have nothing in common."""
    east, north = np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)
    vectors = {"a": east, "b": east, "c": north}
    said = [kept(name, "Please ask our support.") for name in "abc"]

    assert compared(said[0], said[1], frozenset())[0] is True
    assert compared(said[0], said[1], stock_answers(said, vectors)) == (None, "")
    assert stock_answers(said[:2], vectors) == frozenset()


@pytest.mark.parametrize("answer", ["I'm sorry, but I can't help with that.", "The context does not say."])
def test_a_refusal_tells_nothing(answer: str) -> None:
    """Neither that two questions mean the same, nor that they do not."""
    assert compared(kept("a", answer), kept("b", answer), frozenset()) == (None, "")
    assert compared(kept("a", answer), kept("b", "in the north wing"), frozenset()) == (None, "")


def test_equal_answers_are_a_label_but_not_those_that_the_cache_repeated(open_cache) -> None:
    """An example that came from the cache has the answer of another question."""
    cache = open_cache()
    cache.store(Request(question(1)), Answer("the whole answer"))
    cache.store(Request(reworded(1)), Answer("The whole answer!"))
    cache.store(Request(question(2)), Answer("another answer"))
    cache.examples.add(
        Example(reworded(2), "another answer", scope=Request("x").scope_digest, entry_id="something")
    )

    found = {frozenset((p.a, p.b)): p for p in ibidem_lab.pairs(cache).pairs}

    told = found[frozenset((question(1), reworded(1)))]
    assert (told.same, told.labelled_by, told.reason) == (True, "answers", "the stored answers are equal")
    assert found[frozenset((question(2), reworded(2)))].same is None


def test_the_nearest_are_the_nearest() -> None:
    """As a full comparison finds them, over more rows than are compared at once."""
    vectors = np.random.default_rng(0).normal(size=(1100, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -2)
    expected = {
        (min(at, int(there)), max(at, int(there)))
        for at, row in enumerate(cosines)
        for there in np.argsort(-row)[:4]
        if row[there] >= 0.5
    }

    found = list(nearest(list(vectors)))

    assert {pair[:2] for pair in found} == expected
    assert len(found) == len(expected)
    assert all(cosine == pytest.approx(cosines[one, other], abs=1e-5) for one, other, cosine in found)
    assert list(nearest(list(vectors[:1]))) == []


def test_no_pair_is_one_that_a_guard_refuses(open_cache) -> None:
    """Checked for all of a larger set."""
    cache = open_cache()
    for n in range(40):
        cache.store(Request(f"{question(n % 8)} in {1990 + n % 3} {'not' if n % 5 else ''}"), Answer(str(n)))

    pairs = ibidem_lab.pairs(cache).pairs

    assert pairs
    assert [pair for pair in pairs if failed_guard(pair.a, pair.b)] == []


# files ------------------------------------------------------------------------------------------------


def test_a_pairs_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    """With what others have added to its lines; `ibidem learn threshold` takes the labelled ones."""
    pairs = [
        QuestionPair("a\n\u2028?", "b", True, 0.5, "audit", "acme", "judgement", "because"),
        QuestionPair("c", "d", False, extra={"answer_a": "", "weight": None}),
        QuestionPair("e", "f"),
    ]
    file = tmp_path / "pairs.jsonl"
    write_pairs(file, pairs)

    assert read_pairs(file) == pairs
    assert [pair.extra for pair in read_pairs(file)] == [{}, {"answer_a": "", "weight": None}, {}]
    assert len(file.read_text(encoding="utf-8").splitlines()) == 3
    assert read_labels(file) == [Label("a\n\u2028?", "b", True), Label("c", "d", False)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no pairs"),
        ("{", "line 1: invalid JSON"),
        ("[1]", "must be"),
        ('{"a": "x"}', "must be"),
        ('{"a": "x", "b": " "}', "must be questions"),
        ('{"a": "x", "b": "y", "same": 2}', '"same" must be 0, 1 or null'),
        ('{"a": "x", "b": "y", "same": "yes"}', '"same" must be 0, 1 or null'),
        ('{"a": "x", "b": "y", "cosine": "far"}', '"cosine" must be a number'),
        ('{"a": "x", "b": "y", "source": 3}', "must be strings"),
    ],
)
def test_a_file_that_holds_no_pairs_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """The line is named."""
    file = tmp_path / "pairs.jsonl"
    file.write_text(text, encoding="utf-8")

    with pytest.raises(InvalidInput, match=said):
        read_pairs(file)


def test_pairs_without_any_label_are_no_labels(tmp_path: Path) -> None:
    """The message says what gives them one."""
    file = tmp_path / "pairs.jsonl"
    write_pairs(file, [QuestionPair("a", "b")])

    with pytest.raises(InvalidInput, match="ibidem learn ask"):
        read_labels(file)
    with pytest.raises(InvalidInput, match="cannot read"):
        read_pairs(tmp_path / "none.jsonl")
    with pytest.raises(InvalidInput, match="cannot write"):
        write_pairs(tmp_path / "none" / "pairs.jsonl", [])


# the command line -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("wide_console")
def test_pairs_on_the_command_line(open_cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, a table, what to do next; nothing is replaced unasked."""
    monkeypatch.setattr("ibidem.active_model.resolve_embedder", lambda spec: BagOfWords())
    cache = open_cache()
    file, at = tmp_path / "pairs.jsonl", ("--path", str(tmp_path / "cache"))
    cache.flush()

    def run(*arguments: str, code: int = 0, says: str = "") -> str:
        result = CliRunner().invoke(app, ["learn", "pairs", *arguments], input=says)
        assert result.exit_code == code, result.output
        return result.output

    assert "no pairs" in run("--out", str(file), *at, code=2)
    assert not file.exists()
    cache.store(Request(question(1)), Answer("one"))
    cache.lookup(Request(reworded(1)))
    cache.close()

    said = run("--out", str(file), *at)

    assert json.loads(file.read_text())["a"] == reworded(1)
    assert "ibidem learn ask" in said
    assert "hit" in said
    run("--out", str(file), *at, code=1, says="n\n")
    run("--out", str(file), *at, "--yes")
