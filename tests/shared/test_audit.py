"""Audits through a real cache: what is asked of the model, what is compared, what follows from it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import ibidem
from ibidem import Answer, ConfigurationError, InvalidInput, Request
from ibidem.audits.judge import AnswerJudge, contradict
from ibidem.cache import SemanticCache
from ibidem.cli.commands import app
from ibidem.errors import StorageError, StorageUnavailable
from ibidem.matching.learned import LearnedScorer
from ibidem.matching.policy import Policy
from ibidem.matching.scorers import COSINES, CosineScorer
from ibidem.settings import read_settings
from ibidem.storage.logs import JudgementRow
from ibidem.storage.store import Store
from ibidem.types import digest
from tests.embedders import BagOfWords, Broken
from tests.helpers import Child, answer, eventually, question, reworded

ENOUGH = 300  # right judgements that open a budget of 2 %


def judged(score: float = 0.96, right: bool = True, source: str = "probe", **changes: object) -> JudgementRow:
    """A judgement as the log keeps it, of the scores that `BagOfWords` gives."""
    row = {
        "at": 1.0,
        "namespace": "",
        "scope": "s",
        "entry_id": "e",
        "asked": "a",
        "stored": "b",
        "similarity": score,
        "score": score,
        "scorer": CosineScorer(BagOfWords().fingerprint).name,
        "right": right,
        "source": source,
    }
    return JudgementRow(**{**row, **changes})  # type: ignore[arg-type]


@pytest.fixture
def audited(open_cache) -> Callable[..., SemanticCache]:
    """Opens caches that audit every hit."""
    return lambda **settings: open_cache(**{"audit_rate": 1.0, "min_similarity": None, **settings})


@pytest.fixture
def past(tmp_path: Path) -> Callable[[list[JudgementRow]], None]:
    """Writes judgements to the database of the cache, as another process does."""

    def write(rows: list[JudgementRow]) -> None:
        (tmp_path / "cache").mkdir(exist_ok=True)
        store = Store(f"sqlite:///{tmp_path / 'cache' / 'ibidem.sqlite3'}")
        store.judgements.add(rows)
        store.close()

    return write


def ask(cache: SemanticCache, n: int, fresh: str | None = None, **parts: str) -> Any:
    """Look up the n-th question reworded; on a miss the model's answer is stored."""
    request = Request(reworded(n), **parts)
    result = cache.lookup(request)
    if not result:
        cache.store(request, Answer(answer(n) if fresh is None else fresh))
    return result


def fill(cache: SemanticCache, upto: int, **parts: str) -> None:
    """Store the answers to the first questions."""
    for n in range(upto):
        cache.store(Request(question(n), **parts), Answer(answer(n)))


def test_without_judgements_the_model_is_asked_and_the_answers_compared(audited) -> None:
    """The miss names the candidate; a judgement says what the comparison gave."""
    cache = audited()
    fill(cache, 2)
    misses = [ask(cache, 0), ask(cache, 1, "something else")]
    cache.flush()
    newest, oldest = cache.judgements()

    assert [(miss.reason, miss.nearest) for miss in misses] == [
        ("below_budget", question(0)),
        ("below_budget", question(1)),
    ]
    assert (oldest.asked, oldest.stored, oldest.right, oldest.source) == (
        reworded(0),
        question(0),
        True,
        "probe",
    )
    assert oldest.entry_id == misses[0].entry_id == Request(question(0)).key
    assert oldest.score == oldest.similarity == pytest.approx(misses[0].similarity)
    assert (newest.asked, newest.right) == (reworded(1), False)
    assert cache.stats().faults == {}


def test_exact_hits_are_never_audited(audited) -> None:
    """They are served without a judgement, whatever the audit rate."""
    cache = audited()
    fill(cache, 3)

    assert [cache.lookup(Request(question(n))).tier for n in range(3)] == ["exact"] * 3
    cache.flush()
    assert cache.judgements() == []


