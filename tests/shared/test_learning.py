"""Fitting the threshold of a cache: from labels to hits, over processes, with audits, on the command line."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import ibidem_lab
from ibidem import Answer, InvalidInput, Request
from ibidem._util.faults import Faults
from ibidem.audits.budget import AuditPolicy
from ibidem.audits.ledger import JudgementLog
from ibidem.cache import SemanticCache
from ibidem.cli.commands import app
from ibidem.cli.doctor import examine
from ibidem.embedding.base import CheckedEmbedder
from ibidem.matching.fitted import key_of, old_key_of
from ibidem.matching.scorers import COSINES, CosineScorer
from ibidem.matching.text import QuestionFeatures
from ibidem.settings import read_settings
from ibidem.storage.logs import JudgementRow
from ibidem.storage.store import Store
from ibidem_lab.fitting.labels import Label, of_judgements, pairs_of, read_labels
from ibidem_lab.replay import Row
from tests.embedders import BagOfWords
from tests.helpers import Child
from tests.labelled import CHATTER, DIMENSION, KEYS, labels, stream

TOLD = labels(600)
NOISE = labels(400, words=7, right=0.5)
STORED = " ".join([*CHATTER[:11], "topica"])
SAME = " ".join(["topica", *CHATTER[1:12]])  # a cosine of about 0.92, as the labels that are right
FAR = " ".join([*CHATTER[20:31], "topica"])
FINGERPRINT = BagOfWords(DIMENSION).fingerprint


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, wide_console: None) -> None:
    monkeypatch.setattr("ibidem.active_model.resolve_embedder", lambda spec: BagOfWords(DIMENSION))


@pytest.fixture
def fit_cache(open_cache) -> Callable[..., SemanticCache]:
    """Opens caches that know the words of the labels, with one answer stored."""

    def opened(**settings: object) -> SemanticCache:
        chosen = {
            "embedder": BagOfWords(DIMENSION),
            "min_similarity": None,
            "max_error_rate": 0.02,
            **settings,
        }
        cache = open_cache(**chosen)
        cache.store(Request(STORED), Answer("an answer"))
        return cache

    return opened


def store_of(tmp_path: Path) -> Store:
    """The database of the cache that the fixtures open."""
    return Store(f"sqlite:///{tmp_path / 'cache' / 'ibidem.sqlite3'}")


# adoption ---------------------------------------------------------------------------------------------


ASKS = f"""
import sys, ibidem
from tests.embedders import BagOfWords
with ibidem.open(sys.argv[1], embedder=BagOfWords({DIMENSION}), max_error_rate=0.02) as cache:
    for line in sys.stdin:
        print("hit" if cache.lookup(ibidem.Request(line.strip())) else "miss")
