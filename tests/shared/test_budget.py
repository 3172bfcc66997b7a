"""The budget on made-up traffic: scores, and whether the stored answer would have been right."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ibidem._util.intervals import clopper_pearson
from ibidem.audits.budget import WINDOW, Budget, poisson_upper

SEEDS = range(5)
Traffic = Iterator[tuple[float, bool]]


def traffic(
    seed: int, requests: int, right_above: float, right_below: float = 0.6, good: float = 0.5
) -> Traffic:
    """Scores of 0.9 to 1 for a share `good` of the requests, the others lower; right at these rates."""
    draw = random.Random(seed)
    for _ in range(requests):
        high = draw.random() < good
        score = draw.uniform(0.9, 1.0) if high else draw.uniform(0.8, 0.9)
        yield score, draw.random() < (right_above if high else right_below)


@dataclass
class Run:
    """What a budget did, by request."""

    rulings: list[str] = field(default_factory=list)
    wrong: list[bool] = field(default_factory=list)  # served wrongly

    def hits(self, begin: int = 0, end: int | None = None) -> int:
        return self.rulings[begin:end].count("serve")

    def wrong_hits(self, begin: int = 0, end: int | None = None) -> int:
        return sum(self.wrong[begin:end])


def drive(budget: Budget, requests: Traffic, run: Run | None = None) -> Run:
    """Ask the budget for every request; audits and probes are judged at once."""
    run = run or Run()
    for score, right in requests:
        ruling = budget.decide(score)
        run.rulings.append(ruling)
        run.wrong.append(ruling == "serve" and not right)
        if ruling in ("audit", "probe"):
            budget.record(score, right, ruling == "audit")
    return run


def new(seed: int = 7, max_error_rate: float = 0.02, audit_rate: float = 0.05) -> Budget:
    """A budget whose draws are those of the seed."""
    return Budget(max_error_rate=max_error_rate, audit_rate=audit_rate, random=random.Random(seed).random)


def test_nothing_is_served_without_evidence() -> None:
    """Every candidate is compared instead, however high its score."""
    budget = new()

    assert [budget.decide(1.0) for _ in range(100)] == ["probe"] * 100
    assert budget.threshold == math.inf


@pytest.mark.parametrize("seed", SEEDS)
def test_hopeless_traffic_is_never_served(seed: int) -> None:
    """One wrong answer in ten at every score: 6,000 requests, no hit; after a while fewer are compared."""
    run = drive(new(seed), traffic(seed, 6000, 0.9))

    assert run.hits() == 0
    assert 0.4 < run.rulings[3000:].count("probe") / 3000 < 0.6


@pytest.mark.parametrize("seed", SEEDS)
def test_good_traffic_is_served_within_the_budget(seed: int) -> None:
    """The high scores are 0.5 % wrong, the low ones 40 %: it opens, and draws the line between them."""
    budget = new(seed)
    run = drive(budget, traffic(seed, 8000, 0.995))

    assert run.hits(2000) > 0.25 * 6000
    assert run.wrong_hits() / run.hits() < 0.02
    assert budget.threshold > 0.88


def test_served_answers_are_audited_at_the_rate() -> None:
    """The others are probed at a rate of their own."""
    budget = new()
    drive(budget, traffic(1, 3000, 1.0))
    run = drive(budget, traffic(2, 6000, 1.0))
    served, audits = run.hits(), run.rulings.count("audit")
    probes, refused = run.rulings.count("probe"), run.rulings.count("refuse")

    assert audits / (served + audits) == pytest.approx(0.05, abs=0.015)
    assert probes / (probes + refused) == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize("seed", SEEDS)
def test_serving_stops_after_a_break_of_quality(seed: int) -> None:
    """The same scores, suddenly 30 % wrong: after 500 requests there are no hits any more."""
    budget = new(seed)
    drive(budget, traffic(seed, 5000, 0.998))
    assert budget.threshold < math.inf
    run = drive(budget, traffic(seed + 100, 3000, 0.7))

    assert run.hits(500) == 0
    assert run.wrong_hits() <= 60


def test_wrong_audits_in_a_row_are_an_alarm() -> None:
    """Three at once, where 1,500 right ones would still keep the bound; the audit rate rises before."""
    past = [
        (0.9 + score / 10, True, True) for score in map(random.Random(3).uniform, [0] * WINDOW, [1] * WINDOW)
    ]
    budget = Budget.resumed(past, max_error_rate=0.02, audit_rate=0.05)
    assert budget.threshold < math.inf
    rates = []
    for _ in range(3):
        rates.append(budget.current_audit_rate)
        budget.record(0.95, False, True)

    assert rates == pytest.approx([0.05, 0.372, 0.694], abs=1e-3)
    assert (budget.alarms, budget.threshold, len(budget.evidence)) == (1, math.inf, 3)


def test_probes_are_no_audits() -> None:
    """Wrong answers that would not have been served raise no alarm."""
    budget = new()
    drive(budget, traffic(1, 3000, 1.0))
    for _ in range(50):
        budget.record(0.8, False, False)

    assert (budget.alarms, budget.current_audit_rate) == (0, 0.05)


def test_it_opens_again_after_a_break() -> None:
    """When answers are right again, from new evidence."""
    budget = new()
    for quality in (0.998, 0.6):
        drive(budget, traffic(3, 4000, quality))
    assert budget.threshold == math.inf
    run = drive(budget, traffic(4, 8000, 0.998))

    assert run.hits(5000) > 1000


def test_other_traffic_is_noticed_without_a_judgement() -> None:
    """Where hardly anything reaches the threshold any more, the evidence is dropped."""
    budget = new()
    drive(budget, traffic(5, 5000, 0.998))
    assert budget.threshold < math.inf
    threshold, alarms = budget.threshold, budget.alarms
    rulings = [budget.decide(threshold - 0.05) for _ in range(300)]

    assert (budget.alarms, budget.threshold, budget.evidence) == (alarms + 1, math.inf, ())
    assert "serve" not in rulings


def test_a_share_that_wavers_is_no_alarm() -> None:
    """From half of the traffic to a third."""
    budget = new()
    drive(budget, traffic(6, 5000, 1.0))
    drive(budget, traffic(7, 5000, 1.0, good=0.35))

    assert budget.alarms == 0
    assert budget.threshold < math.inf


def test_the_same_draws_give_the_same_rulings() -> None:
    """Nothing but `random` is left to chance."""
    one, two = (drive(new(11), traffic(1, 4000, 0.99)) for _ in range(2))

    assert one.rulings == two.rulings


@pytest.mark.parametrize("quality", [(0.998,), (0.998, 0.6), (0.9,)])
def test_a_resumed_budget_knows_what_it_knew(quality: tuple[float, ...]) -> None:
    """Evidence, suspicion and alarms; also that what was learned before an alarm counts no more."""
    budget, judgements = new(), []
    record = budget.record
    budget.record = lambda *judged: (judgements.append(judged), record(*judged))[1]  # type: ignore[method-assign]
    for number, right in enumerate(quality):
        drive(budget, traffic(number, 2500, right))
    again = Budget.resumed(judgements, max_error_rate=0.02, audit_rate=0.05)

    assert len(judgements) < WINDOW or quality == (0.9,) or len(quality) == 2
    assert again.evidence == budget.evidence
    assert again.current_audit_rate == budget.current_audit_rate
    assert again.alarms == budget.alarms
    assert (again.threshold < math.inf) == (budget.threshold < math.inf)


def test_a_resumed_budget_serves_at_once() -> None:
    """And keeps its promise."""
    past = [(score, right, False) for score, right in traffic(1, 1500, 0.997)]
    budget = Budget.resumed(past, max_error_rate=0.02, audit_rate=0.05, random=random.Random(1).random)
    run = drive(budget, traffic(2, 5000, 0.997))

    assert run.hits(0, 200) > 20
    assert run.wrong_hits() / run.hits() < 0.02


def test_a_full_window_is_counted_right() -> None:
    """Bins that are kept up to date say the same as bins that are counted anew."""
    budget = new()
    for score, right in traffic(9, 2 * WINDOW, 0.99):
        budget.decide(score)
        budget.record(score, right, False)
    kept = budget.threshold
    budget._rebin_at = budget._asked + 10**9
    bins = budget._bins
    fresh = type(bins)(budget._recent, budget._judged)
    fresh.edges = bins.edges
    fresh._judged, fresh._wrong = [0] * (len(bins.edges) + 1), [0] * (len(bins.edges) + 1)
    for score, right in budget.evidence:
        fresh.count(score, right)

    assert len(budget.evidence) == WINDOW
    assert (fresh._judged, fresh._wrong) == (bins._judged, bins._wrong)
    assert kept == bins.threshold(0.02)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-1, 1), st.booleans(), st.booleans()), max_size=200))
def test_any_judgements_are_borne(judgements: list[tuple[float, bool, bool]]) -> None:
    """Equal scores, few scores, all wrong, in any order."""
    budget = Budget.resumed(judgements, max_error_rate=0.02, audit_rate=0.05)
    for score, right, audited in judgements:
        assert budget.decide(score) in ("serve", "audit", "probe", "refuse")
        budget.record(score, right, audited)


@pytest.mark.parametrize(("wrong", "judged", "bound"), [(0, 100, 0.0391), (1, 100, 0.0583), (5, 500, 0.0241)])
def test_the_bound_is_that_of_the_tables(wrong: int, judged: int, bound: float) -> None:
    """98 % upper bounds of a Poisson mean: 3.91, 5.83, 12.03."""
    assert poisson_upper(wrong, judged) == pytest.approx(bound, abs=3e-4)


@pytest.mark.parametrize(
    ("wrong", "judged", "interval"),
    [(0, 0, (0, 1)), (0, 100, (0, 0.0362)), (2, 100, (0.0024, 0.0704)), (100, 100, (0.9638, 1))],
)
def test_the_interval_is_that_of_the_tables(wrong: int, judged: int, interval: tuple[float, float]) -> None:
    """Clopper-Pearson, 95 %."""
    assert clopper_pearson(wrong, judged) == pytest.approx(interval, abs=1e-4)