def test_good_judgements_open_the_cache(audited) -> None:
    """First all candidates are compared, then they are served."""
    cache = audited(audit_rate=0.001)
    fill(cache, 350)
    for n in range(300):
        ask(cache, n)
    cache.flush()
    found = [cache.lookup(Request(reworded(n))) for n in range(300, 350)]

    assert sum(bool(hit) for hit in found) >= 40  # the scores vary, and so does where the line is drawn
    assert all(hit.answer.text == answer(n) for n, hit in enumerate(found, 300) if hit)
    (told,) = cache.stats().audits
    assert 190 <= told.probes <= 300
    assert told.audits + told.wrong <= 2
    assert told.threshold == pytest.approx(0.96, abs=0.01)


def test_wrong_answers_keep_it_closed(audited) -> None:
    """A cache whose neighbours are wrong serves nothing by meaning."""
    cache = audited()
    fill(cache, 150)
    for n in range(149):
        ask(cache, n, answer(n) if n % 10 else "no such thing")
    cache.flush()

    assert cache.lookup(Request(reworded(149))).reason == "below_budget"
    assert cache.stats().audits[0].threshold is None


def test_what_would_be_served_is_audited(audited, past) -> None:
    """At the rate asked for: at 1, every time. Then the statistics estimate the wrong hits."""
    past([judged() for _ in range(ENOUGH)])
    cache = audited()
    fill(cache, 4)
    misses = [ask(cache, n, answer(n) if n else "wrong") for n in range(4)]
    cache.flush()
    (told,) = cache.stats().audits

    assert [miss.reason for miss in misses] == ["audit"] * 4
    assert [row.source for row in cache.judgements(4)] == ["audit"] * 4
    assert (told.namespace, told.audits, told.wrong, told.wrong_per_hit) == ("", 4, 1, 0.25)
    assert told.interval == pytest.approx((0.0063, 0.8059), abs=1e-4)
    assert cache.stats().misses == {"audit": 4}


def test_reopening_resumes(open_cache, past) -> None:
    """What was learned is not learned again."""
    past([judged() for _ in range(ENOUGH)])
    with open_cache(audit_rate=1e-9, min_similarity=None) as cache:
        fill(cache, 1)
        assert cache.lookup(Request(reworded(0))).tier == "semantic"
    with open_cache(audit_rate=1e-9, min_similarity=None) as again:
        assert again.lookup(Request(reworded(0))).tier == "semantic"


def test_judgements_of_another_scorer_count_for_nothing(open_cache, past) -> None:
    """Their scores mean something else."""
    past([judged(scorer="another") for _ in range(ENOUGH)])
    cache = open_cache(audit_rate=1e-9, min_similarity=None)
    fill(cache, 1)

    assert cache.lookup(Request(reworded(0))).reason == "below_budget"
    assert cache.stats().audits == ()


def test_each_namespace_has_a_budget_of_its_own(open_cache, past) -> None:
    """Scopes share one."""
    past([judged(namespace="good") for _ in range(ENOUGH)])
    cache = open_cache(audit_rate=1e-9, min_similarity=None)
    for parts in ({"namespace": "good"}, {"namespace": "other"}, {"namespace": "good", "scope": "x"}):
        fill(cache, 1, **parts)
    results = [
        cache.lookup(Request(reworded(0), **parts))
        for parts in ({"namespace": "good"}, {"namespace": "other"}, {"namespace": "good", "scope": "x"})
    ]

    assert [bool(result) for result in results] == [True, False, True]


def test_the_judge_is_given_question_stored_and_fresh_answer(audited) -> None:
    """In another thread than the caller's; what it returns counts."""
    heard = []

    def judge(*texts: str) -> bool:
        heard.append((texts, threading.get_ident()))
        return True

    cache = audited(compare=judge)
    fill(cache, 1)
    ask(cache, 0, "quite another")
    cache.flush()

    assert [texts for texts, _ in heard] == [(reworded(0), answer(0), "quite another")]
    assert heard[0][1] != threading.get_ident()
    assert cache.judgements()[0].right is True


