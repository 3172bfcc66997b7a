"""`cache.why` and `ibidem why`: what a lookup would do, and why."""

from __future__ import annotations

import itertools
import json
import math
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ibidem
from ibidem import Answer, CacheClosed, Document, Hit, InvalidInput, Miss, Request
from ibidem.cache import SemanticCache
from ibidem.cli.commands import app
from ibidem.explanation.logged import explain_log
from ibidem.explanation.result import Explanation, differing, in_words
from ibidem.matching.documents import DocumentChange
from tests.contracts.cache import CacheContract
from tests.contracts.lifecycle import LifecycleContract
from tests.embedders import BagOfWords, Broken
from tests.helpers import question, reworded, rounds
from tests.shared.test_audit import ENOUGH, audited, fill, judged, past  # noqa: F401
from tests.shared.test_pair_decisions import Overlap, suite_pairs

OpenCache = Callable[..., SemanticCache]
FEES = Document("fees.md", "Returning goods costs 3 euros.", source="shop")
EDITED = Document("fees.md", "Returning goods costs 4 euros.", source="shop")
OTHER = Document("shops.md", "We also have a shop in Nice.")
COSTS = Answer("Returning goods costs 3 euros.")


def agree(found: Explanation, result: Hit | Miss) -> bool:
    """Whether an explanation says what the lookup then did; audits draw by chance."""
    if result:
        score = found.nearest and next(one.score for one in found.nearest if one.entry_id == result.entry_id)
        same = result.tier == "exact" or (score == result.score and score >= found.threshold)
        same = same and result.threshold == found.threshold
        return (found.tier, found.entry_id, found.reason) == (result.tier, result.entry_id, "") and same
    if result.reason == "audit":
        return found.tier == "semantic"
    scores = [one.score for one in found.nearest if one.entry_id == result.entry_id]
    scored = result.score is None or scores == [result.score]
    return (found.tier, found.reason) == (None, result.reason) and scored


