"""A text in chunks: nothing is lost, words and characters stay whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibidem.adapter.streams import split_text

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
def test_chunks_add_up_to_the_text(text: str) -> None:
    """Whatever it is made of; no chunk is empty."""
    chunks = split_text(text)

    assert "".join(chunks) == text
    assert all(chunks)


@pytest.mark.parametrize("name", CHARACTERS)
def test_no_character_is_cut(name: str) -> None:
    """Wherever it stands in a long word."""
    character = CHARACTERS[name]
    for before in range(26):
        chunks = split_text("x" * before + character + "y" * 30)
        assert len(chunks) > 1
        assert any(character in chunk for chunk in chunks)


def test_words_stay_whole() -> None:
    """Some at a time, with the blanks after them."""
    chunks = split_text("Goods can be returned within 30 days, with the receipt. " * 20)

    assert all(chunk.endswith(" ") for chunk in chunks)
    assert max(map(len, chunks)) <= 25
    assert len(chunks) > 40
    assert split_text("") == []
    assert max(map(len, split_text("日本語" * 30))) == 24