def test_a_judge_that_fails_is_counted(audited) -> None:
    """There is no judgement, and the caller hears nothing."""

    def judge(*_: str) -> bool:
        raise RuntimeError("no model today")

    cache = audited(compare=judge)
    fill(cache, 2)
    for n in range(2):
        ask(cache, n)
    cache.flush()

    assert cache.judgements() == []
    assert cache.stats().faults == {"judge an answer: RuntimeError": 2}


def test_a_slow_judge_keeps_nobody_waiting(audited) -> None:
    """Lookups, stores and statistics go on; its judgement comes when it comes."""
    released = threading.Event()
    cache = audited(compare=lambda *_: released.wait(30))
    fill(cache, 3)
    for n in range(3):
        assert ask(cache, n).seconds < 5
    assert cache.stats().entries == 6
    assert cache.judgements() == []
    released.set()
    cache.flush()
    assert len(cache.judgements()) == 3


def test_answers_that_are_not_kept_are_not_judged(audited) -> None:
    """A truncated answer says nothing about the stored one; a tool call does: a text is no substitute."""
    cache = audited(compare=lambda *_: True)
    fill(cache, 2)
    request = Request(reworded(0))
    cache.lookup(request)
    assert not cache.store(request, Answer("cut", finish_reason="length"))
    cache.store(request, Answer(answer(0)))
    cache.flush()
    assert cache.judgements() == []
    call = Request(reworded(1))
    cache.lookup(call)
    cache.store(call, Answer("", payload="call", semantic=False))
    cache.flush()
    assert [row.right for row in cache.judgements()] == [False]


def test_an_answer_that_never_comes_is_forgotten(audited, monkeypatch) -> None:
    """Not at once, but when many others are awaited."""
    monkeypatch.setattr("ibidem.audits.ledger.MAX_PENDING", 2)
    cache = audited()
    fill(cache, 3)
    for n in range(3):
        cache.lookup(Request(reworded(n)))
    for n in range(3):
        cache.store(Request(reworded(n)), Answer(answer(n)))
    cache.flush()

    assert {row.asked for row in cache.judgements()} == {reworded(1), reworded(2)}


def test_more_than_the_judge_can_do_is_dropped(audited, monkeypatch) -> None:
    """And counted."""
    monkeypatch.setattr("ibidem.audits.ledger.MAX_WAITING", 1)
    begun, released = threading.Event(), threading.Event()
    cache = audited(compare=lambda *_: begun.set() or released.wait(30))
    fill(cache, 4)
    ask(cache, 0)
    assert begun.wait(10)
    for n in range(1, 4):
        ask(cache, n)
    released.set()
    cache.flush()

    assert len(cache.judgements()) == 2
    assert cache.stats().faults == {"judge answers: too many wait": 2}


def test_closing_writes_what_was_judged(audited) -> None:
    """A comparison made just before is not lost."""
    cache = audited()
    fill(cache, 1)
    ask(cache, 0)
    cache.close()

    assert [row.right for row in audited().judgements()] == [True]


def test_another_process_is_learned_from(open_cache, tmp_path: Path) -> None:
    """What it judged counts here within about a second; what is judged here is in its log."""
    cache = open_cache(audit_rate=1e-9, min_similarity=None)
    fill(cache, 1)
    assert cache.lookup(Request(reworded(0))).reason == "below_budget"
    code = f"""
import sys
from ibidem.storage.store import Store
from tests.shared.test_audit import judged
store = Store(sys.argv[1])
print(len(store.judgements.recent()))
store.judgements.add([judged(0.97) for _ in range({ENOUGH})])
"""
    with Child(code, f"sqlite:///{tmp_path / 'cache' / 'ibidem.sqlite3'}") as child:
        assert child.line() == "0"
        assert child.end() == 0

    assert eventually(lambda: cache.lookup(Request(reworded(0))), timeout=10)


def test_judgements_are_learned_once(open_cache, past) -> None:
    """Those read at the first lookup are not learned again when the log is polled."""
    past([judged() for _ in range(40)])
    cache = open_cache(audit_rate=1e-9, min_similarity=None)
    fill(cache, 1)
    cache.lookup(Request(reworded(0)))
    past([judged() for _ in range(30)])
    cache.flush()
    cache.flush()
    (kept,) = cache._runtime.judgement_log._budgets

    assert len(kept.budget.evidence) == 70


