"""Split a stored text into chunks, to repeat it as a stream."""

from __future__ import annotations

import re
import unicodedata

# A few words with the blanks after them; of a longer word, or a script without blanks, as many characters.
_FEW_WORDS = re.compile(r"(?s).{1,24}(?:\s+|$)|.{1,24}")
_MAX_CHUNKS = 1_000  # of a text; a longer one has larger chunks, as some frameworks repeat all before in each
_JOINER = "\u200d"
_VIRAMA = 9  # the combining class of signs that join two letters of an Indic script


def split_text(text: str) -> list[str]:
    """Split the text into chunks that add up to it, never within what a reader takes for one character."""
    chunks: list[str] = []
    start = 0
    while (found := _FEW_WORDS.match(text, start)) is not None:
        end = found.end()
        while end < len(text) and _is_one_character(text[end - 1], text[end]):
            end += 1
        chunks.append(text[start:end])
        start = end
    at_once = -(-len(chunks) // _MAX_CHUNKS)
    if at_once < 2:
        return chunks
    return ["".join(chunks[at : at + at_once]) for at in range(0, len(chunks), at_once)]


def _is_one_character(before: str, after: str) -> bool:
    """Whether two code points belong together: accents, emoji of several parts, flags, syllables."""
    if after < "\u0300":
        return before == "\r" and after == "\n"
    return (
        unicodedata.category(after) in ("Mn", "Mc", "Me")
        or _JOINER in (before, after)
        or unicodedata.combining(before) == _VIRAMA
        or "\u1160" <= after <= "\u11ff"  # the vowel or the end of a Korean syllable
        or "\U0001f3fb" <= after <= "\U0001f3ff"  # the colour of a skin
        or "\U000e0020" <= after <= "\U000e007f"  # a region's flag
        or (_is_flag_letter(before) and _is_flag_letter(after))
    )


def _is_flag_letter(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
