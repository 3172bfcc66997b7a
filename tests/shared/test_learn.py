"""`ibidem learn`: what it learns is what is served, in every process; what is not proved stays out."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import ibidem
import ibidem_lab
from ibidem import Answer, Hit, InvalidInput, Request
from ibidem.active_model import read_promotion
from ibidem.cache import SemanticCache
from ibidem.cli.commands import app
from ibidem.matching.pair_model import SPARSE, Calibration, PairModel
from ibidem.matching.shipped import pair_model
from ibidem_lab.fitting.labels import Label
from ibidem_lab.learning.asking import ENOUGH, NEAR, choose
from ibidem_lab.learning.choosing import Problem, learn_from, served
from ibidem_lab.learning.fitting import Basis, Pairs
from ibidem_lab.learning.gate import judge
from ibidem_lab.learning.learn import correction_of
from ibidem_lab.learning.lookups import Known, Lookups, Met, distinct, groups_of
from ibidem_lab.learning.reading import Reader
from ibidem_lab.learning.verifier_files import Correction, Shipped, write_verifier
from ibidem_lab.promotion import promote_verifier
from tests.helpers import Child, question

STORED, ASKED = "Can undergraduates take EECS 550?", "Is EECS 550 open for undergraduates?"
OTHER = "Can undergraduates take EECS 551?"
ASKS = """
import sys, ibidem
with ibidem.open(sys.argv[1]) as cache:
    for line in sys.stdin:
        print("hit" if cache.lookup(ibidem.Request(line.strip())) else "miss", flush=True)
