"""Wording that changes the answer, in pairs made from lists that the code does not hold."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

import ibidem
from ibidem import Answer, Request
from ibidem._util.words_en import IRREGULAR, SMALL_WORDS
from ibidem.cache import SemanticCache
from ibidem.errors import EmbedderUnavailable
from ibidem.matching.guards import failed_guard
from ibidem.matching.opposites_en import EXCLUSIVE, OPPOSITES
from tests import wording_pairs
from tests.wording_pairs import KINDS, pairs, reworded

LEAST_REFUSED = 0.98  # of each kind, by the guards alone
SAMPLE = 12  # pairs of each kind that a real cache is asked


@pytest.mark.parametrize("kind", KINDS)
def test_what_changes_the_answer_is_refused(kind: str) -> None:
    """By the guards alone, whatever the embedding; both ways."""
    found = [(one, other) for one, other in pairs(kind) if one != other]
    served = [pair for pair in found if failed_guard(*pair) is None]

    assert len(found) >= 70
    assert len(served) <= (1 - LEAST_REFUSED) * len(found), served[:10]
    assert all(failed_guard(one, other) == failed_guard(other, one) for one, other in found)


def test_there_are_thousands() -> None:
    """All kinds together."""
    assert sum(len(pairs(kind)) for kind in KINDS) > 3_500


def test_the_same_in_other_words_is_not_refused() -> None:
    """Active and passive with the same roles, lists, phrases that moved, ids and amounts spelt otherwise."""
    found = list(reworded(random.Random(20)))

    assert len(found) > 1_000
    assert [(failed_guard(*pair), pair) for pair in found if failed_guard(*pair)] == []


def test_the_code_knows_none_of_these_words() -> None:
    """No rule of these kinds is a list of what is tested: verbs, names, stems."""
    known = {word for sides in (*OPPOSITES, *EXCLUSIVE) for side in sides for word in side.split()}
    known |= IRREGULAR.keys() | SMALL_WORDS
    stems = [stem for stems in wording_pairs.NEGATED.values() for stem in stems.split()]
    stems += [stem for stems in wording_pairs.TURNED.values() for stem in stems.split()]

    assert len(wording_pairs.VERBS) > 180
    for words in (wording_pairs.VERBS, map(str.casefold, wording_pairs.NAMES), wording_pairs.BEINGS, stems):
        words = list(words)
        assert len(known.intersection(words)) <= len(words) // 8, known.intersection(words)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SemanticCache]:
    """With the default model and default settings."""
    try:
        with ibidem.open(tmp_path_factory.mktemp("wording")) as cache:
            yield cache
    except EmbedderUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_cache_does_not_serve_it(cache: SemanticCache, kind: str) -> None:
    """One question of a pair is stored, the other asked."""
    for number, (stored, asked) in enumerate(random.Random(kind).sample(pairs(kind), SAMPLE)):
        scope = f"{kind} {number}"
        cache.store(Request(stored, scope=scope), Answer(f"That of: {stored}"))

        assert cache.lookup(Request(stored, scope=scope))
        assert not cache.lookup(Request(asked, scope=scope)), (stored, asked)
