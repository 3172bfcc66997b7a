"""Fitting the score of a cache: from labels to hits, over processes, with audits, on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ibidem import Answer, InvalidInput, Request
from ibidem.audits.ledger import Ledger
from ibidem.audits.terms import Terms
from ibidem.cache import SemanticCache
from ibidem.cli.console import Console
from ibidem.cli.main import app
from ibidem.decision.scoring import CosineScorer
from ibidem.embedding.embedder import CheckedEmbedder
from ibidem.faults import Faults
from ibidem.fit import parts as fitting_parts
from ibidem.fit.adoption import key_of
from ibidem.fit.labels import Label, of_judgements, pairs_of, read_labels
from ibidem.replay import Row
from ibidem.storage.records import Records
from ibidem.storage.rows import JudgementRow
from tests.embedders import BagOfWords
from tests.helpers import Child
from tests.labelled import CHATTER, DIMENSION, pairs, rows

TOLD = [Label(pair.asked, pair.stored, pair.right) for pair in pairs(500)]
NOISE = [Label(pair.asked, pair.stored, pair.right) for pair in pairs(300, noise=True)]
STORED = " ".join([*CHATTER[:5], "topica"])
SAME = " ".join(["topica", *CHATTER[4:9]])
OTHER = " ".join([*CHATTER[:5], "topicb"])  # nearer to it than SAME


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting_parts, "STEPS", 150)
    monkeypatch.setattr(fitting_parts, "WORD_STEPS", 60)
    monkeypatch.setattr("ibidem.cli.main.out", Console(width=200))
    monkeypatch.setattr("ibidem.models.chosen.resolve_embedder", lambda spec: BagOfWords(DIMENSION))


@pytest.fixture
def fit_cache(open_cache) -> Callable[..., SemanticCache]:
    """Opens caches that know the words of the labels, with one answer stored."""

    def opened(**settings: object) -> SemanticCache:
        chosen = {"embedder": BagOfWords(DIMENSION), "threshold": None, "max_wrong": 0.03, **settings}
        cache = open_cache(**chosen)
        cache.store(Request(STORED), Answer("an answer"))
        return cache

    return opened


def records_of(tmp_path: Path) -> Records:
    """The database of the cache that the fixtures open."""
    return Records(f"sqlite:///{tmp_path / 'cache' / 'ibidem.sqlite3'}")


# adoption ---------------------------------------------------------------------------------------------


ASKS = f"""
import sys, ibidem
from tests.embedders import BagOfWords
with ibidem.open(sys.argv[1], embedder=BagOfWords({DIMENSION}), max_wrong=0.03) as cache:
    for line in sys.stdin:
        print("hit" if cache.lookup(ibidem.Request(line.strip())) else "miss")
