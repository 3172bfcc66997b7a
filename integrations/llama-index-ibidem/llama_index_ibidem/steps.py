"""Which calls of a model answer the user; the others (rewriting a question, choosing a tool) are steps."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ibidem.prompts.documents import find_positions, occurs_at
from ibidem.prompts.masking import ParsedPrompt
from ibidem.prompts.prompt import Prompt
from ibidem.types import Document
from llama_index_ibidem.spans import Surroundings

# A turn of a conversation in a text, as LlamaIndex's chat engines write it.
_EARLIER_ANSWER = re.compile(
    r"(?msi)^(?:assistant|ai):.*?(?=^(?:user|human|assistant|ai|system|tool):|\n\s*\n|\Z)"
)


def answers_user(found: ParsedPrompt, prompt: Prompt, around: Surroundings) -> bool:
    """Whether the user said nothing but the question, or the prompt holds documents for it."""
    if found.masked is None or around.step:
        return False
    whole = found.question.strip() == prompt.last_human.strip()
    return whole or _stand_outside_history(found.documents, prompt, around)


def _stand_outside_history(documents: Sequence[Document], prompt: Prompt, around: Surroundings) -> bool:
    """Whether any of the documents is more than quoted by an earlier answer, as in a question to condense."""
    said = "\0".join(segment.text for segment in prompt.segments if segment.role != "ai")
    for name, value in (around.filled.variables if around.filled else {}).items():
        if "history" in name and isinstance(value, str) and value.strip():
            said = said.replace(value.strip(), "\0")
    said = _EARLIER_ANSWER.sub("\0", said)
    positions = find_positions(said, (document.text for document in documents))
    return any(occurs_at(said, document.text, positions, whole_words=False) for document in documents)