@pytest.fixture
def explained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each lookup of the main thread is explained before; returns the outcomes."""
    seen, lookup = list[str](), SemanticCache.lookup

    def explain_and_look_up(
        cache: SemanticCache, request: Request, *, max_age: float | None = None
    ) -> Hit | Miss:
        if threading.current_thread() is not threading.main_thread():  # others change meanwhile what is found
            return lookup(cache, request, max_age=max_age)
        found = cache.why(request, max_age=max_age) if isinstance(request, Request) else None
        result = lookup(cache, request, max_age=max_age)
        assert found is not None
        assert agree(found, result), (found, result)
        assert found.steps
        seen.append(found.tier or found.reason)
        return result

    monkeypatch.setattr(SemanticCache, "lookup", explain_and_look_up)
    return seen


@pytest.mark.usefixtures("explained")
class TestExplained(CacheContract, LifecycleContract):
    """All that a cache promises, with each lookup explained before: the explanation is true, and no trace."""


@pytest.mark.parametrize("options", [{}, {"verifier": None}, {"verifier": Overlap(), "min_probability": 0.6}])
def test_an_explanation_is_what_a_lookup_does(
    open_cache: OpenCache, explained: list[str], options: dict[str, object]
) -> None:
    """For questions of all kinds, among each other, with each rule."""
    cache = open_cache(**{"embedder": "all-MiniLM-L6-v2", "min_probability": None, **options})
    pairs = suite_pairs(rounds(30, 120))
    for stored, _ in pairs[: len(pairs) * 2 // 3]:
        cache.store(Request(stored), Answer("an answer"))
    for _, asked in pairs:
        cache.lookup(Request(asked))

    assert {"semantic", "below_threshold"} < set(explained)
    assert any(outcome.startswith("guard:") for outcome in explained)


@pytest.mark.parametrize("document_policy", ["unchanged", "supporting", "all", "ignore"])
def test_documents_that_differ_are_named(
    open_cache: OpenCache, explained: list[str], document_policy: str
) -> None:
    """If, and only if, they are the reason, for the same words and others."""
    cache, sets = (
        open_cache(document_policy=document_policy),
        [(FEES,), (EDITED,), (FEES, OTHER), (OTHER,), ()],
    )
    named: dict[tuple[object, object], tuple[DocumentChange, ...]] = {}
    for number, (stored, given) in enumerate(itertools.product(sets, sets)):
        place = f"place-{number}"
        cache.store(Request("what does returning goods cost", documents=stored, namespace=place), COSTS)
        for asked in ("what does returning goods cost", "what does returning the goods cost"):
            found = cache.why(request := Request(asked, documents=given, namespace=place))
            cache.lookup(request)
            refused = found.reason == "documents_changed"
            named[stored, given] = found.nearest[0].documents if refused else ()
            assert refused == any(one.documents for one in found.nearest)
            assert not refused or found.nearest[0].score > found.threshold

    assert len(explained) == 2 * len(sets) ** 2
    refusing, every = document_policy != "ignore", document_policy == "all"
    assert named[(FEES,), (EDITED,)] == (DocumentChange("fees.md", "shop", "changed"),) * refusing
    assert named[(FEES,), ()] == (DocumentChange("fees.md", "shop", "missing"),) * refusing
    assert named[(FEES,), (FEES, OTHER)] == (DocumentChange("shops.md", "", "added"),) * every
    assert named[(FEES, OTHER), (FEES,)] == (DocumentChange("shops.md", "", "missing"),) * every


@pytest.mark.usefixtures("explained")
def test_private_long_and_unnamed_questions(open_cache: OpenCache, explained: list[str]) -> None:
    """What cannot be compared is told, with the reason of the lookup."""
    cache = open_cache(redact=lambda text: text.replace("Ada", "***"))
    for request in (
        Request("what does Ada owe us"),
        Request("what does it cost " * 100),
        Request("all of the prompt", semantic=False),
        Request("in a name", namespace="no\0name"),
    ):
        cache.lookup(request)
        assert cache.why(request).threshold is None
    with ibidem.scope(bypass=True):
        cache.lookup(Request("anything"))

    assert explained == [
        "question_private",
        "question_too_long",
        "question_unknown",
        "empty",
        "bypassed",
    ]


def test_the_same_question_in_another_scope_is_pointed_out(cache: SemanticCache) -> None:
    """Of the same namespace only, each wording once."""
    asked = "what is in the box that came today"
    for clock in ("10:00", "10:01", "10:02"):
        cache.store(Request(asked, scope=clock), Answer("A pump."))
    cache.store(Request(asked, scope="10:00", namespace="other"), Answer("A secret."))
    found = cache.why(Request(asked, scope="10:03"))

    assert (found.reason, found.nearest) == ("empty", ())
    assert [(one.question, one.scopes, one.reason) for one in found.elsewhere] == [(asked, 3, "")]
    assert "The same question is stored in 3 other scopes" in str(found)
    assert cache.why(Request(asked, scope="10:00", namespace="third")).elsewhere == ()
    cache.store(Request("who sells tea", scope="10:03"), Answer("We do."))
    again = cache.why(Request(asked, scope="10:03"))
    assert (again.reason, again.elsewhere[0].scopes) == ("below_threshold", 3)


def test_nothing_is_left_behind(open_cache: OpenCache, tmp_path: Path) -> None:
    """No log, no count of hits, no refresh, no audit; the callback hears nothing."""
    heard: list[object] = []
    cache = open_cache(ttl=100, stale_while_revalidate=50, on_lookup=lambda *told: heard.append(told))
    fill(cache, 3)
    cache.lookup(Request("this opens the index"))
    cache.flush()
    before = [cache._runtime.store.entries.newest(), cache.recent(), cache.stats()]
    now = cache._runtime.clock()
    cache._runtime.clock = lambda: now + 120.0
    for n in (0, 1, 5):
        for _ in range(2):
            assert cache.why(Request(reworded(n))).reason in ("expired", "below_threshold")
            assert cache.why(Request(question(n))).reason in ("expired", "below_threshold")
            assert cache.why(question(n)).reason == "scope_unknown"
    cache.flush()

    assert [cache._runtime.store.entries.newest(), cache.recent(), cache.stats()] == before
    assert len(heard) == 1
    assert cache.lookup(Request(reworded(0))).reason == "expired"  # this one refreshes
    assert cache.why(Request(reworded(0))).tier == "semantic"  # and others are served meanwhile


def test_audits_decide(audited, past, explained: list[str]) -> None:  # noqa: F811
    """From which score on, and what is below it; nothing at all at first."""
    cache = audited(audit_rate=0.05)
    fill(cache, 1)
    found = cache.why(Request(reworded(0)))
    assert (found.reason, found.threshold, found.nearest[0].reason) == (
        "below_budget",
        math.inf,
        "below_budget",
    )
    assert "audits let nothing be served yet" in str(found)
    cache.close()

    past([judged(score=0.95) for _ in range(ENOUGH)])
    cache = audited(audit_rate=0.05)
    found = cache.why(Request(reworded(0)))
    assert (found.tier, found.reason) == ("semantic", "")
    assert 0.8 < found.threshold <= 0.95
    for _ in range(20):
        cache.lookup(Request(reworded(0)))
    assert set(explained) == {"semantic"}


def test_failures_are_told(open_cache: OpenCache, explained: list[str]) -> None:
    """With the reason of the lookup, and what it was."""
    cache = open_cache(embedder=Broken())
    cache.lookup(Request("anything"))

    assert explained == ["error"]
    assert "RuntimeError" in str(cache.why(Request("anything")))


def test_bad_arguments_are_refused(cache: SemanticCache) -> None:
    """As those of a lookup."""
    for asked, options in ((3, {}), ("a", {"namespace": 3}), (Request("a"), {"max_age": "old"}), (" ", {})):
        with pytest.raises(InvalidInput):
            cache.why(asked, **options)  # type: ignore[arg-type]
    cache.close()
    with pytest.raises(CacheClosed):
        cache.why("a")


@pytest.mark.usefixtures("wide_console")
def test_the_command_explains_a_question(tmp_path: Path) -> None:
    """Against all scopes, of one namespace or of all; for people or programs. And what came of it before."""

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["why", *arguments, "--path", str(tmp_path / "cache")])
        assert done.exit_code == 0, done.output
        return done.output

    with ibidem.open(tmp_path / "cache") as cache:
        for clock in ("10:00", "10:01"):
            cache.store(Request("How long can I return goods?", scope=clock), Answer("30 days."))
        cache.store(Request("How long can I return 3 goods?", namespace="acme"), Answer("30 days."))
        threshold = cache.policy.threshold
        cache.lookup(Request("How long can I return the goods?", scope="11:00"))
        cache.flush()
        said = run("How long can I return the goods?")  # also while another has it open

    with ibidem.open(tmp_path / "other", embedder=BagOfWords(), min_similarity=0.8) as cache:
        cache.store(Request("how long can I return goods"), Answer("30 days."))
    refused = CliRunner().invoke(app, ["why", "goods", "--path", str(tmp_path / "other")])

    assert (refused.exit_code, "IBIDEM_EMBEDDER" in refused.output) == (2, True)
    assert "3 stored questions in 3 scopes in all namespaces" in said
    assert said.count("sure enough") == 1 + said.count("not sure enough")  # of the one without a number
    assert "return 3 goods" in said
    assert "when it was asked" in said
    assert said.count("miss: empty") == 1
    assert "when it was asked" not in run("How long can I return goods?")
    assert f"from a score of {threshold:.4f} on" in said
    assert "return 3 goods" not in run("How long can I return the goods?", "--namespace", "")
    told = json.loads(run("How long can I return the goods?", "--namespace", "acme", "--json"))
    (near,) = told["nearest"]  # which of them refuses it is for the model that decides
    assert near["reason"] in ("guard:numbers", "below_threshold")
    assert json.loads(run("nothing there", "--namespace", "none", "--json"))["reason"] == "empty"


def test_a_score_that_is_shown_counts_also_where_a_lookup_would_not_read(open_cache: OpenCache) -> None:
    """The pair model reads two in a lookup; `why` gives all their scores, and what they mean."""
    cache = open_cache(embedder="all-MiniLM-L6-v2", min_similarity=None)
    asked = Request("How long can I return goods?")
    for text in ("Where", "Who", "Why would I", "How", "Until when may one"):
        cache.store(Request(f"{text} can return goods?"), Answer(text))
    found = cache.why(asked)
    unread = [one for one in found.nearest if one.reason == "not_scored"]

    assert len([one for one in found.nearest if not one.reason.startswith("guard:")]) > 2
    assert [one.reason for one in found.nearest if one.score < found.threshold and one in unread] == []
    assert all("sure enough, if no nearer one is" in str(one) for one in unread)


def test_an_empty_scope_is_compared_with_those_of_the_same_question(tmp_path: Path) -> None:
    """Another program's scope, alike in more parts, says nothing about it."""
    question, prompt = "how long can i return goods", "You answer for a shop."
    mine = {"model": "gpt-5", "tools": "a", "system prompt": prompt}
    others = {"model": "gpt-6", "tools": "b", "system prompt": "You translate."}
    now = {**mine, "model": "gpt-6", "tools": "b"}
    with ibidem.open(tmp_path / "cache", embedder=BagOfWords(), min_similarity=0.8) as cache:
        cache.store(Request("who sells tea", scope=others), Answer("We do."))
        cache.store(Request(question, scope=mine), Answer("30 days."))
        cache.lookup(Request(question, scope=now))
        cache.lookup(Request("what is that", scope=now))  # nobody asked that
        cache.store(Request(question, scope=others), Answer("Another."))  # later than it was asked
        cache.flush()
        rows = explain_log(cache._runtime.store, cache.recent())

    assert [row.differs for row in rows] == [("system prompt",), ("model", "tools")]