"""


def test_a_fitted_score_is_used_at_once_and_by_whoever_opens_the_cache(fit_cache, tmp_path: Path) -> None:
    """Here from the next lookup on, in another process when it opens the cache; so is the way back."""
    cache = fit_cache()
    assert not cache.lookup(Request(SAME))
    assert cache.fit(TOLD).adopted
    assert cache.lookup(Request(SAME))
    assert not cache.lookup(Request(OTHER))
    cache.close()
    with Child(ASKS, tmp_path / "cache") as child:
        assert (child.ask(SAME), child.ask(OTHER)) == ("hit", "miss")

    cache = fit_cache()
    assert cache.lookup(Request(SAME))
    assert cache.drop_fit()
    assert not cache.drop_fit()
    assert not cache.lookup(Request(SAME))
    cache.close()
    with Child(ASKS, tmp_path / "cache") as child:
        assert child.ask(SAME) == "miss"


def test_a_fit_tells_what_it_brings(fit_cache) -> None:
    """Cross-validated, in questions; nothing is kept of a dry run."""
    cache = fit_cache()
    report = cache.fit(TOLD, dry_run=True)

    assert (report.questions, report.adopted, report.audited) == (500, True, False)
    assert report.right == pytest.approx(sum(label.right for label in TOLD) / 500)
    assert report.after[0.05].low > report.before[0.05].high
    assert report.served_after.hits > 100
    assert report.served_after.wrong / report.served_after.hits <= 0.03
    assert not cache.lookup(Request(SAME))
    assert cache.judgements() == []


def test_what_is_no_better_is_not_used(fit_cache) -> None:
    """Labels that say nothing change nothing."""
    cache = fit_cache()
    report = cache.fit(NOISE)

    assert not report.adopted
    assert "no better" in report.reason
    assert not cache.drop_fit()


def test_a_cache_without_judgements_says_what_to_do(fit_cache) -> None:
    """Rather than learn from nothing."""
    with pytest.raises(InvalidInput, match=r"too few labels: 0 questions.*audit_rate.*a file"):
        fit_cache().fit()


def test_a_fitted_score_that_cannot_be_read_is_left_alone(fit_cache, tmp_path: Path) -> None:
    """Lookups go on with the shipped one; the fault is counted."""
    fit_cache().close()
    records = records_of(tmp_path)
    records.set_meta(key_of(BagOfWords(DIMENSION).fingerprint), '{"format": 1}')
    records.close()
    cache = fit_cache()

    assert cache.lookup(Request(STORED))
    assert not cache.lookup(Request(SAME))
    assert cache.stats().faults == {"use the fitted scorer: InvalidInput": 1}


# audits -----------------------------------------------------------------------------------------------


def test_audits_begin_with_what_the_labels_prove(fit_cache) -> None:
    """Not from zero; a second fit to the same labels proves nothing more."""
    cache = fit_cache(audit_rate=0.01, max_wrong=0.05)
    assert cache.fit(TOLD).adopted
    (told,) = cache.stats().audits

    assert told.threshold is not None
    assert (told.probes, told.audits, told.alarms) == (500, 0, 0)
    assert [bool(cache.lookup(Request(f"{SAME} {word}"))) for word in CHATTER[:20]].count(True) > 10
    cache.fit(TOLD)
    assert cache.stats().audits[0].probes == 500


def test_what_audits_judged_is_learned_from(fit_cache, tmp_path: Path) -> None:
    """Whoever scored then; in the namespaces they belong to, and what a fit wrote is no label."""
    fit_cache().close()
    records = records_of(tmp_path)
    records.judgements.add([judgement(label, namespace="acme") for label in TOLD])
    records.close()
    cache = fit_cache(audit_rate=0.01, max_wrong=0.05)
    first, again = cache.fit(), cache.fit()

    assert (first.questions, again.questions) == (500, 500)
    assert repr(first.scorer) == repr(again.scorer)
    assert [(told.namespace, told.probes) for told in cache.stats().audits] == [("acme", 500)]
    assert {row.source for row in cache.judgements(500, "acme")} == {"fit"}


def judgement(label: Label, **changes: object) -> JudgementRow:
    """A judgement of another scorer."""
    row = {
        "at": 1.0,
        "namespace": "",
        "scope": "s",
        "entry_id": "e",
        "asked": label.asked,
        "stored": label.stored,
        "similarity": 0.5,
        "score": 0.9,
        "scorer": "another",
        "right": label.right,
        "source": "probe",
    }
    return JudgementRow(**{**row, **changes})  # type: ignore[arg-type]


def test_of_a_pair_judged_twice_the_later_counts() -> None:
    """And never what a fit wrote."""
    label = Label("a", "b", True)
    found = of_judgements(
        [
            judgement(label),
            judgement(label._replace(right=False), source="audit"),
            judgement(label, source="fit"),
        ]
    )

    assert [one for one, _ in found] == [label._replace(right=False)]


def test_scores_of_two_scorers_are_not_compared(tmp_path: Path) -> None:
    """A lookup that began before the exchange is refused, and not counted."""
    records = Records(f"sqlite:///{tmp_path / 'a.sqlite3'}")
    old, new = CosineScorer(), CosineScorer()
    ledger = Ledger(records.judgements, old, "old", Faults())
    terms = Terms("", 0.02, 1.0)

    assert ledger.rule(terms, 0.9, old) == "probe"
    ledger.adopt(new, "new")
    assert ledger.rule(terms, 0.9, old) == "refuse"
    assert ledger.rule(terms, 0.9, new) == "probe"
    ledger.close()
    records.close()


def test_a_judgement_of_the_score_before_is_not_learned(tmp_path: Path) -> None:
    """Even where it cannot be written and only this process hears of it."""
    records = Records(f"sqlite:///{tmp_path / 'a.sqlite3'}")
    old, new = CosineScorer(), CosineScorer()
    ledger = Ledger(records.judgements, old, "old", Faults())
    terms = Terms("", 0.02, 1.0)
    ledger.adopt(new, "new")
    ledger.rule(terms, 0.9, new)
    for name in ("old", "new"):
        ledger._tell(judgement(TOLD[0], scorer=name), None)

    assert len(ledger._kept(terms).budget.evidence) == 1
    ledger.close()
    records.close()


# labels -----------------------------------------------------------------------------------------------


def embedder() -> CheckedEmbedder:
    """Bags of words, checked."""
    return CheckedEmbedder(BagOfWords(DIMENSION), lambda _, value: value)


def test_questions_with_meanings_are_compared_with_those_before() -> None:
    """The nearest three that no guard refuses, the same question left out."""
    asked = [Row("a b c d", 1), Row("a b c d", 1), Row("a b c d e", 1), Row("a b c d 7", 2), Row("x", 3)]
    found = pairs_of(asked, embedder())

    assert [(pair.asked, pair.stored, pair.right, pair.request) for pair in found] == [
        ("a b c d e", "a b c d", True, 2)
    ]


def test_labels_are_pairs_that_a_score_decides_about() -> None:
    """Not those that a guard refuses, nor the very same question."""
    given = [Label("a b", "a c", True), Label("a 7", "a 8", False), Label("a b", " a b", True)]
    (pair,) = pairs_of(given, embedder())

    assert (pair.asked, pair.stored, pair.right) == ("a b", "a c", True)
    assert pair.cosine == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("mixed", [[TOLD[0], Row("a", 1)], ["a"], [("a", "b", True)]])
def test_labels_of_another_kind_are_refused(mixed: list[object]) -> None:
    """Before anything is embedded."""
    with pytest.raises(InvalidInput, match=r"ibidem\.fit\.labels\.Label"):
        pairs_of(mixed, embedder())  # type: ignore[arg-type]


GOOD = {"asked": "a", "stored": "b", "right": True}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no labels"),
        ("{", "line 1: no JSON"),
        ("[1]", 'line 1: must be {"asked", "stored", "right"}, {"text", "meaning"} or {"a", "b", "same"}'),
        (json.dumps({**GOOD, "right": 1}), '"right" true or false'),
        (json.dumps({**GOOD, "stored": " "}), "must be questions"),
        (json.dumps({"text": "a"}), '"meaning" a text or a whole number'),
        (json.dumps(GOOD) + '\n{"text": "a", "meaning": 1}', "line 2: is of another kind than the first"),
        (json.dumps(GOOD) + "\n\ud800", "no UTF-8"),
    ],
)
def test_a_file_that_holds_no_labels_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """The message names the line."""
    file = tmp_path / "labels.jsonl"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InvalidInput) as error:
        read_labels(file)

    assert said in str(error.value)


# the command line -------------------------------------------------------------------------------------


def run(*arguments: object, code: int = 0) -> str:
    """Output of `ibidem fit` with these arguments, errors included."""
    result = CliRunner().invoke(app, ["fit", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def test_fit_on_the_command_line(fit_cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run, a fit, a cache that uses it, back to the shipped score."""
    monkeypatch.setenv("IBIDEM_MAX_WRONG", "0.03")
    fit_cache().close()
    at = ("--path", tmp_path / "cache")
    file = tmp_path / "labels.jsonl"
    file.write_text("\n".join(json.dumps(label._asdict()) for label in TOLD), encoding="utf-8")
    said = run(file, *at, "--dry-run")

    assert "500 labelled questions" in said
    assert "most hits at 2% wrong per hit, in hindsight" in said
    assert "without --dry-run it would be used" in said
    assert "There is no fitted score" in run("--drop", *at)
    assert "use the fitted score" in run(file, *at)
    cache = fit_cache()
    assert cache.lookup(Request(SAME))
    cache.close()
    assert "use the score that is shipped" in run("--drop", *at)