"""


def test_a_fitted_threshold_is_used_at_once_and_by_whoever_opens_the_cache(fit_cache, tmp_path: Path) -> None:
    """Here from the next lookup on, in another process when it opens the cache; so is the way back."""
    cache = fit_cache()
    assert not cache.lookup(Request(SAME))
    report = ibidem_lab.fit(cache, TOLD)
    assert report.adopted
    assert cache.policy.threshold == report.threshold_after < report.threshold_before
    assert cache.lookup(Request(SAME))
    assert not cache.lookup(Request(FAR))
    cache.close()
    with Child(ASKS, tmp_path / "cache") as child:
        assert (child.ask(SAME), child.ask(FAR)) == ("hit", "miss")

    cache = fit_cache()
    assert cache.lookup(Request(SAME))
    assert ibidem_lab.drop_fit(cache)
    assert not ibidem_lab.drop_fit(cache)
    assert not cache.lookup(Request(SAME))
    cache.close()
    with Child(ASKS, tmp_path / "cache") as child:
        assert child.ask(SAME) == "miss"


def test_the_score_of_a_pair_stays_the_shipped_one(fit_cache) -> None:
    """Only where it is served from moves."""
    cache = fit_cache()
    scorer = cache._runtime.semantic_index.scorer
    assert scorer.name == CosineScorer(FINGERPRINT).name
    ibidem_lab.fit(cache, TOLD)
    hit = cache.lookup(Request(SAME))

    assert hit
    assert hit.score == hit.similarity
    assert cache._runtime.semantic_index.scorer is scorer


def test_far_pairs_are_never_served_after_a_fit(fit_cache) -> None:
    """Labels of near pairs only, all right but for the fewest that a fit asks for."""
    near = [label for label in labels(1000, 3) if label.right]
    cache = fit_cache()
    report = ibidem_lab.fit(
        cache, [*near, *(label._replace(right=False) for label in labels(60, 4, words=5)[::2])]
    )
    draw = random.Random(5)
    asked = [
        " ".join(
            [*draw.sample(CHATTER[:11], shared), *draw.sample(CHATTER[11:], 11 - shared), draw.choice(KEYS)]
        )
        for shared in (0, 1, 2, 3, 4) * 80
    ]
    found = [cache.lookup(Request(text)) for text in asked]

    assert report.adopted
    assert cache.lookup(Request(SAME))
    far = [one for one in found if (one.similarity or 0.0) < 0.5]
    assert len(far) > 300
    assert not any(far)


def test_a_fit_tells_what_it_brings(fit_cache) -> None:
    """Cross-validated, in questions; nothing is kept of a dry run, and no text of a label ever."""
    cache = fit_cache()
    report = ibidem_lab.fit(cache, TOLD, dry_run=True)

    assert (report.questions, report.adopted, report.decided_by) == (600, True, "fit")
    assert (report.max_error_rate, report.threshold_before) == (0.02, COSINES.at(0.02))
    assert report.right == 0.5
    assert report.served_before.hits < 20
    assert report.served_after.hits > 200
    assert report.served_after.wrong / report.served_after.hits <= 0.02
    assert report.hindsight[0.02].value > 0.45
    assert not cache.lookup(Request(SAME))
    ibidem_lab.fit(cache, TOLD)
    assert cache.judgements() == []


def test_what_proves_nothing_changes_nothing(fit_cache) -> None:
    """And takes back what an earlier fit has moved."""
    cache = fit_cache()
    report = ibidem_lab.fit(cache, NOISE)
    assert not report.adopted
    assert "neither prove a lower threshold nor disprove" in report.reason
    assert not ibidem_lab.drop_fit(cache)
    assert ibidem_lab.fit(cache, TOLD).adopted
    assert not ibidem_lab.fit(cache, NOISE).adopted
    assert not cache.lookup(Request(SAME))


def test_where_the_shipped_threshold_is_disproved_nothing_is_served_by_meaning(fit_cache) -> None:
    """Every second of the nearest pairs is wrong; the same question is still answered."""
    cache = fit_cache()
    near = " ".join([STORED, *CHATTER[12:26]])
    cache.store(Request(near), Answer("near"))
    other = " ".join([*near.split()[1:], "chatla"])
    assert cache.lookup(Request(other))
    assert ibidem_lab.fit(cache, labels(800, words=25, right=0.5)).adopted
    assert not cache.lookup(Request(other))
    assert cache.lookup(Request(near))


@pytest.mark.parametrize(
    ("settings", "decided"), [({"min_similarity": 0.96}, "given"), ({"audit_rate": 0.1}, "audits")]
)
def test_what_does_not_follow_from_max_wrong_is_not_moved(fit_cache, settings, decided: str) -> None:
    """A threshold that was given stays, and audits have their budget; the report says which."""
    cache = fit_cache(**settings)
    before = cache.policy
    report = ibidem_lab.fit(cache, TOLD)

    assert (report.decided_by, report.adopted) == (decided, True)
    assert cache.policy == before
    assert not cache.lookup(Request(SAME))


def test_a_cache_without_judgements_says_what_to_do(fit_cache) -> None:
    """Rather than learn from nothing."""
    with pytest.raises(InvalidInput, match=r"too few labels: 0 questions.*audit_rate.*a file"):
        ibidem_lab.fit(fit_cache())


@pytest.mark.parametrize("given", [TOLD[:150], [one for one in TOLD if one.right]], ids=["few", "none wrong"])
def test_too_few_labels_are_refused(fit_cache, given: list[Label]) -> None:
    """With what is missing and how to get it."""
    with pytest.raises(InvalidInput, match=r"too few labels: .* at least 200 questions and 20 pairs of each"):
        ibidem_lab.fit(fit_cache(), given)


def test_a_fitted_threshold_that_cannot_be_read_is_left_alone(fit_cache, tmp_path: Path) -> None:
    """Lookups go on with the shipped one; the fault is counted."""
    fit_cache().close()
    store = store_of(tmp_path)
    store.meta.set(key_of(CosineScorer(FINGERPRINT)), '{"format": 1}')
    store.close()
    cache = fit_cache()

    assert cache.lookup(Request(STORED))
    assert not cache.lookup(Request(SAME))
    assert cache.stats().faults == {"use the fitted threshold: InvalidInput": 1}


# a cache of 0.1 ---------------------------------------------------------------------------------------

# The row that version 0.1 (da9376c) wrote after a fit to 500 labels, BagOfWords(64), rarities cut. With it
# SAME_OF_0_1, of which two words of six are those of STORED_IN_0_1 (cosine 0.37), was served with a score of
# 0.968. Its judgements stood under the name below.
SCORE_OF_0_1 = json.dumps(
    {
        "base": "259d86631877f35dbfad04cf9d2a38c2",
        "bias": 50.83793612621767,
        "format": 1,
        "knots": [
            [-8.3583816633275, 0.5],
            [-5.768091025999268, 0.8],
            [1.8265332272791117, 0.8995000000000001],
            [1.8265342272791116, 0.9678380990968269],
        ],
        "labels": 500,
        "least": 0.0,
        "least_shipped": -0.2,
        "metric": None,
        "rarity": {"known": {"chata": 2.0539, "topica": 2.4078}, "unknown": 6.698268054115413},
        "top": 0.0005,
        "weights": {
            "amount": 0.0,
            "comparison": 0.0,
            "cosine": 1.0630628124159684,
            "fillers": 0.0,
            "inserted": 0.0,
            "length": 7.343465113156616e-09,
            "length_ratio": 0.0,
            "metric": 0.0,
            "negation": 0.0,
            "one_word": 0.0,
            "question_word": 0.0,
            "rarest_asked": -11.352547627028704,
            "rarest_stored": -11.492639506806759,
            "rephrased": 0.0,
            "replaced": 0.0,
            "shipped": 1.0630628124159687,
            "stems_shared": 9.572076279365504,
            "trigrams_shared": 0.0,
            "words": 0.0,
        },
        "words": None,
    },
    sort_keys=True,
)
NAME_OF_0_1 = "280d8ccde1922316b7487cac850702b2"
STORED_IN_0_1 = " ".join([*CHATTER[:5], "topica"])
SAME_OF_0_1 = " ".join(["topica", *CHATTER[4:9]])


@pytest.fixture
def old_place(fit_cache, tmp_path: Path) -> Path:
    """A place as a fit of version 0.1 left it: its score, and judgements of that score."""
    with fit_cache() as cache:
        cache.store(Request(STORED_IN_0_1), Answer("a topic"))
        name = cache._runtime.semantic_index.scorer.name
    store = store_of(tmp_path)
    store.meta.set(old_key_of(FINGERPRINT), SCORE_OF_0_1)
    store.judgements.add([judgement(label, scorer=name, score=0.95) for label in TOLD[:30]])
    store.judgements.add([judgement(label, scorer=NAME_OF_0_1, source="fit") for label in TOLD[:300]])
    store.judgements.add([judgement(label, scorer=NAME_OF_0_1, source="audit") for label in TOLD[300:400]])
    store.close()
    return tmp_path / "cache"


def test_a_fitted_score_of_0_1_is_not_used(
    old_place: Path, fit_cache, caplog: pytest.LogCaptureFixture
) -> None:
    """The shipped one decides, and the log says so at once; a fit, or dropping it, ends that."""
    with caplog.at_level(logging.WARNING, "ibidem"):
        cache = fit_cache()
    assert [r.message for r in caplog.records if "version 0.1 learned is kept here and not used" in r.message]
    assert not cache.lookup(Request(SAME_OF_0_1))
    assert cache.lookup(Request(STORED_IN_0_1))
    assert cache.stats().faults == {}
    assert ibidem_lab.fit(cache, TOLD).adopted
    cache.close()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ibidem"):
        fit_cache().close()
    assert not caplog.records


def test_doctor_tells_of_a_fitted_score_of_0_1(old_place: Path) -> None:
    """It is no fault, and is named with what to do."""
    settings = read_settings(path=old_place, embedder=BagOfWords(DIMENSION), max_error_rate=0.02)
    (told,) = (one for one in examine(settings) if one.check == "threshold")
    assert told.ok
    assert "version 0.1" in told.text
    assert "ibidem learn threshold --drop" in told.text


def test_audits_go_on_from_what_was_judged_of_the_shipped_score(old_place: Path, fit_cache) -> None:
    """Scores of the fitted one are of another scale; what is shown is what the budget knows."""
    cache = fit_cache(audit_rate=0.1, max_error_rate=0.05)
    (told,) = cache.stats().audits
    assert (told.audits, told.probes) == (0, 30)
    assert "30" in run_command("audit", "--path", old_place)
    policy = AuditPolicy("", 0.05, 0.1, cache._runtime.semantic_index.scorer.name)
    cache._runtime.judgement_log.decide(policy, 0.9)
    assert len(cache._runtime.judgement_log._state(policy).budget.evidence) == 30


# audits -----------------------------------------------------------------------------------------------


def test_what_audits_judged_is_learned_from(fit_cache, tmp_path: Path) -> None:
    """Whoever scored then; what a fit of version 0.1 wrote is no label."""
    fit_cache().close()
    store = store_of(tmp_path)
    store.judgements.add([judgement(label, namespace="acme") for label in TOLD])
    store.judgements.add([judgement(label, source="fit") for label in labels(50, 9)])
    store.close()
    cache = fit_cache()

    assert ibidem_lab.fit(cache).questions == 600
    assert cache.lookup(Request(SAME))


def test_a_score_of_a_lookup_counts_as_it_was(fit_cache, tmp_path: Path) -> None:
    """The scorer in use gave it beside other stored questions, which a label does not hold."""
    cache = fit_cache()
    name = cache._runtime.semantic_index.scorer.name
    cache._runtime.store.judgements.add([judgement(label, scorer=name, score=0.31) for label in TOLD])

    assert ibidem_lab.fit(cache, TOLD, dry_run=True).adopted
    assert not ibidem_lab.fit(cache, dry_run=True).adopted


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
    store = Store(f"sqlite:///{tmp_path / 'a.sqlite3'}")
    log = JudgementLog(store.judgements, frozenset({"old"}), Faults())
    old, new = AuditPolicy("", 0.02, 1.0, "old"), AuditPolicy("", 0.02, 1.0, "new")

    assert log.decide(old, 0.9) == "probe"
    log.set_scorers(frozenset({"new"}))
    assert log.decide(old, 0.9) == "refuse"
    assert log.decide(new, 0.9) == "probe"
    log.set_scorers(frozenset({"old"}))
    assert log.decide(old, 0.9) == "probe"
    log.close()
    store.close()


def test_a_judgement_of_the_score_before_is_not_learned(tmp_path: Path) -> None:
    """Even where it cannot be written and only this process hears of it."""
    store = Store(f"sqlite:///{tmp_path / 'a.sqlite3'}")
    log = JudgementLog(store.judgements, frozenset({"old"}), Faults())
    policy = AuditPolicy("", 0.02, 1.0, "new")
    log.set_scorers(frozenset({"new"}))
    log.decide(policy, 0.9)
    for name in ("old", "new"):
        log._add_to_budgets(judgement(TOLD[0], scorer=name), None)

    assert len(log._state(policy).budget.evidence) == 1
    log.close()
    store.close()


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


def all_differ(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
    return True


@pytest.mark.parametrize(
    ("options", "counted"),
    [({}, 3), ({"verifier": None}, 0), ({"guards": [all_differ]}, 0)],
    ids=["by default", "without a verifier", "a guard that refuses all"],
)
def test_labels_are_those_that_the_guards_of_the_cache_leave(
    open_cache: Callable[..., SemanticCache], options: dict[str, Any], counted: int
) -> None:
    """Beside a model that reads both questions what only one of them says is no objection."""
    cache = open_cache(embedder="all-MiniLM-L6-v2", min_similarity=None, **options)
    labels = [Label(f"what does tea {n} cost", "what does tea cost", True) for n in (1, 2, 3)]

    with pytest.raises(InvalidInput, match=f"too few labels: {counted} questions"):
        ibidem_lab.fit(cache, labels)


@pytest.mark.parametrize("mixed", [[TOLD[0], Row("a", 1)], ["a"], [("a", "b", True)]])
def test_labels_of_another_kind_are_refused(mixed: list[object]) -> None:
    """Before anything is embedded."""
    with pytest.raises(InvalidInput, match=r"ibidem_lab\.fitting\.labels\.Label"):
        pairs_of(mixed, embedder())  # type: ignore[arg-type]


GOOD = {"asked": "a", "stored": "b", "right": True}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no labels"),
        ("{", "line 1: invalid JSON"),
        ("[1]", 'line 1: must be {"asked", "stored", "right"}, {"text", "meaning"} or {"a", "b", "same"}'),
        (json.dumps({**GOOD, "right": 1}), '"right" true or false'),
        (json.dumps({**GOOD, "stored": " "}), "must be questions"),
        (json.dumps({"text": "a"}), '"meaning" a text or a whole number'),
        (json.dumps(GOOD) + '\n{"text": "a", "meaning": 1}', "line 2: is of another kind than the first"),
        (json.dumps(GOOD) + "\n\ud800", "not valid UTF-8"),
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


def run_command(*arguments: object, code: int = 0) -> str:
    """Output of `ibidem` with these arguments, errors included."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output


