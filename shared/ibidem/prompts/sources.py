"""Which documents stand in a prompt: those of its own run if there are any, else what was found lately."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ibidem.prompts.matching import places_of, stands
from ibidem.prompts.prompt import Prompt
from ibidem.request import digest

# Template variables that hold documents.
CONTEXT_KEYS = frozenset(
    "context context_str context_msg documents document docs sources passages chunks excerpts".split()
)
# A shorter text is too common to be recognised as a document by its letters alone.
_TELLING_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Retrieved:
    """A document that a retriever returned, the latest queries that found it, and what it was cut from."""

    id: str
    text: str
    queries: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A document that occurs in a prompt, `as_words` if only its occurrences at word borders count.

    A `stranger` was retrieved by another run than the one that made the prompt. It is `pinned`, a part of the
    prompt like any other, if it is all that a variable holds which is not one for documents. `named` is what
    it is called: more than one where several documents have this text.
    """

    named: tuple[Retrieved, ...]
    text: str
    queries: tuple[str, ...]
    as_words: bool
    stranger: bool = False
    pinned: bool = False

    @property
    def digest(self) -> str:
        """Identifies the content."""
        return digest(self.text)


def occurring(
    prompt: Prompt,
    own: Iterable[Retrieved],
    recent: Callable[[], Iterable[Retrieved]],
    variables: Mapping[str, Any] | None = None,
) -> list[Occurrence]:
    """The documents whose text occurs in the prompt; `variables` are those that filled its template.

    Documents of other runs (`recent`) only count if the prompt has none of its own: they are how prompts
    built by hand and agents are understood, and elsewhere could only cut what happens to look like them.
    """
    text = "\0".join(segment.text for segment in prompt.segments if segment.role != "ai")
    if found := _found(text, own, strangers=False):
        return found
    strangers = _found(text, recent(), strangers=True)
    given = {key: value for key, value in (variables or {}).items() if key not in CONTEXT_KEYS}
    other = {value.strip() for value in given.values() if isinstance(value, str)}
    return [replace(stranger, pinned=stranger.text in other) for stranger in strangers]


def _found(text: str, documents: Iterable[Retrieved], *, strangers: bool) -> list[Occurrence]:
    named: dict[str, list[Retrieved]] = {}
    for document in documents:
        named.setdefault(document.text, []).append(document)
    found = []
    shortest = _TELLING_LENGTH if strangers else 0
    places = places_of(text, (telling for telling in named if len(telling) >= shortest))
    for telling, those in named.items():
        as_words = strangers or len(telling) < _TELLING_LENGTH
        if stands(text, telling, places, as_words=as_words):
            queries = dict.fromkeys(query for document in those for query in document.queries)
            found.append(Occurrence(tuple(those), telling, tuple(queries), as_words, strangers))
    return found


def standing(text: str, documents: Iterable[Occurrence]) -> bool:
    """Whether any of the documents stands in this text as well."""
    sought = list(documents)
    places = places_of(text, (one.text for one in sought))
    return any(stands(text, one.text, places, as_words=one.as_words) for one in sought)