def test_fit_on_the_command_line_says_what_is_wrong(fit_cache, tmp_path: Path) -> None:
    """One sentence, exit code 2; what is no better is no error."""
    fit_cache().close()
    at = ("--path", tmp_path / "cache")
    noise = tmp_path / "noise.jsonl"
    noise.write_text("\n".join(json.dumps(label._asdict()) for label in NOISE), encoding="utf-8")

    assert "too few labels" in run(*at, code=2)
    assert "cannot read" in run(tmp_path / "none.jsonl", *at, code=2)
    assert "there is no cache" in run("--path", tmp_path / "elsewhere", code=2)
    assert "The score stays as it is" in run(noise, *at)


def test_fit_takes_what_replay_takes(fit_cache, tmp_path: Path) -> None:
    """A stream of questions with meanings."""
    fit_cache().close()
    file = tmp_path / "stream.jsonl"
    lines = [json.dumps({"text": row.text, "meaning": row.meaning}) for row in rows(1500)]
    file.write_text("\n".join(lines), encoding="utf-8")

    assert "labelled questions" in run(file, "--path", tmp_path / "cache", "--dry-run")


def test_a_label_with_a_private_question_leaves_no_trace(fit_cache, tmp_path: Path) -> None:
    """Neither among the judgements nor among the words of the score."""
    cache = fit_cache(redact=lambda text: text.replace("bob", "[name]"))
    private = [Label(f"{STORED} bob", SAME, right=True), Label(STORED, f"{SAME} bob", right=True)]
    report = cache.fit([*TOLD, *private])
    assert report.adopted
    held = records_of(tmp_path)
    judged = held.judgements.recent(5000)
    assert judged
    assert not any("bob" in row.asked or "bob" in row.stored for row in judged)
    assert "bob" not in str(held.meta(key_of(cache._backend.embedder.fingerprint)))
    held.close()
    with pytest.raises(InvalidInput):
        cache.fit([Row("where is bob", 1)])
    with pytest.raises(InvalidInput):
        cache.fit([*TOLD, "no label"])
