"""`install()`: what changes, what does not, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import get_llm_cache, set_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.llms import BaseLLM

import ibidem
from ibidem.adapter.method_wrappers import unwrapped
from ibidem.cache import SemanticCache
from ibidem.errors import CacheClosed, InvalidInput
from langchain_ibidem import IbidemCache, install, uninstall
from tests.contracts.langchain import Recording
from tests.contracts.langchain_streams import AsyncStreamingChat, StreamingChat, astream, stream
from tests.embedders import BagOfWords

ASKED = "What is the capital of France?"
METHODS = [
    (kind, name)
    for kind in (BaseChatModel, BaseLLM)
    for name in ("stream", "astream", "_chat_model_stream_v3", "_achat_model_stream_v3")
    if name in vars(kind)
]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Whatever a test leaves installed is taken away."""
    yield
    uninstall()
    set_llm_cache(None)


def methods() -> list[Any]:
    """Below what keeps the scopes of streams, which is there as long as any cache is."""
    found = (vars(kind)[name] for kind, name in METHODS)
    return [unwrapped(method) for method in found]


# install -------------------------------------------------------------------------------------------------


def test_one_line_caches_and_another_undoes_it(cache: SemanticCache) -> None:
    """All methods are LangChain's own again, and the global cache is what it was."""
    before, other = methods(), InMemoryCache()
    set_llm_cache(other)
    fake = StreamingChat()
    used = install(cache)
    assert isinstance(used, IbidemCache)
    assert get_llm_cache() is used
    assert used.cache is cache
    assert [stream(fake, ASKED), astream(fake, ASKED), fake.invoke(ASKED).text] == ["answer 1"] * 3
    assert all(new is not old for new, old in zip(methods(), before, strict=True))
    uninstall()

    assert methods() == before
    assert get_llm_cache() is other
    assert [stream(fake, ASKED), stream(fake, ASKED)] == ["answer 2", "answer 3"]
    uninstall()
    assert methods() == before


def test_it_is_once(cache: SemanticCache, open_cache: Callable[..., SemanticCache]) -> None:
    """Called again it changes nothing; with another cache it replaces the first."""
    before = methods()
    used = install(cache, namespace="acme")
    replaced = methods()
    assert install() is install(cache, namespace="acme") is install(used) is used
    assert methods() == replaced

    other = install(open_cache())
    assert other is not used
    assert get_llm_cache() is other
    assert methods() == replaced
    uninstall()
    assert methods() == before
    assert get_llm_cache() is None


def test_it_comes_back_over_another_global_cache(cache: SemanticCache) -> None:
    """Who calls it wants it; what `uninstall` finds there instead stays."""
    used, other = install(cache), InMemoryCache()
    set_llm_cache(other)
    assert install() is used
    assert get_llm_cache() is used
    set_llm_cache(other)
    uninstall()
    assert get_llm_cache() is other


def test_it_opens_and_closes_a_cache(tmp_path: Path) -> None:
    """With the options of `IbidemCache` and of `ibidem.open`; what was handed in stays open."""
    options = {"path": tmp_path / "one", "embedder": BagOfWords(), "namespace": "acme"}
    used = install(**options)
    assert used.namespace == "acme"
    assert install(**options) is used
    with ibidem.open(tmp_path / "two", embedder=BagOfWords()) as opened:
        assert install(opened) is not used
        with pytest.raises(CacheClosed):
            used.cache.lookup(ibidem.Request(ASKED))
        uninstall()
        assert not opened.lookup(ibidem.Request(ASKED))
    with pytest.raises(InvalidInput, match="not both"):
        install(used, min_similarity=0.9)
    with pytest.raises(InvalidInput, match="treshold"):
        install(treshold=0.9)
    assert get_llm_cache() is None


def test_streams_can_be_left_alone(cache: SemanticCache) -> None:
    """And be taken in later."""
    before, fake = methods(), StreamingChat()
    used = install(cache, streams=False)
    assert methods() == before
    assert [stream(fake, ASKED), stream(fake, ASKED)] == ["answer 1", "answer 2"]
    assert install() is used
    assert stream(fake, ASKED) == stream(fake, ASKED) == "answer 3"
    assert install(streams=False) is used
    assert methods() == before


def test_what_others_put_over_it_stays(cache: SemanticCache) -> None:
    """An instrumentation that came later keeps what it found, which then does nothing."""
    original, fake, told = BaseChatModel.stream, StreamingChat(), []
    core = Recording(cache)
    install(IbidemCache(core))  # type: ignore[arg-type]
    found = BaseChatModel.stream

    def told_of(self: Any, *args: Any, **kwargs: Any) -> Any:
        told.append(self)
        return found(self, *args, **kwargs)

    BaseChatModel.stream = told_of  # type: ignore[method-assign]
    try:
        assert stream(fake, ASKED) == stream(fake, ASKED) == "answer 1"
        uninstall()
        assert BaseChatModel.stream is told_of
        assert [stream(fake, ASKED), stream(fake, ASKED)] == ["answer 2", "answer 3"]
        assert (told, len(core.looked_up)) == ([fake] * 4, 2)
        install(IbidemCache(core))  # type: ignore[arg-type]
        assert stream(fake, ASKED) == "answer 1"
        assert len(core.looked_up) == 3
        uninstall()
        assert BaseChatModel.stream is told_of
    finally:
        BaseChatModel.stream = original  # type: ignore[method-assign]


RULES: dict[str, tuple[Any, bool]] = {
    "the global one": (None, True),
    "switched on": (True, True),
    "switched off": (False, False),
    "another": (InMemoryCache(), False),
}


@pytest.mark.parametrize("name", RULES)
def test_the_cache_is_chosen_by_the_rules_of_langchain(name: str, cache: SemanticCache) -> None:
    """`model.cache` decides, as for `invoke`; a cache that is not ours gets no streams."""
    install(cache)
    setting, cached = RULES[name]
    fake = AsyncStreamingChat(cache=setting)

    assert [stream(fake, ASKED), stream(fake, ASKED)] == ["answer 1", "answer 1" if cached else "answer 2"]


def test_a_model_of_its_own_cache(cache: SemanticCache) -> None:
    """A foreign global cache has nothing to do with it, nor has none."""
    install(cache)
    mine = StreamingChat(cache=IbidemCache(cache, namespace="mine"))
    assert stream(mine, ASKED) == stream(mine, ASKED) == mine.invoke(ASKED).text == "answer 1"
    assert stream(StreamingChat(), ASKED) == "answer 1", "another namespace"
    for foreign in (InMemoryCache(), None):
        set_llm_cache(foreign)
        assert stream(mine, ASKED) == "answer 1"
        fake = StreamingChat()
        assert [stream(fake, ASKED), stream(fake, ASKED)] == ["answer 1", "answer 2"]
    asks_for_none = StreamingChat(cache=True)
    assert stream(asks_for_none, ASKED) == "answer 1", "LangChain does not object to that in a stream"