"""


@pytest.fixture(scope="module")
def shipped() -> Shipped:
    """The pair model that comes with Ibidem, taken apart."""
    model = pair_model()
    assert model is not None
    return Shipped.of(model)


# what is written is what was learned --------------------------------------------------------------------


def test_a_corrected_model_scores_as_was_learned(shipped: Shipped, tmp_path: Path) -> None:
    """The graph that is written and the states from which it was computed say the same."""
    pairs = [(STORED, ASKED), (STORED, OTHER), ("one", "two")]
    draw = np.random.default_rng(0)
    weights = draw.normal(0.0, 0.05, len(shipped.weights))
    correction = Correction(weights, 0.25, Calibration(0.5, 1.0, -2.0, 0.5))
    with Reader(shipped, tmp_path / "states") as reader:
        states = reader.states(pairs)
    model = write_verifier(shipped, correction, tmp_path / "model", {})

    plain = shipped.logits(states)
    expected = np.clip(plain, -8.0, 8.0) + states.astype(np.float64) @ weights + 0.25
    assert np.allclose(plain, [one or 0.0 for one in pair_model().logits(pairs)], atol=1e-3)  # type: ignore[union-attr]
    assert np.allclose(expected, [one or 0.0 for one in model.logits(pairs)], atol=1e-3)
    assert model.calibration == correction.calibration
    assert model.name != shipped.name
    assert PairModel(tmp_path / "model").name == model.name


def test_what_was_read_is_remembered_also_after_a_kill(shipped: Shipped, tmp_path: Path) -> None:
    """A row that was torn is read again; the others are not."""
    pairs, kept = [(STORED, ASKED), (STORED, OTHER)], tmp_path / "states"
    with Reader(shipped, kept) as reader:
        first = reader.states(pairs)
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) - 7])
    with Reader(shipped, kept) as reader:
        assert len(reader._known) == 1
        assert np.allclose(reader.states(pairs), first, atol=1e-5)
        assert np.allclose(reader.states([pair[::-1] for pair in pairs]), first, atol=1e-5)
    assert len(kept.read_bytes()) == len(whole)
    assert STORED.encode() not in whole


def test_a_window_that_is_too_short_has_no_state(shipped: Shipped, tmp_path: Path) -> None:
    """Such a pair is left out, and does not fail the run."""
    with Reader(shipped, tmp_path / "states") as reader:
        assert np.isnan(reader.states([("word " * 300, STORED)])).all()


# promotion ----------------------------------------------------------------------------------------------


def lenient(shipped: Shipped, directory: Path) -> Path:
    """A verifier that is sure of the asked question, and of hardly any other."""
    write_verifier(
        shipped, Correction(np.zeros(len(shipped.weights)), 3.0, shipped.calibration), directory, {}
    )
    return directory


def test_a_promoted_verifier_serves_in_every_process_and_goes_back(shipped: Shipped, tmp_path: Path) -> None:
    """Without a restart; the files come out of the database where this host has none."""
    place = tmp_path / "cache"
    asked = "May I sign up for EECS 550 before I have my degree?"
    with ibidem.open(place) as cache:
        cache.store(Request(STORED), Answer("Yes."))
        assert not cache.lookup(Request(asked))
        with Child(ASKS, place) as child:
            assert child.ask(asked) == "miss"
            report = promote_verifier(cache, lenient(shipped, tmp_path / "learned"))
            assert report.changed
            assert isinstance(cache.lookup(Request(asked)), Hit)
            assert eventually_says(child, asked, "hit")
            assert not promote_verifier(cache, tmp_path / "learned").changed
            assert ibidem_lab.rollback(cache).changed
            assert not cache.lookup(Request(asked))
            assert eventually_says(child, asked, "miss")
        assert ibidem_lab.rollback(cache).changed  # forward again
        assert not cache.stats().faults
    for one in (place / "models").glob("*/*"):
        one.unlink()
    with ibidem.open(place) as cache:
        assert isinstance(cache.lookup(Request(asked)), Hit)
        told = CliRunner().invoke(app, ["doctor", "--path", str(place)]).output
    assert "the pair model, as promoted" in " ".join(told.split())


def eventually_says(child: Child, asked: str, said: str) -> bool:
    """A process looks every two seconds, while it is used."""
    import time

    until = time.monotonic() + 30
    while time.monotonic() < until:
        if child.ask(asked) == said:
            return True
        time.sleep(0.2)
    return False


def test_a_promoted_verifier_that_is_lost_leaves_the_shipped_one(shipped: Shipped, tmp_path: Path) -> None:
    """A fault, and no lookup fails."""
    place = tmp_path / "cache"
    with ibidem.open(place) as cache:
        cache.store(Request(STORED), Answer("Yes."))
        name = PairModel(lenient(shipped, tmp_path / "learned")).name
        promote_verifier(cache, tmp_path / "learned")
        cache._runtime.store.model_files.delete(name)
    for one in (place / "models").glob("*/*"):
        one.unlink()
    with ibidem.open(place) as cache:
        assert cache.lookup(Request(STORED))
        assert cache._runtime.semantic_index.scorer.name == shipped.name
        assert "open the promoted verifier: EmbedderUnavailable" in cache.stats().faults
        promotion = read_promotion(cache._runtime.store)
        assert promotion is not None
        assert promotion.current.verifier == name


# learning and its gate ----------------------------------------------------------------------------------

WIDTH = 40


def problem(seed: int, wrong_labels: float = 0.0, count: int = 400) -> tuple[Problem, Lookups]:
    """Lookups whose state tells what the shipped score does not; and the same with the true labels."""
    draw = np.random.default_rng(seed)
    right = draw.random(count) < 0.5
    states = draw.normal(0.0, 1.0, (count, WIDTH)).astype(np.float32)
    states[:, 0] += np.where(right, 4.0, -4.0)
    logits, cosines, densities = draw.normal(1.0, 1.0, count), np.full(count, 0.85), np.full(count, 0.65)
    told = right ^ (draw.random(count) < wrong_labels)
    numbers = np.arange(count)
    anchors = Pairs(
        np.where(np.arange(100) % 2 == 0, 4.0, -4.0),
        np.full(100, 0.8),
        np.full(100, SPARSE),
        draw.normal(0.0, 0.3, (100, WIDTH)).astype(np.float32) + 3.0,
        np.arange(100) % 2 == 0,
    )

    def lookups(labels: np.ndarray) -> Lookups:
        pairs = Pairs(logits, cosines, densities, states, labels)
        everything = np.ones(count, bool)
        return Lookups([], pairs, everything, everything, numbers, numbers, np.full(count, -1))

    basis = Basis.of(np.vstack([states, anchors.states]))
    calibration = Calibration(0.6272, 2.8736, -4.0691, 1.4493)
    return Problem(lookups(told), calibration, 3.08, 0.02, basis, anchors), lookups(right)


def judged(one: Problem) -> tuple[bool, Sequence[str]]:
    """Whether the gate lets it pass, and why not."""
    learned, after = learn_from(one)
    before = served(one.lookups, one.lookups.pairs.margins(one.shipped), one.least)
    found = judge(one, learned, before, after)
    return found.better, found.reasons


def test_what_the_labels_prove_is_better() -> None:
    """More hits at the same share of wrong ones, on lookups that were not learned from."""
    better, reasons = judged(problem(0)[0])
    assert better, reasons


@pytest.mark.parametrize("seed", range(5))
def test_with_a_fifth_of_the_labels_wrong_nothing_is_proved(seed: int) -> None:
    """The figures say so; nothing is promoted."""
    assert not judged(problem(seed, wrong_labels=0.2)[0])[0]


def test_labels_drawn_by_chance_prove_nothing() -> None:
    """Half of them wrong: there is nothing to learn."""
    assert not judged(problem(1, wrong_labels=0.5)[0])[0]


def test_what_is_written_is_the_correction_that_was_judged() -> None:
    """Margins by the parts of the files are those of the training."""
    one, _ = problem(2)
    learned, _ = learn_from(one)
    correction, pairs = correction_of(learned, one), one.lookups.pairs
    logits = np.clip(pairs.logits, -8, 8) + pairs.states.astype(np.float64) @ correction.weights
    logits += correction.offset
    found = correction.calibration
    margins = found.logit * logits + found.cosine * pairs.cosines + found.density * pairs.densities
    assert np.allclose(margins + found.offset, learned.margins(one, pairs), atol=1e-6)


# what is asked about ------------------------------------------------------------------------------------


TOLD = {frozenset((f"one {n}", f"other {n}")) for n in range(ENOUGH)}


def met(asked: str, stored: str) -> Met:
    return Met(asked, stored, 0.9, 0.6, read=True)


def test_what_is_asked_about_is_what_would_be_served_or_nearly() -> None:
    """Once there are labels. Of each question its best pair, and none twice in the other order."""
    rows = [met(f"asked {n}", f"stored {n}") for n in range(60)] + [met("stored 0", "asked 0")]
    values = np.array([*np.linspace(5.0, -5.0, 60), 5.0])
    chosen = choose(rows, values, 3.0, 12, TOLD, random.Random(0))
    pairs = {frozenset((rows[at].asked, rows[at].stored)) for at in chosen}
    assert len(pairs) == len(chosen) == 12
    assert values[chosen].min() >= 3.0 - NEAR
    more = choose(rows, values, 3.0, 40, TOLD, random.Random(0))
    assert sorted(values[more], reverse=True) == sorted(values[:60], reverse=True)[:40]
    first = choose(rows, values, 3.0, 12, set(), random.Random(0))
    assert values[first].min() < 3.0 - NEAR  # before that, from a wider part
    assert choose([], np.array([]), 3.0, 5, TOLD, random.Random(0)) == []


def test_a_teacher_is_asked_in_two_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first labels are of is not asked again; so many calls as were allowed."""
    asked: list[str] = []

    def teacher(prompt: str) -> str:
        asked.append(prompt)
        return '{"same": true}'

    monkeypatch.setattr("ibidem_lab.labelling.teach.resolve_teacher", lambda name: (teacher, "some"))
    with ibidem.open(tmp_path / "cache") as cache:
        for n, thing in enumerate(("a coat", "a passport", "milk", "a car", "books", "a dog")):
            for m, form in enumerate(("How can I insure {}?", "What must I do to insure {}?")):
                cache.store(Request(form.format(thing)), Answer(question(2 * n + m)))
    command = [
        "learn",
        "--path",
        str(tmp_path / "cache"),
        "--teacher",
        "openai:some",
        "--calls",
        "5",
        "--yes",
    ]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    assert "Round 2 of 2" in " ".join(told.output.split())
    assert len(asked) == len(set(asked)) == 4
    assert "4 labelled pairs" in told.output