def test_a_database_that_takes_no_judgement_does_not_blind_the_budget(audited, monkeypatch) -> None:
    """The budget of this process learns it all the same."""

    def fail(_: object) -> None:
        raise StorageError("disk full")

    cache = audited()
    monkeypatch.setattr(cache._runtime.store.judgements, "add", fail)
    fill(cache, 1)
    ask(cache, 0)
    cache.flush()
    (kept,) = cache._runtime.judgement_log._budgets

    assert len(kept.budget.evidence) == 1
    assert cache.stats().faults == {"write judgements: StorageError": 1}


def test_judgements_wait_for_a_database_that_is_away(audited, monkeypatch) -> None:
    """The budget knows them meanwhile, and when they are written they are not learned twice."""

    def away(_: object) -> None:
        raise StorageUnavailable("disk full")

    cache = audited()
    with monkeypatch.context() as broken:
        broken.setattr(cache._runtime.store.judgements, "add", away)
        fill(cache, 2)
        ask(cache, 0)
        assert not cache.flush()
        (kept,) = cache._runtime.judgement_log._budgets
        assert len(kept.budget.evidence) == 1
        assert cache.judgements() == []
    ask(cache, 1)
    assert cache.flush()
    assert cache.flush()

    assert len(cache.judgements()) == 2
    cache.stats()  # asks for the budget again
    (kept,) = cache._runtime.judgement_log._budgets
    assert len(kept.budget.evidence) == 2


def test_clear_forgets_judgements_that_wait(audited, monkeypatch) -> None:
    """As those that are written."""

    def away(_: object) -> None:
        raise StorageUnavailable("disk full")

    cache = audited()
    with monkeypatch.context() as broken:
        broken.setattr(cache._runtime.store.judgements, "add", away)
        fill(cache, 1)
        ask(cache, 0)
        cache.flush()
        cache.clear()
    cache.flush()

    assert cache.judgements() == []


def test_clear_forgets_the_audits(audited) -> None:
    """Those in the log, those under way, and what was learned from them."""
    cache = audited()
    for namespace in ("a", "b"):
        fill(cache, 2, namespace=namespace)
        ask(cache, 0, namespace=namespace)
    cache.flush()
    under_way = Request(reworded(1), namespace="a")
    cache.lookup(under_way)
    cache.clear("a")
    cache.store(under_way, Answer(answer(1)))
    cache.flush()

    assert [row.namespace for row in cache.judgements()] == ["b"]
    assert (cache.judgements(20, "a"), len(cache.judgements(20, "b"))) == ([], 1)
    cache.clear()
    assert (cache.judgements(), cache.stats().audits) == ([], ())


def test_a_forked_child_leaves_the_audits_to_its_parent(tmp_path: Path) -> None:
    """What waits is the parent's to judge, and judged once."""
    code = """
import os, sys, ibidem
from tests.embedders import BagOfWords
from tests.shared.test_audit import ask, fill, Request, Answer, answer, reworded
cache = ibidem.open(sys.argv[1], embedder=BagOfWords(), audit_rate=1.0)
fill(cache, 3)
cache.lookup(Request(reworded(0)))
ask(cache, 1)
if os.fork() == 0:
    cache.store(Request(reworded(0)), Answer(answer(0)))
    cache.close()
    os._exit(0)
os.wait()
cache.flush()
print([row.asked for row in cache.judgements()] == [reworded(1)])
"""
    with Child(code, tmp_path) as child:
        assert child.line() == "True"


def test_a_given_threshold_is_the_least_score_still(audited, past) -> None:
    """The budget may be stricter, never laxer."""
    past([judged() for _ in range(ENOUGH)])
    cache = audited(min_similarity=0.99, audit_rate=1e-9)
    fill(cache, 1)

    assert cache.lookup(Request(reworded(0))).reason == "below_threshold"


def test_candidates_far_off_are_not_compared(audited) -> None:
    """Below the floor nobody asks the budget."""
    cache = audited()
    cache.store(Request("how do I reset my password"), Answer("a"))
    miss = cache.lookup(Request("how do I reset my old and dusty radio"))

    assert miss.similarity < CosineScorer.floor
    assert miss.reason == "below_threshold"