def run(*arguments: object, code: int = 0) -> str:
    """Output of `ibidem learn threshold` with these arguments."""
    return run_command("learn", "threshold", *arguments, code=code)


def written(file: Path, given: list[Label]) -> Path:
    """A file of labels."""
    file.write_text("\n".join(json.dumps(label._asdict()) for label in given), encoding="utf-8")
    return file


def test_fit_on_the_command_line(fit_cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run, a fit, a cache that uses it, back to the shipped threshold."""
    monkeypatch.setenv("IBIDEM_MAX_ERROR_RATE", "0.02")
    fit_cache().close()
    at = ("--path", tmp_path / "cache")
    file = written(tmp_path / "labels.jsonl", TOLD)
    said = run(file, *at, "--dry-run")

    assert "600 labelled questions" in said
    assert "most hits at 2\N{NO-BREAK SPACE}% wrong per hit, in hindsight" in said
    assert "A fit moves the threshold only" in said
    assert "Without --dry-run caches would use the new threshold" in said
    assert "There is no fitted threshold" in run("--drop", *at)
    assert "use the new threshold" in run(file, *at)
    cache = fit_cache()
    assert cache.lookup(Request(SAME))
    cache.close()
    monkeypatch.setenv("IBIDEM_MIN_SIMILARITY", "0.96")
    assert "a given least score decides, which a fit does not move" in run(file, *at)
    assert "use the threshold that is shipped" in run("--drop", *at)


def test_fit_on_the_command_line_says_what_is_wrong(fit_cache, tmp_path: Path) -> None:
    """One sentence, exit code 2; what proves nothing is no error."""
    fit_cache().close()
    at = ("--path", tmp_path / "cache")

    assert "too few labels" in run(*at, code=2)
    assert "cannot read" in run(tmp_path / "none.jsonl", *at, code=2)
    assert "there is no cache" in run("--path", tmp_path / "elsewhere", code=2)
    assert "The threshold stays as it is" in run(written(tmp_path / "noise.jsonl", NOISE), *at)


def test_fit_takes_what_replay_takes(fit_cache, tmp_path: Path) -> None:
    """A stream of questions with meanings."""
    fit_cache().close()
    file = tmp_path / "stream.jsonl"
    lines = [json.dumps({"text": row.text, "meaning": row.meaning}) for row in stream(500)]
    file.write_text("\n".join(lines), encoding="utf-8")

    assert "labelled questions" in run(file, "--path", tmp_path / "cache", "--dry-run")


def test_a_label_with_a_private_question_leaves_no_trace(fit_cache, tmp_path: Path) -> None:
    """Nor does any other: no text of a label is kept, also by the command, which knows no `redact`."""
    private = [Label(f"{STORED} bob", SAME, right=True), Label(STORED, f"{SAME} bob", right=True)]
    cache = fit_cache(redact=lambda text: text.replace("bob", "[name]"))
    assert ibidem_lab.fit(cache, [*TOLD, *private]).questions == 600
    with pytest.raises(InvalidInput):
        ibidem_lab.fit(cache, [Row("where is bob", 1)])
    with pytest.raises(InvalidInput):
        ibidem_lab.fit(cache, [*TOLD, "no label"])
    cache.close()
    run(written(tmp_path / "labels.jsonl", [*TOLD, *private]), "--path", tmp_path / "cache")
    held = b"".join(file.read_bytes() for file in (tmp_path / "cache").glob("ibidem.sqlite3*"))
    assert b"bob" not in held
    assert TOLD[0].asked.encode() not in held
