"""Pairs, their division, the loss, the figures; and a tuning from pairs to a model directory."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibidem import active_model
from ibidem._util.statistics import auc
from ibidem.embedding import resolve_embedder
from ibidem.errors import ConfigurationError, InvalidInput
from ibidem_lab.fitting.labels import Label
from ibidem_lab.tuning.data import distinct, divide
from ibidem_lab.tuning.metrics import cosines, labels_of, measure, resampled
from tests.shop import products, stream

PAIRS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30), st.booleans()), min_size=1, max_size=120
).map(lambda rows: distinct(Label(f"q{a}", f"q{b}", same) for a, b, same in rows))


def shop_pairs(names: list[str], count: int, seed: int = 0) -> list[Label]:
    """Pairs about these products, half of them of one meaning; the others are near each other."""
    rows, draw = stream(names, seed), random.Random(seed)
    found = []
    for number in range(count):
        one = draw.choice(rows)
        thing, _, name = str(one.meaning).partition(" of the ")
        alike = [row for row in rows if row.meaning == one.meaning and row.text != one.text]
        near = [
            row
            for row in rows
            if row.meaning != one.meaning and (str(row.meaning).startswith(thing) or name in row.text)
        ]
        found.append(Label(one.text, draw.choice(alike if number % 2 else near).text, bool(number % 2)))
    return found


# --- pairs


def test_a_pair_counts_once_whichever_comes_first() -> None:
    given_pairs = [
        Label("b ", "a", True),
        Label("a", "b", False),
        Label("a", " a", True),
    ]

    assert distinct(given_pairs) == [Label("a", "b", False)]


@given(PAIRS, st.integers(0, 3))
def test_no_question_is_on_two_sides(pairs: list[Label], seed: int) -> None:
    division = divide(pairs, (0.2, 0.3), seed)
    sides = [
        {text for pair in side for text in pair[:2]}
        for side in (division.train, division.validation, division.test)
    ]

    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    kept = [*division.train, *division.validation, *division.test]
    assert len(kept) + division.dropped == len(pairs)
    assert set(kept) <= set(pairs)
    assert divide(pairs, (0.2, 0.3), seed) == division


def test_small_groups_stay_whole_and_one_that_holds_all_is_cut() -> None:
    apart = [Label(f"a{n}", f"b{n}", bool(n % 2)) for n in range(300)]
    chain = [Label(f"c{n}", f"c{n + 1}", bool(n % 2)) for n in range(300)]

    whole, cut = divide(apart, (0.1, 0.2), 0), divide(chain, (0.1, 0.2), 0)

    assert whole.dropped == 0
    assert 40 <= len(whole.test) <= 80
    assert cut.test
    assert 0 < cut.dropped < 100


# --- figures


def test_auc_is_that_of_scikit_learn_with_ties() -> None:
    from sklearn.metrics import roc_auc_score

    draw = np.random.default_rng(0)
    scores, same = draw.integers(0, 12, 400).astype(float), draw.random(400) < 0.3

    assert auc(scores, same) == pytest.approx(roc_auc_score(same, scores))


def test_auc_of_one_kind_is_not_known() -> None:
    assert math.isnan(auc(np.array([0.1, 0.2]), np.array([True, True])))


def test_figures_of_a_perfect_and_of_a_blind_score() -> None:
    pairs = [Label(f"a{n}", f"b{n}", n < 50) for n in range(100)]
    perfect, blind = np.where(labels_of(pairs), 0.95, 0.85), np.full(100, 0.9)

    best, worst = measure(pairs, perfect), measure(pairs, blind)

    assert (best.auc.value, best.auc.low, best.auc.high) == (1.0, 1.0, 1.0)
    assert best.hits[0.01].value == 0.5
    assert best.p_chr == pytest.approx(0.75)
    assert (worst.auc.value, worst.hits[0.05].value, worst.p_chr) == (0.5, 0.0, 0.5)
    assert (best.grey, best.grey_auc) == (100, 1.0)


def test_the_interval_is_wider_where_pairs_hang_together() -> None:
    """100 pairs around five questions tell less than 100 of different ones."""
    draw = np.random.default_rng(1)
    lone = [Label(f"a{n}", f"b{n}", bool(n % 2)) for n in range(100)]
    hubs = [Label(f"a{n % 5}", f"b{n}", bool(n % 2)) for n in range(100)]
    values = np.array([n % 5 for n in range(100)]) + draw.normal(0, 0.1, 100)

    def width(pairs: list[Label]) -> float:
        low, high = resampled(pairs, lambda at: float(values[at].mean()))
        return high - low

    assert width(hubs) > 2 * width(lone)


# --- loss


def test_the_loss_is_binary_cross_entropy() -> None:
    import torch

    from ibidem_lab.tuning.loss import SharedAnswerLoss

    cosine, same = torch.tensor([0.9, 0.7]), torch.tensor([1.0, 0.0])
    chance = [1 / (1 + math.exp(-(value / 0.1 - 8.0))) for value in (0.9, 0.7)]
    bce = SharedAnswerLoss(torch.nn.Identity(), 0.1, 8.0)  # type: ignore[arg-type]

    expected = -(math.log(chance[0]) + math.log(1 - chance[1])) / 2
    assert bce.of(cosine, same).item() == pytest.approx(expected, rel=1e-4)


def test_lambda_and_c_are_learned_unless_given() -> None:
    import torch

    from ibidem_lab.tuning.loss import SharedAnswerLoss

    learned = SharedAnswerLoss(torch.nn.Identity())  # type: ignore[arg-type]
    fixed = SharedAnswerLoss(torch.nn.Identity(), 0.02, 40.0)  # type: ignore[arg-type]
    learned.of(torch.tensor([0.5]), torch.tensor([1.0])).backward()

    assert learned.offset.grad is not None
    assert learned.log_temperature.grad is not None
    assert not any(number.requires_grad for number in fixed.parameters())
    assert fixed.temperature == pytest.approx(0.02)


# --- from pairs to a model directory


def test_too_few_labels_are_refused_with_what_to_do(tmp_path: Path) -> None:
    from ibidem_lab.tuning.tune import tune

    with pytest.raises(InvalidInput, match="ibidem learn threshold"):
        tune(shop_pairs(products()[:5], 100), tmp_path / "model")


def test_a_directory_in_use_is_left_alone(tmp_path: Path) -> None:
    from ibidem_lab.tuning.tune import tune

    (tmp_path / "mine").write_text("kept")
    with pytest.raises(ConfigurationError, match="not empty"):
        tune(shop_pairs(products()[:5], 100), tmp_path)
    assert (tmp_path / "mine").read_text() == "kept"


@pytest.mark.thorough  # tests/e2e/test_learning_loop.py tunes, too
def test_tuning_brings_what_it_says(tmp_path: Path) -> None:
    """The figures in the directory are those of the exported model, and hold for products never seen."""
    import torch

    from ibidem_lab.tuning.training import Recipe
    from ibidem_lab.tuning.tune import tune

    torch.set_num_threads(1)  # beside other tests, two threads wait for each other
    names = products()
    steps: list[int] = []
    report = tune(
        shop_pairs(names[:35], 800),
        tmp_path / "model",
        recipe=Recipe(epochs=1, device="cpu"),
        progress=lambda step, steps_in_all, auc: steps.append(step),
    )

    fresh = shop_pairs(names[35:], 300, seed=1)
    tuned, plain = resolve_embedder(str(report.directory)), resolve_embedder()
    before, after = (measure(fresh, cosines(model.embed, fresh)) for model in (plain, tuned))
    assert after.auc.value > before.auc.value + 0.01
    assert report.gain[0] > 0.01
    assert steps == sorted(steps)
    held = json.loads((report.directory / active_model.METRICS_FILE).read_text())
    assert held["after"]["auc"] == pytest.approx(report.after.auc.value)
    assert held["data"]["train"] + held["data"]["validation"] + held["data"]["test"] > 500
    assert tuned.fingerprint.startswith("tuned-all-MiniLM-L6-v2/")
    assert tuned.fingerprint != plain.fingerprint
    assert (report.directory / active_model.CARD_FILE).stat().st_size > 500
    assert (report.directory / active_model.THRESHOLDS_FILE).is_file() == held["threshold"]["fitted"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