def test_the_log_says_what_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 80 columns: score, least score, nearest question, the part in which an empty scope is new."""
    monkeypatch.setattr("ibidem.cli.output.out._width", 80)
    place = tmp_path / "cache"

    def run(*options: str) -> str:
        done = CliRunner().invoke(app, ["log", "--path", str(place), *options])
        assert done.exit_code == 0, done.output
        assert max(map(len, done.output.splitlines())) <= 80
        return " ".join(done.output.split())

    def scope(clock: str) -> dict[str, str]:
        return {"model": "gpt-5", "system prompt": f"It is {clock}.", "prompt": "{question}"}

    with ibidem.open(place, embedder=BagOfWords(), min_similarity=0.8) as cache:
        for clock in ("10:00", "10:01"):
            cache.lookup(Request("how long can i return goods", scope=scope(clock)))
            cache.store(Request("how long can i return goods", scope=scope(clock)), Answer("30 days."))
        hit = cache.lookup(Request("how long can i return the goods", scope=scope("10:00")))
        cache.lookup(Request("how long can i return 3 goods", scope=scope("10:00")))
        cache.lookup(Request("who sells tea", scope="a text", namespace="acme"))
        cache.lookup(Request("what does it cost " * 100, scope=scope("10:00")))
    said = run()
    rows = json.loads(CliRunner().invoke(app, ["log", "--path", str(place), "--json"]).output)

    assert f"{hit.score:.3f} 0.800 how long can i return the goods" in said
    assert said.count("nearest: how long can i return") == 2
    assert said.count("new scope: the system prompt differs") == 1  # the first scope of all is like no other
    assert [row["reason"] for row in rows] == [
        "question_too_long",
        "empty",
        "guard:numbers",
        "",
        "empty",
        "empty",
    ]
    assert [row["differs"] for row in rows if row["reason"] == "empty"] == [[], ["system prompt"], []]
    assert (rows[3]["nearest"], rows[3]["threshold"]) == ("how long can i return goods", 0.8)
    assert list(rows[4]["scope_parts"]) == ["model", "system prompt", "prompt"]
    assert "guard:numbers" in run("--reason", "guard")
    assert "tea" not in run("--reason", "guard")
    assert "who sells tea" in run("--namespace", "acme", "--reason", "empty")
    assert run("--reason", "expired") == "No such lookups."


def test_a_damaged_part_explains_nothing(tmp_path: Path) -> None:
    """The answer is served as ever, and the lookup explained."""
    with ibidem.open(tmp_path, embedder=BagOfWords(), min_similarity=0.8) as cache:
        for clock in ("10:00", "10:01"):
            cache.store(Request("what is in the box", scope={"clock": clock}), Answer("A pump."))
        for damage in ("[1, 2]", "{", "[" * 100_000, '{"clock": 3}'):
            with sqlite3.connect(tmp_path / "ibidem.sqlite3") as db:
                db.execute("UPDATE entries SET scope_parts = ?", (damage,))
            db.close()
            (found,) = cache.why(Request("what is in the box", scope={"clock": "10:02"})).elsewhere
            assert set(found.differs) <= {"clock"}
            assert cache.lookup(Request("what is in the box", scope={"clock": "10:00"}))


@pytest.mark.parametrize("scope", [{"model": 3}, {3: "model"}, {"mo\0del": "m"}, [("model", "m")], b"model"])
def test_a_scope_is_made_of_texts(scope: object) -> None:
    """The error says so."""
    with pytest.raises(InvalidInput, match="scope"):
        Request("what is in the box", scope=scope)  # type: ignore[arg-type]


def test_each_reason_has_its_words() -> None:
    """The same in all commands; a reason without is shown as it is."""
    assert in_words("guard:numbers") == "guard numbers"
    assert in_words("question_too_long") == "the question is longer than the embedder reads"
    assert in_words("no_index") == "no_index"
    assert differing(()) == ""
    assert differing(("model",)) == "the model differs"
    assert differing(("model", "tools", "prompt")) == "the model, the tools and the prompt differ"
