"""Personal details that words announce, in cases made here and in labelled texts."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ibidem_lab.personal import by_patterns, description, personal_details
from tests.benchmarks.clean.labelled import judged_texts

choose = st.sampled_from
FIRST = choose(["Anna", "Jürgen", "Maria", "Wei", "Aisha", "Björn", "Noor", "Tom"])
LAST = choose(["Smith", "O'Brien", "van der Berg", "García", "Al-Sayed", "Nakamura", "da Silva"])
ANNOUNCED = choose(
    ["My name is {}.", "my name is {} and I need help", "Dear {},\nhow are you?", "Hi {}, thanks!",
     "Name: {}", "It works now.\nBest regards,\n{}", "It was for Mrs. {}.", "Please call Dr. {} back.",
     "This is {} speaking."]
)  # fmt: skip


@given(FIRST, LAST, ANNOUNCED)
def test_announced_names_go(first: str, last: str, announced: str) -> None:
    """All of the name, nothing of the text around it; a second time changes nothing more."""
    shown = by_patterns(announced.format(f"{first} {last}"))

    assert shown == announced.format("[name]")
    assert by_patterns(shown) == shown


@given(st.ip_addresses(v=4), choose(["from {}", "{}: GET /", "blocked {}, twice", "({})"]))
def test_addresses_of_somebody_go(address: ipaddress.IPv4Address, said: str) -> None:
    """Those of private networks, of this host and of groups belong to nobody, and versions are none."""
    text = said.format(address)
    stays = by_patterns(text) == text
    local = address.is_private and not str(address).startswith(("192.0.", "198.", "203."))

    assert stays or not local
    assert (
        not stays or not address.is_global or address.is_multicast or str(address) in ("8.8.8.8", "1.1.1.1")
    )
    assert by_patterns(f"version {address}") == f"version {address}"


DAYS = st.dates().map(lambda day: f"{day:%d.%m.%Y}")


@given(
    DAYS,
    choose(["I was born on {}.", "Date of birth: {}", "DOB {}", "my birthday is {}"]),
    choose(["Order of {}", "valid until {}."]),
)
def test_dates_of_birth_go(day: str, born: str, other: str) -> None:
    """Other dates stay."""
    assert by_patterns(born.format(day)) == born.format("[date of birth]")
    assert by_patterns(other.format(day)) == other.format(day)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec="utf-8") | choose("0123456789.:-@ \nDear Mr Aa[name]"), max_size=120))
def test_any_text_is_bearable(text: str) -> None:
    """It returns a text, without what a text of one line would make of a placeholder."""
    shown = by_patterns(text)
    assert isinstance(shown, str)
    assert shown.count("\n") <= text.count("\n")


@pytest.mark.parametrize(
    ("name", "recall", "precision"), [("personal.txt", 0.97, 0.97), ("personal_held_out.txt", 0.55, 0.9)]
)
def test_labelled_texts(name: str, recall: float, precision: float) -> None:
    """About half of them near misses; `python -m tests.benchmarks.clean` has the figures."""
    found = judged_texts(name, by_patterns)

    assert found.recall >= recall, found.mistakes
    assert found.precision >= precision, found.mistakes


def test_presidio_finds_names_that_nothing_announces() -> None:
    """Where it is installed with a model for English; placeholders stay as they are."""
    pytest.importorskip("presidio_analyzer")
    if "presidio" not in description():
        pytest.skip("Presidio has no spaCy model here")
    shown = personal_details("We met John Miller in Boston; write to john@example.org.")

    assert shown == "We met [name] in Boston; write to [email]."
    assert re.fullmatch(r"patterns, presidio-analyzer [\d.]+, en_core_web_\w+ [\d.]+", description())
