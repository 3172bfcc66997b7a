"""Which stored answer is behind what LangChain was given or has stored, for `ibidem.forget`."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.outputs import ChatGeneration, Generation

from ibidem import forgetting
from ibidem.request import Hit, Stored


def remember(generations: Sequence[Generation], source: Hit | Stored) -> None:
    """By the ids of messages: LangChain and LangGraph copy them. A text of a completion model has none."""
    for generation in generations:
        forgetting.remember(generation, source)
        if isinstance(generation, ChatGeneration):
            forgetting.remember(generation.message, source, generation.message.id)
