"""How long an answer may be repeated."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibidem import Answer, Request
from ibidem.lifecycle.rules import CLOCK_SKEW, Lifetime
from ibidem.types import Entry

seconds = st.floats(1.0, 1e8)


def entry(*, created: float = 0.0, used: float = 0.0, ttl: float | None = None, question: str = "q") -> Entry:
    """An entry of these times."""
    request = Request(question)
    return Entry(
        request.key,
        "",
        request.scope_digest,
        question,
        request.documents_digest,
        True,
        Answer("a"),
        created=created,
        used=used,
        ttl=ttl,
    )


@given(own=seconds, cache=seconds, age=st.floats(0.0, 2e8))
def test_the_shortest_life_counts(own: float, cache: float, age: float) -> None:
    """Of what the storing and the reading cache say."""
    state = Lifetime(ttl=cache).state(entry(ttl=own), age)

    assert (state == "alive") == (age < min(own, cache))


@given(age=st.floats(0.0, 400.0))
def test_stale_is_between_life_and_grace(age: float) -> None:
    """Never both, never neither."""
    expected = "alive" if age < 100 else "stale" if age < 150 else "expired"

    assert Lifetime(ttl=100, stale_while_revalidate=50).state(entry(), age) == expected


def test_jitter_spreads_the_ends_of_lives() -> None:
    """Evenly over the last tenth, each entry always at the same time, none later than its time."""
    life = Lifetime(ttl=1000, jitter=0.1)
    entries = [entry(question=f"question {n}") for n in range(400)]
    alive = [sum(life.state(one, age) == "alive" for one in entries) for age in (899, 925, 950, 975, 1000)]

    assert alive[0] == 400
    assert alive[-1] == 0
    assert alive[1:-1] == pytest.approx([300, 200, 100], abs=50)


@given(used=st.floats(0.0, 1e6), age=st.floats(0.0, 2e6))
def test_only_a_sliding_life_begins_anew(used: float, age: float) -> None:
    """From the last hit; else from the storing."""
    one = entry(used=used)

    assert (Lifetime(ttl=100).state(one, age) == "alive") == (age < 100)
    assert (Lifetime(ttl=100, sliding=True).state(one, age) == "alive") == (age < used + 100)


def test_a_small_difference_of_clocks_is_tolerated_a_large_one_not() -> None:
    """Two hosts never agree to the second; a clock that was set back by a day is another matter."""
    life = Lifetime(ttl=100)

    assert life.state(entry(created=1000.0 + CLOCK_SKEW / 2), 1000.0) == "alive"
    assert life.state(entry(created=1000.0 + CLOCK_SKEW * 2), 1000.0) == "expired"


def test_what_never_expires_has_no_end() -> None:
    """In the database NULL; `stale_while_revalidate` is part of the time until an entry is deleted."""
    assert Lifetime(ttl=math.inf).expires(math.inf, 5.0) is None
    assert Lifetime(ttl=10, stale_while_revalidate=5).expires(10, 100.0) == 115.0
