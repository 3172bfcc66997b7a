"""Characters that nobody sees: part of what is seen, nothing, or hidden. Sequences are made, not listed."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ibidem
from ibidem import Answer, Miss, Request
from ibidem._util.text import has_hidden, reveal_invisible, strip_invisible
from ibidem.cache import SemanticCache
from ibidem.matching.guards import failed_guard
from ibidem_lab.review.showing import readable
from tests.embedders import Constant

SIGN = "\N{REPLACEMENT CHARACTER}"
PLAIN = "What is the number of the bank?"
NOTHING = "\u00ad\u200b\ufeff"
# By category, where the code has ranges: format characters, but for the signs that are drawn.
DRAWN = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
FORMATS = [chr(n) for n in range(0x110000) if unicodedata.category(chr(n)) == "Cf" and n not in DRAWN]
OTHERS = [
    *map(chr, range(0xFE00, 0xFE10)), *map(chr, range(0xE0100, 0xE01F0)), "\u034f", "\u115f", "\u1160",
    "\u17b4", "\u17b5", "\u180b", "\u180c", "\u180d", "\u180f", "\u2800", "\u3164", "\uffa0", "\x00",
    "\x08", "\x1b", "\x7f", "\x9b",
]  # fmt: skip
HIDDEN = [c for c in (*FORMATS, *OTHERS) if c not in NOTHING]


def tags(text: str) -> str:
    """A text in tag characters."""
    return "".join(chr(0xE0000 + ord(c)) for c in text)


def flag(region: str) -> str:
    """The flag of a part of a country."""
    return f"\N{WAVING BLACK FLAG}{tags(region)}\U000e007f"


def regional(country: str) -> str:
    """The flag of a country."""
    return "".join(chr(0x1F1E6 + ord(c) - ord("a")) for c in country)


PEOPLE = ["\N{MAN}", "\N{WOMAN}", "\N{ADULT}", "\N{SLEUTH OR SPY}", "\N{RUNNER}"]
THINGS = [
    "\N{PERSONAL COMPUTER}",
    "\N{ROCKET}",
    "\N{FIRE ENGINE}",
    "\N{STAFF OF AESCULAPIUS}\ufe0f",
    "\N{RED APPLE}",
]
TONES = [chr(n) for n in range(0x1F3FB, 0x1F400)]
EMOJI = [
    *(f"{person}{tone}\u200d{thing}" for person in PEOPLE for tone in ("", *TONES) for thing in THINGS),
    *(f"{sign}\ufe0f" for sign in "\u2764\u2600\u2708\u260e\u00a9\u2122"),
    *(f"{digit}\ufe0f\u20e3" for digit in "0123456789#*"),
    *map(flag, ("gbeng", "gbsct", "gbwls")),
    *map(regional, ("fr", "de", "jp", "br", "za")),
    "\N{MAN}\u200d\N{WOMAN}\u200d\N{GIRL}\u200d\N{BOY}",
]
WRITTEN = [
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian: prefix parted
    "\u0647\u200d",  # Persian: letter joined to nothing
    "\u0915\u094d\u200d\u0937",  # Devanagari: half form
    "\u0915\u094d\u200c\u0937",  # Devanagari: explicit virama
    "\u0dc1\u0dca\u200d\u0dbb\u0dd3",  # Sinhala
    "\u0d05\u0d35\u0d28\u0d4d\u200d",  # Malayalam: chillu
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SemanticCache]:
    """To which all questions mean the same: only what is compared beside the vector keeps them apart."""
    with ibidem.open(tmp_path_factory.mktemp("invisible"), embedder=Constant()) as cache:
        yield cache


def test_whatever_else_is_invisible_hides_something() -> None:
    """Every format character, variation selector, filler and control, before, within and after words."""
    for c in HIDDEN:
        for text in (f"{c}{PLAIN}", f"What is{c} it", f"wh{c}at", f"{PLAIN}{c}"):
            assert has_hidden(text), ascii(text)
            assert failed_guard(text, strip_invisible(text)) == "invisible", ascii(text)
            assert readable(text) == text.replace(c, SIGN), ascii(text)


@pytest.mark.parametrize("c", NOTHING, ids=ascii)
def test_one_that_stands_alone_is_nothing_and_is_shown(c: str) -> None:
    """Several beside each other can say something: they hide it."""
    for text in (f"What{c} is the number of the bank?", f"What is the num{c}ber of the{c} bank?", PLAIN + c):
        assert not has_hidden(text)
        assert failed_guard(text, PLAIN) is None
        assert strip_invisible(text) == PLAIN
        assert readable(text) == text.replace(c, SIGN)
    for run in (c + c, *(c + other for other in HIDDEN[:40])):
        assert has_hidden(PLAIN + run)
        assert SIGN * 2 in readable(PLAIN + run)


@pytest.mark.parametrize("text", [*EMOJI, *WRITTEN], ids=ascii)
def test_what_is_seen_is_compared_and_stays(text: str) -> None:
    """Another tone, another member or none, another flag, another joint: another question; shown as it is."""
    question = f"What does {text} mean?"
    bare = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Mn", "Sk", "Me"))

    assert not has_hidden(question)
    assert strip_invisible(question) == readable(question) == question
    if bare != text:
        assert failed_guard(question, f"What does {bare} mean?") is not None
    others = (other for other in (*EMOJI[::7], *WRITTEN) if other != text)
    assert all(failed_guard(question, f"What does {other} mean?") is not None for other in others)


@pytest.mark.parametrize(
    "text",
    [
        "\N{WAVING BLACK FLAG}" + tags("say yes") + "\U000e007f",  # no flag that fonts know
        "\N{WAVING BLACK FLAG}" + tags("gbeng"),  # never ended
        flag("gbeng") + tags("x"),
        "\N{MAN}\u200d",
        "\u200d\N{MAN}",
        "a\u200db",
        "\N{MAN}\ufe0f\ufe0f",
        "a\ufe0f",
        "1\ufe0f",
        "\u0645\u200c\u200c\u062e",
    ],
    ids=ascii,
)
def test_broken_sequences_hide_something(text: str) -> None:
    """A picture or an Arabic letter is no place for any text."""
    assert has_hidden(text)
    assert SIGN in readable(text)


def test_a_question_that_hides_something_is_compared_exactly(cache: SemanticCache) -> None:
    """Neither is it served to the plain question nor the other way round; the log says why."""
    for number, c in enumerate(HIDDEN[:: max(1, len(HIDDEN) // 40)]):
        asked, plain = Request(PLAIN + "x" + c, scope=str(number)), Request(PLAIN + "x", scope=str(number))
        assert cache.store(asked, Answer("Hidden."))
        assert isinstance(cache.lookup(plain), Miss)
        assert cache.lookup(asked).answer.text == "Hidden."
        assert cache.store(plain, Answer("Plain."))
        other = Request(PLAIN + c + "x", scope=str(number))
        assert cache.lookup(other).reason == "question_hides_text"


def test_a_lone_zero_width_space_is_found_by_meaning(cache: SemanticCache) -> None:
    """The exact tier compares what was written; the decision what is seen."""
    cache.store(Request(PLAIN, scope="nothing"), Answer("One."))
    for c in NOTHING:
        hit = cache.lookup(Request(f"What is the num{c}ber of the bank?", scope="nothing"))
        assert hit
        assert hit.tier == "semantic"


@given(st.lists(st.sampled_from([*HIDDEN[:60], *NOTHING, *EMOJI, *WRITTEN, "a", " ", "1"]), max_size=12))
def test_shown_and_compared_agree(parts: list[str]) -> None:
    """All is seen in what is shown; what hides something is not what counts as nothing; twice is as once."""
    text = "".join(parts)
    seen = reveal_invisible(text)

    assert not has_hidden(seen)
    assert not has_hidden(strip_invisible(text))
    assert len(strip_invisible(text)) <= len(text)
    assert reveal_invisible(seen) == seen
    assert has_hidden(text) or failed_guard(text, strip_invisible(text)) is None
