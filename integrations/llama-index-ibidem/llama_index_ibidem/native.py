"""The model as it is, but for its endpoints, which lead back to the cache.

Some models have their own way to structured output: OpenAI's sends a JSON schema and calls `self.chat`. A
wrapper that does it in LlamaIndex's general way would silently change to tool calls. So the model's own
method runs, on a copy of the model whose `chat` is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.llms.llm import LLM

if TYPE_CHECKING:
    from llama_index_ibidem.wrapping import WrappingLLM

_SYNC = ("chat", "stream_chat", "complete", "stream_complete")
_ASYNC = ("achat", "astream_chat", "acomplete", "astream_complete")
# Settings of prompts that are given to the wrapper, by its owner or by LlamaIndex.
SHARED = (
    "callback_manager",
    "system_prompt",
    "messages_to_prompt",
    "completion_to_prompt",
    "output_parser",
    "query_wrapper_prompt",
)


class NativeView:
    """Makes such copies for one `WrappingLLM`."""

    def __init__(self, wrapper: WrappingLLM) -> None:
        self._wrapper = wrapper
        self._class: type[LLM] | None = None

    def model(self) -> LLM:
        """The model as it is now; a shallow copy, so that its clients and settings are the same."""
        model = self._wrapper.llm
        if self._class is None or self._class.__mro__[1] is not type(model):
            self._class = _leading_back_to(self._wrapper, type(model))
        view = model.model_copy(update={name: getattr(self._wrapper, name) for name in SHARED})
        object.__setattr__(view, "__class__", self._class)
        return view

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeView:
        return NativeView(memo.get(id(self._wrapper), self._wrapper))


def _leading_back_to(wrapper: WrappingLLM, model: type[LLM]) -> type[LLM]:
    def sync(name: str) -> Any:
        return lambda self, *args, **kwargs: getattr(wrapper, name)(*args, **kwargs)

    def awaited(name: str) -> Any:
        async def endpoint(self: LLM, *args: Any, **kwargs: Any) -> Any:
            return await getattr(wrapper, name)(*args, **kwargs)

        return endpoint

    endpoints = {name: sync(name) for name in _SYNC} | {name: awaited(name) for name in _ASYNC}
    return type(model.__name__, (model,), {"__module__": model.__module__, **endpoints})
