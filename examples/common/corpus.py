"""The corpus that every Python carries: its language reference, as `help()` shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pydoc_data.topics import topics

LONGEST = 900  # characters of a passage; about what the embedding model reads (256 tokens)


@dataclass(frozen=True, slots=True)
class Passage:
    """Some neighbouring paragraphs of a topic; `id` is `topic#number`."""

    id: str
    topic: str
    text: str


def language_reference() -> list[Passage]:
    """All passages. A paragraph that several topics hold is taken once, from the shortest of them.

    The reference repeats itself ("compound" holds "for", "while", "if", ...). Indexed twice, the copies would
    fill the places of other passages among the search results.
    """
    seen: set[str] = set()
    passages = []
    for topic, text in sorted(topics.items(), key=lambda item: (len(item[1]), item[0])):
        fresh = [p for p in text.strip().split("\n\n") if " ".join(p.split()) not in seen]
        seen.update(" ".join(p.split()) for p in fresh)
        parts = enumerate(_packed(fresh))
        # without surrounding blanks, as LangChain's text splitters do it
        passages += [Passage(f"{topic}#{number}", topic, part.strip()) for number, part in parts]
    return passages


def _packed(paragraphs: list[str]) -> Iterator[str]:
    """Neighbouring paragraphs joined up to `LONGEST`; a longer one is cut between lines."""
    packed = ""
    for paragraph in paragraphs:
        for separator, piece in _pieces(paragraph):
            if packed and len(packed) + len(piece) > LONGEST:
                yield packed
                packed = ""
            packed = f"{packed}{separator}{piece}" if packed else piece
    if packed:
        yield packed


def _pieces(paragraph: str) -> Iterator[tuple[str, str]]:
    """The paragraph, or its lines if it is too long, each with what stands before it."""
    if len(paragraph) <= LONGEST:
        yield "\n\n", paragraph
        return
    for number, line in enumerate(paragraph.splitlines()):
        yield "\n" if number else "\n\n", line
