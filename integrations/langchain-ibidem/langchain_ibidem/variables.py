"""What is worth remembering of the variables that filled a template: short texts and documents.

They can hold whole conversations and images; those are in the prompt anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage

LONGEST_TEXT = 4096  # characters; a longer text is no question
_LEAVES = 4096
_DEPTH = 6


@dataclass(frozen=True, slots=True)
class Variables:
    """Template variables: texts by name, all texts anywhere inside them, and the documents among them."""

    named: Mapping[str, str]
    texts: frozenset[str]
    documents: tuple[Document, ...]


def take(variables: Any) -> Variables:
    """What a template was filled with; a template of one variable may get it without a name."""
    given = variables if isinstance(variables, Mapping) else {"": variables}
    leaves = list(islice(_walk(given, _DEPTH), _LEAVES))
    return Variables(
        {name: value for name, value in given.items() if isinstance(value, str) and _short(value)},
        frozenset(leaf for leaf in leaves if isinstance(leaf, str) and _short(leaf)),
        tuple(leaf for leaf in leaves if isinstance(leaf, Document)),
    )


def _short(text: str) -> bool:
    return len(text) <= LONGEST_TEXT


def _walk(value: Any, depth: int) -> Iterator[str | Document]:
    if isinstance(value, (str, Document)):
        yield value
    elif isinstance(value, BaseMessage):
        yield from _walk(value.content, depth)
    elif depth and isinstance(value, Mapping):
        for inner in value.values():
            yield from _walk(inner, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for inner in value:
            yield from _walk(inner, depth - 1)
