"""What the adapters of all frameworks do alike."""

from __future__ import annotations

import difflib
import inspect
import re
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ibidem
from ibidem.errors import InvalidInput

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache


def open_or_use(cache: SemanticCache | None, options: Mapping[str, Any], who: str) -> SemanticCache:
    """The open cache, or a new one with these options of `ibidem.open`; `who` was given them.

    Raises:
        InvalidInput: There are both, or an option does not exist.
        IbidemError: The cache cannot be opened.
    """
    if cache is not None:
        if options:
            raise InvalidInput(f"pass an open cache or options to open one, not both (got {sorted(options)})")
        return cache
    known = inspect.signature(ibidem.open).parameters
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise InvalidInput(f"{who} has no option {name!r}; {hint}")
    return ibidem.open(**options)


# Some words with the blanks after them; of a longer word, or a script without blanks, as many characters.
_SOME_WORDS = re.compile(r"(?s).{1,24}(?:\s+|$)|.{1,24}")
_MOST = 1_000  # pieces of a text; a longer one comes in larger pieces, as some chunks repeat all before them
_JOINER = "\u200d"
_VIRAMA = 9  # the combining class of signs that join two letters of an Indic script


def pieces_of(text: str) -> list[str]:
    """The text in pieces that add up to it; none is cut within what a reader takes for one character."""
    pieces: list[str] = []
    start = 0
    while (found := _SOME_WORDS.match(text, start)) is not None:
        end = found.end()
        while end < len(text) and _is_one_character(text[end - 1], text[end]):
            end += 1
        pieces.append(text[start:end])
        start = end
    at_once = -(-len(pieces) // _MOST)
    if at_once < 2:
        return pieces
    return ["".join(pieces[at : at + at_once]) for at in range(0, len(pieces), at_once)]


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