# labels -------------------------------------------------------------------------------------------------


def test_labels_say_more_than_they_name() -> None:
    """If a is b and b is c, then a is c; and what c is not, a is not."""
    known = Known([Label("a", "b", True), Label("b", "c", True), Label("c", "d", False)])
    assert (known.right("a", "c"), known.right("d", "a"), known.right("a", "x")) == (True, False, None)


def test_groups_hold_what_hangs_together() -> None:
    """And no group is most of all: a chain is cut."""
    labels = distinct([Label(f"q{n}", f"q{n + 1}", True) for n in range(300)] + [Label("x", "y", True)])
    groups = groups_of(labels)
    sizes = np.bincount(list(groups.values()))
    assert groups["x"] == groups["y"]
    assert sizes.max() <= 40


def test_too_few_labels_change_nothing(open_default: SemanticCache) -> None:
    """It says how many there are, and how many are needed."""
    report = ibidem_lab.learn(open_default, [Label(STORED, ASKED, True)], promote=True)
    assert report.lacking.startswith("not enough labels: 1 pairs that one answer serves and 0 that need two")
    assert (report.judged, report.promoted, report.total) == (None, False, 1)


def test_another_verifier_does_not_learn(tmp_path: Path) -> None:
    """Its scores have another scale; the message says what to do."""
    labels = [Label(f"question {n}", f"other {n}", n % 2 == 0) for n in range(60)]
    with (
        ibidem.open(tmp_path / "cache", verifier=None) as cache,
        pytest.raises(InvalidInput, match="ibidem learn threshold"),
    ):
        ibidem_lab.learn(cache, labels)


def test_the_command_tells_what_is_lacking(open_default: SemanticCache, tmp_path: Path, wide_console) -> None:
    """From files; a dry run too, and as JSON."""
    open_default.close()
    file = tmp_path / "pairs.jsonl"
    draw = random.Random(0)
    rows = [{"a": f"what is {n}?", "b": f"tell me {n}", "same": draw.randint(0, 1)} for n in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    place = ["--path", str(open_default._runtime.settings.path), "--pairs", str(file)]

    dry = CliRunner().invoke(app, ["learn", *place, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "60 labelled pairs" in dry.output
    told = json.loads(CliRunner().invoke(app, ["learn", *place, "--dry-run", "--json"]).output)
    assert told["labels"] == {"file": 60}
    few = CliRunner().invoke(app, ["learn", *place[:2]])
    assert "Nothing was changed" in few.output


@pytest.fixture
def open_default(tmp_path: Path):
    """A cache with the default models and one answer."""
    with ibidem.open(tmp_path / "cache") as cache:
        cache.store(Request(STORED), Answer("Yes."))
        yield cache
