"""Patch the methods of LangChain's models that begin a stream, so that streams ask the cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.llms import BaseLLM

from langchain_ibidem.streams import through_cache, through_cache_by_events

Method = Callable[..., Any]

# Where streams begin. The last two are `stream_events` in version 3, which newer langchain-core has.
_BEGINNINGS: dict[str, Callable[..., Any]] = {
    "stream": partial(through_cache, in_async=False),
    "astream": partial(through_cache, in_async=True),
    "_chat_model_stream_v3": through_cache_by_events,
    "_achat_model_stream_v3": through_cache_by_events,
}


class Routes:
    """The methods of all models, replaced and put back. Its owner holds a lock."""

    def __init__(self) -> None:
        self.active = False
        self._replaced: list[tuple[Any, str, Method, Method]] = []

    def lead_through_cache(self) -> None:
        """From now on streams of all models ask the cache."""
        if self.active:
            return
        self.active = True
        for kind in (BaseChatModel, BaseLLM):
            for name, through in _BEGINNINGS.items():
                if (method := vars(kind).get(name)) is not None:
                    ours = self._led(method, through)
                    setattr(kind, name, ours)
                    self._replaced.append((kind, name, method, ours))

    def put_back(self) -> None:
        """As it was before. What others have put over ours since stays, with ours doing nothing below it."""
        self.active = False
        for kind, name, method, ours in self._replaced:
            if vars(kind).get(name) is ours:
                setattr(kind, name, method)
        self._replaced.clear()

    def _led(self, method: Method, through: Callable[..., Any]) -> Method:
        """The method, called on what `through` gives for a model."""

        @wraps(method)
        def begin(model: Any, *args: Any, **kwargs: Any) -> Any:
            return method(through(model, kwargs) if self.active else model, *args, **kwargs)

        return begin
