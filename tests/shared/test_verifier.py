"""A verifier and guards of one's own: they decide, fail open, and have audits of their own."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

import ibidem
from ibidem import Answer, ConfigurationError, Document, InvalidInput, Request
from ibidem.matching.scorers import Candidate
from ibidem.matching.text import QuestionFeatures
from tests.embedders import BagOfWords
from tests.helpers import answer, question, reworded

PARIS = Document("paris", "Paris is the capital of France.")
LYON = Document("lyon", "Lyon is a city in France.")
Scores = Callable[[str, Sequence[Candidate]], Sequence[float]]


@dataclass
class Recording:
    """A verifier that remembers what it is shown."""

    scores: Scores = lambda asked, candidates: [0.9] * len(candidates)
    name: str = "recording"
    batches: list[list[Candidate]] = field(default_factory=list)

    def verify(self, question: str, candidates: Sequence[Candidate]) -> Sequence[float]:
        self.batches.append(list(candidates))
        return self.scores(question, candidates)


def by_city(asked: str, candidates: Sequence[Candidate]) -> list[float]:
    """Sure of the candidate whose answer names what its documents do."""
    return [
        0.95 if any(one.entry.answer.text in document.text for document in one.documents) else 0.1
        for one in candidates
    ]


def test_one_batch_with_question_answer_and_documents(open_cache) -> None:
    """The candidates that guards and documents allow, and the one it is surest of is served."""
    verifier = Recording(by_city)
    cache = open_cache(verifier=verifier)
    told = [(question(1), "Marseille"), (f"{question(1)} also", "Paris"), (f"{question(1)} 7", "Paris")]
    for text, said in told:
        cache.store(Request(text, documents=(PARIS, LYON)), Answer(said))
    hit = cache.lookup(Request(reworded(1), documents=(LYON, PARIS)))

    assert hit
    assert (hit.answer.text, hit.score) == ("Paris", 0.95)
    (batch,) = verifier.batches
    assert {one.entry.question for one in batch} == {question(1), f"{question(1)} also"}  # not the 7
    assert all(one.documents == (LYON, PARIS) for one in batch)


def test_it_is_told_how_near_the_others_are(open_cache) -> None:
    """The mean over 15, each stored question once, whatever its documents; the candidate's own left out."""
    verifier = Recording(lambda asked, candidates: [0.4] * len(candidates))
    cache = open_cache(verifier=verifier, min_probability=0.9, guards=[], document_policy="ignore")
    cache.store(Request(question(1)), Answer(answer(1)))
    cache.lookup(Request(reworded(1)))
    others = [f"{question(1)} also", f"{question(1)} now"]
    for text, documents in ((others[0], (PARIS,)), (others[0], (LYON,)), (others[1], (PARIS,))):
        cache.store(Request(text, documents=documents), Answer(answer(1)))
    cache.lookup(Request(reworded(1), documents=(PARIS,)))
    alone, crowded = verifier.batches
    near = {one.entry.question: one.similarity for one in crowded}

    assert [one.density for one in alone] == [0.0]
    assert (set(near), len(crowded)) == ({question(1), *others}, 4)
    for one in crowded:
        rest = [similarity for text, similarity in near.items() if text != one.entry.question]
        assert one.density == pytest.approx(sum(rest) / 15)


def test_a_low_score_is_a_miss(open_cache) -> None:
    cache = open_cache(verifier=Recording(lambda asked, candidates: [0.4] * len(candidates)))
    cache.store(Request(question(1)), Answer(answer(1)))

    assert cache.lookup(Request(reworded(1))).reason == "below_threshold"
    assert cache.lookup(Request(question(1)))  # the same question needs no verifier


def test_nothing_to_verify_is_no_call(open_cache) -> None:
    """Far questions, guards and documents refuse before."""
    verifier = Recording()
    cache = open_cache(verifier=verifier)
    cache.store(Request(question(1), documents=(PARIS,)), Answer("Paris"))
    cache.store(Request(f"{question(2)} 7"), Answer(answer(2)))

    assert cache.lookup(Request(question(3))).reason == "below_threshold"
    assert cache.lookup(Request(reworded(1), documents=(LYON,))).reason == "documents_changed"
    assert cache.lookup(Request(f"{question(2)} 8")).reason == "guard:numbers"
    assert verifier.batches == []


def fails(asked: str, candidates: Sequence[Candidate]) -> Sequence[float]:
    raise RuntimeError("the model is away")


@pytest.mark.parametrize(
    "scores",
    [fails, lambda asked, candidates: [], lambda asked, candidates: [float("nan")] * len(candidates)],
    ids=["raises", "too few", "not a number"],
)
def test_a_verifier_that_fails_is_a_miss(open_cache, scores: Scores) -> None:
    """With reason `error`, counted, and no exception."""
    cache = open_cache(verifier=Recording(scores))
    cache.store(Request(question(1)), Answer(answer(1)))

    assert cache.lookup(Request(reworded(1))).reason == "error"
    assert sum(cache.stats().faults.values()) == 1


