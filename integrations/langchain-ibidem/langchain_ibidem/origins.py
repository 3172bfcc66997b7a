"""Which stored answer is behind what LangChain was given or has stored, for `ibidem.forget`."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.outputs import ChatGeneration, Generation

from ibidem import provenance as forgetting
from ibidem.types import Hit, Stored


def remember(generations: Sequence[Generation], source: Hit | Stored) -> None:
    """A message is known by its id, since LangChain copies it, and a repeated one says it itself."""
    for generation in generations:
        if not isinstance(generation, ChatGeneration):
            forgetting.remember(generation, source)
        elif isinstance(source, Stored):
            forgetting.remember(generation, source)
            forgetting.remember(generation.message, source, names=[generation.message.id])
