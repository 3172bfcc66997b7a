"""Unicode: invisible characters and normalization.

Language models read characters that no font draws, embeddings skip them, and people do not see them at all.
Each invisible character is one of three kinds:

* part of visible text: emoji sequences (joined, with skin tones, keycaps, variation selector 16), the flags
  of England, Scotland and Wales (UTS #51), and joiners between or after letters of scripts that are written
  with them (UAX #31, section 2.3, and UTS #39 name these contexts). They are compared like letters;
* ignored: a zero-width space, a byte order mark or a soft hyphen, if it stands alone;
* hidden: all else that is ignorable by default (`Default_Ignorable_Code_Point` of the Unicode Character
  Database), format and control characters, among them the tags, the bidirectional controls (UAX #9), and
  blanks that are letters to programs (Hangul fillers, the empty Braille pattern). They can carry any message.

Pure, and one pass over the text.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import groupby
from typing import Literal

# All that can be invisible: C0 and C1 controls but tab and line ends; soft hyphen; combining grapheme joiner;
# Arabic letter mark; Hangul, Khmer and Mongolian fillers, vowels and selectors; zero-width and
# bidirectional controls; the empty Braille pattern; variation selectors; byte order mark; interlinear
# annotation; controls of hieroglyphs, shorthand and music; tags and plane 14. Arabic signs of category Cf are
# drawn, so they are not here.
_IGNORABLE = (
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U00013430-\U0001343f"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# Pictures that emoji sequences are made of: the blocks that hold Extended_Pictographic (UTS #51).
_PICTURE = (
    "[\xa9\xae\u203c\u2049\u2122\u2139\u2194-\u21aa\u231a-\u23ff\u24c2\u25aa-\u25fe\u2600-\u27bf\u2934\u2935"
    "\u2b05-\u2b55\u3030\u303d\u3297\u3299\U0001f000-\U0001f1e5\U0001f200-\U0001f3fa\U0001f400-\U0001faff]"
)
_TONE = "[\U0001f3fb-\U0001f3ff]"
_ELEMENT = f"{_PICTURE}(?:\ufe0f|{_TONE})?"
_JOINED = f"{_ELEMENT}(?:\u200d{_ELEMENT})*"
_KEYCAP = "[0-9#*]\ufe0f?\u20e3"


def _tagged(region: str) -> str:
    return "".join(chr(0xE0000 + ord(letter)) for letter in region)


# Fonts know no other flags made of tags; other tag sequences can hold any text.
_FLAG = f"\U0001f3f4(?:{'|'.join(map(_tagged, ('gbeng', 'gbsct', 'gbwls')))})\U000e007f"
# Scripts whose letters are joined or parted by U+200C and U+200D: Arabic, Syriac, N'Ko, Mandaic, and the
# scripts of India and its neighbours, without the ignorable characters in their blocks.
_JOINING = (
    "[\u0620-\u06ff\u0700-\u07bf\u07ca-\u07ff\u0840-\u085f\u0860-\u0dff\u0f00-\u109f\u1780-\u17b3\u17b6-\u17ff"
    "\u1807\u1820-\u18af\u1900-\u194f\u1a20-\u1aaf\u1b00-\u1bff\ua840-\ua8ff\ua930-\ua9df\uaa00-\uaa5f"
    "\uaae0-\uaaff\uabc0-\uabff\ufb50-\ufdff\ufe70-\ufefc\U00010ac0-\U00010aff\U00011000-\U00011fff"
    "\U0001e900-\U0001e95f]"
)
_JOINER = f"(?<={_JOINING})[\u200c\u200d](?![{_IGNORABLE}])"
_IGNORED = f"(?<![{_IGNORABLE}])[\u00ad\u200b\ufeff](?![{_IGNORABLE}])"

_INVISIBLE = re.compile(f"[{_IGNORABLE}]")
_PARTS = re.compile(
    f"(?P<visible>{_FLAG}|{_KEYCAP}|{_JOINED}|{_JOINER})|(?P<ignored>{_IGNORED})|(?P<hidden>[{_IGNORABLE}])"
)


def has_hidden(text: str) -> bool:
    """Return whether the text holds invisible characters that may say something to a model."""
    if _INVISIBLE.search(text) is None:
        return False
    return any(match.lastgroup == "hidden" for match in _PARTS.finditer(text))


def strip_invisible(text: str) -> str:
    """Remove ignored and hidden characters."""
    return _replace(text, "")


def reveal_invisible(text: str, sign: str = "\N{REPLACEMENT CHARACTER}") -> str:
    """Replace each ignored or hidden character by a visible sign; what only joins or colours stays."""
    return _replace(text, sign)


def _replace(text: str, sign: str) -> str:
    if _INVISIBLE.search(text) is None:
        return text
    return _PARTS.sub(lambda match: match[0] if match.lastgroup == "visible" else sign, text)


# A run without letters, digits and blanks, in which combining marks may follow one another. Python puts marks
# in order by insertion: fast for the few that a letter has, and seconds for 30,000 of two kinds.
_MANY_MARKS = re.compile("[^\x00-\u02ff\\w\\s]{32,}")


def unicode_normalize(form: Literal["NFC", "NFKD"], text: str) -> str:
    """As `unicodedata.normalize`, in linear time."""
    if text.isascii():
        return text
    return unicodedata.normalize(form, _MANY_MARKS.sub(_order_marks, text))


def _order_marks(match: re.Match[str]) -> str:
    """Decompose the marks and sort them by combining class, stably: canonically equivalent."""
    decomposed = {c: unicodedata.normalize("NFD", c) for c in set(match[0])}
    marks = "".join(map(decomposed.__getitem__, match[0]))
    # Other characters have class 0, and keep their places.
    runs = groupby(marks, key=lambda c: unicodedata.combining(c) > 0)
    return "".join("".join(sorted(run, key=unicodedata.combining)) for _, run in runs)
