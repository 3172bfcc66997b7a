"""A text in pieces: nothing is lost, words and characters stay whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibidem.adapter.options import pieces_of

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
CHARACTERS = {
    "an accent": "e\u0301",
    "many accents": "a" + "\u0300\u0323" * 20,
    "a family": FAMILY,
    "a skin": "\U0001f44b\U0001f3fd",
    "a flag": "\U0001f1eb\U0001f1f7",
    "a flag of a region": "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "a Korean syllable": "\u1112\u1161\u11ab",
    "a conjunct": "\u0915\u094d\u0937\u093f",
    "an end of line": "\r\n",
}


@given(st.text())
def test_the_pieces_are_the_text(text: str) -> None:
    """Whatever it is made of; no piece is empty."""
    pieces = pieces_of(text)

    assert "".join(pieces) == text
    assert all(pieces)


@pytest.mark.parametrize("name", CHARACTERS)
def test_no_character_is_cut(name: str) -> None:
    """Wherever it stands in a long word."""
    character = CHARACTERS[name]
    for before in range(26):
        pieces = pieces_of("x" * before + character + "y" * 30)
        assert len(pieces) > 1
        assert any(character in piece for piece in pieces)


def test_words_stay_whole() -> None:
    """Some at a time, with the blanks after them."""
    pieces = pieces_of("Goods can be returned within 30 days, with the receipt. " * 20)

    assert all(piece.endswith(" ") for piece in pieces)
    assert max(map(len, pieces)) <= 25
    assert len(pieces) > 40
    assert pieces_of("") == []
    assert max(map(len, pieces_of("日本語" * 30))) == 24
