"""What is behind the running synthesis: LlamaIndex builds its response from the text alone."""

from __future__ import annotations

from contextvars import ContextVar

from llama_index.core.base.response.schema import RESPONSE_TYPE

from ibidem import provenance as forgetting
from ibidem.types import Hit, Stored
from llama_index_ibidem.codec import MARKER

_behind: ContextVar[Hit | Stored | None] = ContextVar("ibidem_behind", default=None)


def comes_from(source: Hit | Stored | None) -> None:
    """The synthesis was answered with this hit, or its answer was stored; None for neither."""
    _behind.set(source)


def tell(response: RESPONSE_TYPE) -> RESPONSE_TYPE:
    """The response; a repeated one says so in `metadata["ibidem"]`, a new one is known to `ibidem.forget`."""
    source = _behind.get()
    _behind.set(None)
    if isinstance(source, Hit):
        marker = {**source.provenance(), "model": source.answer.model}
        response.metadata = {**(response.metadata or {}), MARKER: marker}
    elif source is not None:
        forgetting.remember(response, source)
    return response