def test_a_slow_verifier_holds_up_its_own_lookup_only(open_cache) -> None:
    """Others do not wait for it, and the time is told."""
    together, go_on = threading.Barrier(4), threading.Event()

    def slow(asked: str, candidates: Sequence[Candidate]) -> list[float]:
        together.wait(10)  # for the other two, and for this test
        assert go_on.wait(10)
        return [0.9] * len(candidates)

    cache = open_cache(verifier=Recording(slow))
    cache.store(Request(question(1)), Answer(answer(1)))
    with ThreadPoolExecutor(4) as threads:
        slowly = [threads.submit(cache.lookup, Request(reworded(1))) for _ in range(3)]
        together.wait(10)
        held = time.perf_counter()
        assert cache.lookup(Request(question(1)))
        time.sleep(0.01)
        held = time.perf_counter() - held
        go_on.set()
        hits = [lookup.result() for lookup in slowly]

    assert all(hit and hit.seconds >= held for hit in hits)


def test_audits_of_two_verifiers_are_kept_apart(open_cache) -> None:
    """By the verifier's name, in caches that share a place and its judgements."""
    one, two = (
        open_cache(verifier=Recording(name=name), audit_rate=1.0, compare=lambda *_: True)
        for name in ("one", "two")
    )
    one.store(Request(question(1)), Answer(answer(1)))
    assert one.lookup(Request(reworded(1))).reason == "below_budget"
    one.store(Request(reworded(1)), Answer(answer(1)))
    assert one._runtime.judgement_log.flush()

    (told,) = one.stats().audits
    assert told.probes == 1
    assert two.stats().audits == ()


def test_what_cannot_verify_is_refused_when_the_cache_is_opened(open_cache) -> None:
    with pytest.raises(ConfigurationError, match=r"verifier: must be 'default', None"):
        open_cache(verifier="cross-encoder")
    with pytest.raises(ConfigurationError, match="verifier needs min_probability"):
        open_cache(verifier=Recording(), min_probability=None)
    with pytest.raises(ConfigurationError, match="min_similarity is for an embedder of your own"):
        open_cache(verifier=Recording(), min_similarity=0.8, audit_rate=0.1)
    with pytest.raises(InvalidInput, match=r"verifier\.name must be a str"):
        open_cache(verifier=Recording(name=7))  # type: ignore[arg-type]


# guards -----------------------------------------------------------------------------------------------


def please_differs(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    """An own guard: politeness changes the answer."""
    return ("please" in asked.words) != ("please" in stored.words)


def breaks(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    raise RuntimeError("not this one")


def test_a_guard_refuses_by_its_name(open_cache) -> None:
    cache = open_cache(guards=[please_differs])
    cache.store(Request(question(1)), Answer(answer(1)))
    cache.store(Request(f"{question(2)} 7"), Answer(answer(2)))

    assert cache.lookup(Request(reworded(1))).reason == "guard:please_differs"
    assert cache.lookup(Request(f"{question(1)} also"))
    assert (
        cache.lookup(Request(f"please {question(2)} 8")).reason == "guard:numbers"
    )  # the shipped ones first


def test_a_guard_that_fails_is_a_miss(open_cache) -> None:
    cache = open_cache(guards=[breaks])
    cache.store(Request(question(1)), Answer(answer(1)))

    assert cache.lookup(Request(reworded(1))).reason == "error"
    assert cache.lookup(Request(question(1)))
    assert sum(cache.stats().faults.values()) == 1


def numbers(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    """Has the name of a shipped guard."""
    return False


@pytest.mark.parametrize(
    ("guards", "says"),
    [
        (please_differs, "guards must be a list of functions, not function"),
        (["numbers"], "guards must be functions with names"),
        ([lambda asked, stored: True], "guards must be functions with names"),
        ([numbers], "another guard of the name 'numbers'"),
        ([please_differs, please_differs], "another guard of the name 'please_differs'"),
    ],
)
def test_what_is_no_guard_is_refused_when_the_cache_is_opened(open_cache, guards: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        open_cache(guards=guards)


def test_both_go_with_a_pickled_cache(open_cache) -> None:
    """Where it is opened again, it decides in the same way."""
    cache = open_cache(guards=[please_differs], verifier=Fixed())
    cache.store(Request(question(1)), Answer(answer(1)))
    copied = pickle.loads(pickle.dumps(cache))

    assert copied.lookup(Request(reworded(1))).reason == "guard:please_differs"
    assert copied.lookup(Request(f"{question(1)} also")).score == 1.0
    copied.close()


class Fixed:
    """A verifier that pickles."""

    name = "fixed"

    def verify(self, question: str, candidates: Sequence[Candidate]) -> list[float]:
        return [1.0] * len(candidates)


def test_hooks_are_not_settings(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """No environment variable names a verifier of one's own, or guards."""
    monkeypatch.setenv("IBIDEM_GUARDS", "x")
    with pytest.raises(ibidem.ConfigurationError, match="IBIDEM_GUARDS"):
        ibidem.open(tmp_path, embedder=BagOfWords())
