"""The methods of models that begin a stream, led through the cache: for one model, or for all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.llms import BaseLLM

from ibidem.errors import InvalidInput
from langchain_ibidem.identity import STANDS_FOR
from langchain_ibidem.kinds import Model
from langchain_ibidem.streams import through_cache, through_cache_by_events

Method = Callable[..., Any]
Condition = Callable[[], bool]


def _always() -> bool:
    return True


def _led(method: Method, through: Callable[..., Any], active: Condition) -> Method:
    """The method, called on what `through` gives for a model."""

    @wraps(method)
    def begin(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(through(self, kwargs) if active() else self, *args, **kwargs)

    return begin


# Where streams begin. The last two are `stream_events` in version 3, which newer langchain-core has.
_BEGINNINGS: dict[str, Callable[..., Any]] = {
    "stream": partial(through_cache, in_async=False),
    "astream": partial(through_cache, in_async=True),
    "_chat_model_stream_v3": through_cache_by_events,
    "_achat_model_stream_v3": through_cache_by_events,
}


def cache_streams(model: Model) -> Model:
    """A copy of the model whose streams are answered from LangChain's cache and stored in it, as `invoke` is.

    Which cache that is, LangChain's own rules say: `model.cache`, else the global one, if it is an
    `IbidemCache`. The copy is of a class of the same name that inherits from the model's; `bind_tools`,
    `with_structured_output` and the like keep it. `install()` does the same for all models.

    Raises:
        InvalidInput: It is not a chat or completion model. Wrap it before `bind_tools` and the like.
    """
    if not isinstance(model, (BaseChatModel, BaseLLM)):
        raise InvalidInput(
            f"cache_streams takes a chat or completion model, not {type(model).__name__}; "
            "call it before bind_tools, with_structured_output or with_config"
        )
    if STANDS_FOR in vars(type(model)):
        return model
    kind: Any = type(model)
    copied: Any = model.model_copy()
    object.__setattr__(copied, "__class__", _class_of(kind))
    return copied  # type: ignore[no-any-return]


@cache
def _class_of(kind: Any) -> Any:
    """A class of the same name, so that LangChain describes the model in the same words."""

    def inherited(name: str) -> Method:
        @wraps(getattr(kind, name))
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(super(cached, self), name)(*args, **kwargs)

        return method

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        return _empty, (kind,), self.__getstate__()

    names: dict[str, Any] = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__reduce_ex__": __reduce_ex__,
        **{
            name: _led(inherited(name), through, _always)
            for name, through in _BEGINNINGS.items()
            if hasattr(kind, name)
        },
    }
    cached: Any = type(kind)(kind.__name__, (kind,), names)
    setattr(cached, STANDS_FOR, kind)
    return cached


def _empty(kind: Any) -> Any:
    """For pickle, which finds no class made at run time."""
    cached = _class_of(kind)
    return cached.__new__(cached)


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
                    ours = _led(method, through, lambda: self.active)
                    setattr(kind, name, ours)
                    self._replaced.append((kind, name, method, ours))

    def put_back(self) -> None:
        """As it was before. What others have put over ours since stays, with ours doing nothing below it."""
        self.active = False
        for kind, name, method, ours in self._replaced:
            if vars(kind).get(name) is ours:
                setattr(kind, name, method)
        self._replaced.clear()