def run(*arguments: str) -> str:
    """Output of `ibidem` with these arguments."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.usefixtures("wide_console")
def test_the_command_line_shows_the_audits(audited, past, tmp_path: Path) -> None:
    """Estimates by namespace and the last judgements, as tables and as JSON; a line among the statistics."""
    where = ("--path", str(tmp_path / "cache"))
    past([judged(at=100.0 + n) for n in range(ENOUGH)])
    cache = audited()
    fill(cache, 2)
    for n in range(2):
        ask(cache, n, answer(n) if n else "[red]wrong\x1b")
    cache.flush()
    past([judged(namespace="[b]acme", source="audit", right=False, asked="[red]a\x1b")])
    cache.close()
    shown, told = run("audit", *where), json.loads(run("audit", *where, "--json", "-n", "3"))
    head, other = told["namespaces"]

    assert ("score 0.96" in shown, "nothing yet" in shown, "50.0" in shown) == (True, True, True)
    assert ("[b]acme" in shown, "[red]a" in shown, "\x1b" in shown) == (True, True, False)
    assert (head["namespace"], head["audits"], head["wrong"], head["threshold"]) == ("[b]acme", 1, 1, None)
    assert (other["audits"], other["wrong"], other["probes"]) == (2, 1, ENOUGH)
    assert [row["right"] for row in told["judgements"]] == [False, True, False]
    assert len(json.loads(run("audit", *where, "--json", "--namespace", "[b]acme"))["judgements"]) == 1
    assert "audits (wrong)" in run("stats", *where)
    assert json.loads(run("stats", *where, "--json"))["audits_wrong"] == 2


@pytest.mark.usefixtures("wide_console")
def test_the_command_line_says_how_to_begin(open_cache, tmp_path: Path) -> None:
    """Where nothing was audited."""
    open_cache().close()

    assert "No audits yet" in run("audit", "--path", str(tmp_path / "cache"))
    assert "audits" not in run("stats", "--path", str(tmp_path / "cache"))


def test_without_audits_the_threshold_decides(open_cache) -> None:
    """As ever: no judgement, no budget, no thread."""
    cache = open_cache(min_similarity=None, max_error_rate=0.03)
    fill(cache, 1)
    cache.lookup(Request(reworded(0)))
    cache.flush()

    assert (cache.judgements(), cache.stats().audits) == ([], ())
    assert not cache._runtime.judgement_log._budgets


@pytest.mark.parametrize(
    "settings",
    [
        {"max_error_rate": 0.0},
        {"max_error_rate": 0.5},
        {"max_error_rate": "x"},
        {"audit_rate": -0.1},
        {"audit_rate": 1.1},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    """By name."""
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        read_settings(**settings)


@pytest.mark.parametrize("share", [0.0376, 0.05, 0.4, 0.49])
def test_a_share_that_no_threshold_is_known_for_is_refused(tmp_path: Path, share: float) -> None:
    """Else it would do nothing; with audits or a threshold it is no promise of the shipped score."""
    with pytest.raises(ConfigurationError, match=r"max_error_rate is .* at most 0\.0375.*audit_rate"):
        ibidem.open(tmp_path, embedder=BagOfWords(), max_error_rate=share)
    for given in ({"audit_rate": 0.01}, {"min_similarity": 0.7}):
        ibidem.open(tmp_path, embedder=BagOfWords(), max_error_rate=share, **given).close()


def test_settings_come_from_the_environment(monkeypatch) -> None:
    """And say which policy follows."""
    cosine = CosineScorer()
    assert read_settings(min_similarity=0.9).strictness.policy(cosine) == Policy(0.9)
    assert read_settings().strictness.policy(cosine) == Policy(COSINES.at(0.02))
    monkeypatch.setenv("IBIDEM_MAX_ERROR_RATE", "0.1")
    monkeypatch.setenv("IBIDEM_AUDIT_RATE", "0.25")
    found = read_settings()

    assert (found.max_error_rate, found.audit_rate) == (0.1, 0.25)
    assert found.strictness.policy(cosine) == Policy(cosine.floor)


@pytest.mark.parametrize(("name", "share"), [("strict", 0.005), ("default", 0.02), ("generous", 0.05)])
def test_shares_have_names(monkeypatch, name: str, share: float) -> None:
    """In code and in the environment."""
    assert read_settings(max_error_rate=name).max_error_rate == share
    monkeypatch.setenv("IBIDEM_MAX_ERROR_RATE", name)
    assert read_settings().max_error_rate == share


def test_compare_must_be_callable(tmp_path: Path) -> None:
    """Checked when the cache is opened, not at the first audit."""
    with pytest.raises(InvalidInput, match="compare must be callable, not str"):
        ibidem.open(tmp_path, embedder=BagOfWords(), compare="gpt")  # type: ignore[arg-type]


def test_a_scorer_has_a_name() -> None:
    """The same for the same embedder and weights, another for others."""

    def learned(bias: float, embedder: str = "") -> LearnedScorer:
        return LearnedScorer({"a": 1.0}, bias, 2.0, 0.0, COSINES, embedder)

    one, two = learned(0.1), learned(0.2)
    names = [CosineScorer("e").name, CosineScorer("f").name, one.name, two.name]

    assert len(set(names)) == 4
    assert learned(0.1).name == names[2]
    assert learned(0.1, "e").name != names[2]


def test_the_name_of_the_cosine_never_changes() -> None:
    """Judgements in databases are kept by it, since 0.1."""
    assert CosineScorer("e").name == digest("e", "CosineScorer", "")


@pytest.mark.parametrize(
    ("cached", "fresh"),
    [
        ("Within 30 days.", "within 30  days"),
        ("**Yes**, it does.", "Yes, it does!"),
        ("The capital of France is Paris.", "Paris is the capital of France."),
        ("It takes two days.", "it takes 2 days"),
    ],
)
def test_the_judge_sees_that_answers_are_the_same(cached: str, fresh: str) -> None:
    """But for case, blanks and punctuation, or in other words."""
    assert AnswerJudge(BagOfWords(), least=0.7)("q", cached, fresh)


@pytest.mark.parametrize(
    ("cached", "fresh"),
    [
        ("", ""),
        ("Within 30 days.", "Within 14 days."),
        ("It is -5 degrees.", "It is 5 degrees."),
        ("The factor is 1.5", "The factor is 15"),
        ("It can be returned.", "It can not be returned."),
        ("Yes, it is on sale.", "No, it is on sale."),
        ("The shop is open on Monday.", "The shop is open on Sunday."),
        ("The capital is Paris of course.", "The capital is Lyon of course."),
        ("Use list[int] for that.", "Use list[str] for that."),
        ("The shop is open.", "The shop is closed."),
        ("It costs $5 a day.", "It costs 5 a day."),
        ("Goods go to Lyon first.", "Completely different words."),
    ],
)
def test_the_judge_takes_what_differs_for_wrong(cached: str, fresh: str) -> None:
    """Numbers, signs, negations, dates, names, code, opposites: whatever the embeddings say."""
    assert not AnswerJudge(BagOfWords(), least=0.3)("q", cached, fresh)
    assert not AnswerJudge(BagOfWords(), least=0.3)("q", fresh, cached)


def test_the_judge_embeds_the_beginning_of_long_answers() -> None:
    """As much as the embedder's window holds; the rest must not contradict."""
    long = "goods can be returned to the shop " * 100
    judge = AnswerJudge(BagOfWords())

    assert len(judge._window(long)) < len(long)
    assert BagOfWords().count_tokens(judge._window(long)) <= BagOfWords.max_tokens
    assert judge("q", long + "again", long + "once more")
    assert not judge("q", long + "again", long + "within 3 days")
    assert contradict(long, long + "not")


def test_the_judge_raises_what_the_embedder_raises() -> None:
    """An audit without a judgement, not a wrong one."""
    with pytest.raises(RuntimeError):
        AnswerJudge(Broken())("q", "one thing", "another thing")
