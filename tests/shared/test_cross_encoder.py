"""A cross-encoder of the user's: nothing is served before it is known what its scores mean."""

from __future__ import annotations

import logging
import pickle
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from ibidem import Answer, ConfigurationError, Request
from ibidem.errors import InvalidInput
from ibidem.matching.cross_encoder import CrossEncoderScorer, labelled_pairs, learn_scale
from tests.helpers import answer, eventually, question, reworded

KNOWN = {frozenset(pair): bool(same) for pair, same in zip(*labelled_pairs(), strict=True)}


@dataclass
class Model:
    """Sure of the labelled pairs with some noise, and of what else shares half of its words.

    `scale` and `offset` are those of its scores, which nobody is told.
    """

    scale: float = 1.0
    offset: float = 0.0
    noise: float = 0.5
    asked: list[int] = field(default_factory=list)

    def predict(self, pairs: list[tuple[str, str]]) -> Any:
        self.asked.append(len(pairs))
        return np.array([self._score(*pair) for pair in pairs]) * self.scale + self.offset

    def _score(self, one: str, other: str) -> float:
        draw = np.random.default_rng(len(one) * 997 + len(other)).normal(0.0, self.noise)
        words, others = set(one.split()), set(other.split())
        same = KNOWN.get(frozenset((one, other)), 2 * len(words & others) >= len(words | others))
        return (3.0 if same else -3.0) + float(draw)


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.05, 0.5), (40.0, -300.0)])
def test_what_it_serves_does_not_hang_on_its_scale(scale: float, offset: float) -> None:
    """Logits, numbers from 0 to 1, anything: the probabilities are the same."""
    found, usual = learn_scale(Model(scale, offset, 2.0).predict), learn_scale(Model(noise=2.0).predict)
    scores = np.linspace(-4, 4, 9)

    told = found.probabilities((scores * scale + offset).tolist())
    assert told == pytest.approx(usual.probabilities(scores.tolist()), abs=1e-3)
    assert found.thresholds.at(0.02) == pytest.approx(usual.thresholds.at(0.02), abs=1e-3)


def test_its_thresholds_keep_the_share_on_the_pairs() -> None:
    """Of those it would serve, about as many are wrong as is allowed, by its own probabilities."""
    model = Model(noise=2.5)
    scale, (pairs, same) = learn_scale(model.predict), labelled_pairs()
    told = np.array(scale.probabilities(model.predict(pairs).tolist()))
    for share in (0.005, 0.02, 0.05):
        served = told >= scale.thresholds.at(share)
        assert served.sum() > 20
        assert np.mean(1 - told[served]) <= 1.05 * share
        assert np.sum(~same[served]) <= 2 + 2 * share * served.sum()


def test_it_serves_once_its_scale_is_known(open_cache: Any) -> None:
    """And nothing before, however sure it is."""
    model, go_on = Model(), threading.Event()
    predict = model.predict

    def waits(pairs: list[tuple[str, str]]) -> Any:
        assert go_on.wait(30)
        return predict(pairs)

    model.predict = waits  # type: ignore[method-assign]
    cache = open_cache(verifier=model, min_probability=None)
    cache.store(Request(question(1)), Answer(answer(1)))
    assert cache.lookup(Request(reworded(1))).reason == "below_threshold"
    go_on.set()
    eventually(lambda: bool(cache.lookup(Request(reworded(1)))))
    cache._verifier.begin().join(30)
    hit = cache.lookup(Request(reworded(1)))

    assert 0.9 < hit.score <= 1.0
    assert 0.0 < cache.policy.threshold <= hit.score
    assert max(model.asked) <= 32


@pytest.mark.parametrize(
    ("predict", "says"),
    [
        (lambda pairs: [len(a) % 7 for a, _ in pairs], "AUC of 0.[45]"),
        (lambda pairs: np.zeros((len(pairs), 3)), "one number for each"),
        (lambda pairs: [float("nan")] * len(pairs), "one number for each"),
        (lambda pairs: [1.0], "one number for each"),
    ],
    ids=["knows nothing", "classes", "not a number", "too few"],
)
def test_one_that_cannot_tell_is_refused_and_serves_nothing(
    open_cache: Any, predict: Any, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InvalidInput, match=says):
        learn_scale(predict)
    model = Model()
    model.predict = predict  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, "ibidem"):
        cache = open_cache(verifier=model, min_probability=None)
        cache._verifier.begin().join(30)
    cache.store(Request(question(1)), Answer(answer(1)))

    assert "cannot use this cross-encoder" in caplog.text
    assert cache.lookup(Request(reworded(1))).reason == "below_threshold"
    assert cache.lookup(Request(question(1)))
    assert not cache._verifier.begin().is_alive()  # not tried again and again


def test_at_most_two_candidates_are_read(open_cache: Any) -> None:
    model = Model()
    cache = open_cache(verifier=model, min_probability=None)
    cache._verifier.begin().join(30)
    for text in ("goods", "the goods", "my goods", "these goods"):
        cache.store(Request(f"until when can I return {text}"), Answer("30 days."))
    model.asked.clear()
    cache.lookup(Request("until when may somebody bring goods"))

    assert len(model.asked) <= 2


def test_it_survives_pickling() -> None:
    """With what it has learned; what it is to learn is learned there."""
    scorer = CrossEncoderScorer(Model())
    scorer.begin().join(30)
    copy = pickle.loads(pickle.dumps(scorer))

    assert copy.name == scorer.name
    assert copy.thresholds == scorer.thresholds
    assert copy.score("a b", "a b", 0.9) == scorer.score("a b", "a b", 0.9) > 0.5


def test_a_cosine_is_no_least_score_for_it(open_cache: Any) -> None:
    with pytest.raises(ConfigurationError, match="min_probability"):
        open_cache(verifier=Model(), min_similarity=0.8)
