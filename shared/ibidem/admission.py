"""Is an answer worth keeping? Truncated, filtered and empty answers are not: a cache makes them permanent."""

from __future__ import annotations

from ibidem.request import Answer, Request

# What providers call a complete answer (OpenAI, Anthropic, Google, Mistral, Ollama, Cohere, Bedrock).
COMPLETE = frozenset(
    (
        "stop end_turn stop_sequence eos eos_token complete completed finished done "
        "tool_calls tool_use function_call"
    ).split()
) | {""}


def refusal(request: Request, answer: Answer) -> str | None:
    """Why the answer must not be stored, or None. Reasons as in `Rejected`."""
    if answer.finish_reason.lower() not in COMPLETE:
        return f"finish_reason:{answer.finish_reason}"
    if answer.semantic and not answer.text.strip():
        return "empty"
    ids = (document.id for document in request.documents)
    texts = (request.question, request.namespace, answer.text, answer.model, answer.payload, *ids)
    if any(not storable(text) for text in texts):
        return "invalid_text"
    return None


def storable(text: str) -> bool:
    """Whether SQL text columns hold the text: not if it has lone surrogates or NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
