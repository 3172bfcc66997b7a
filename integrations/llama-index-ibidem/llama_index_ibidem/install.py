"""`install()` puts LlamaIndex's global settings on the cache; `uninstall()` undoes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Unpack

from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms.llm import LLM

from ibidem._util.concurrency import ForkSafeLock
from ibidem.adapter.options import AdapterOptions, open_or_use
from ibidem.errors import ConfigurationError
from ibidem.options import OpenOptions
from ibidem.prompts.history import mode_of
from llama_index_ibidem.handlers import IbidemCallbackHandler
from llama_index_ibidem.llm import CachedLLM
from llama_index_ibidem.spans import STREAMS

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache


@dataclass(slots=True)
class _Installed:
    """What was installed, and what it replaced.

    Attributes:
        given: The arguments of `install`.
        handler: The logging handler.
        llm: The cached model; None if `Settings.llm` was one already.
        manager: The callback manager that has the handler.
        manager_before: The global callback manager; None if there was none.
        model: The model that was set.
        own: The callback manager of the model, whose handlers are carried over.
    """

    given: tuple[Any, ...]
    handler: IbidemCallbackHandler
    llm: CachedLLM | None
    manager: CallbackManager
    manager_before: CallbackManager | None
    model: LLM
    own: CallbackManager


_lock = ForkSafeLock()
_installed: _Installed | None = None


def install(
    cache: SemanticCache | None = None,
    *,
    namespace: str = "",
    question_keys: Sequence[str] = (),
    model_id: str = "",
    any_message: bool = False,
    semantic: bool = True,
    require_namespace: bool = False,
    history: str | None = None,
    **options: Unpack[OpenOptions],
) -> IbidemCallbackHandler:
    """Wrap `Settings.llm`, add a logging handler to `Settings.callback_manager`, and return the handler.

    Call it after `Settings.llm` was set and before engines are built: they keep the model they find. Called
    again, it wraps a model that was set since, with the same cache, and changes nothing else.

    Args:
        cache: An open `ibidem.SemanticCache`, which stays yours to close. By default one is opened.
        namespace: As for `CachedLLM`, like the other arguments.
        question_keys: Template variables that hold the question.
        model_id: Identifies the model where its fields do not.
        any_message: True to take every line of the user for a question.
        semantic: False to repeat answers to identical prompts only.
        require_namespace: True to cache only calls within `ibidem.scope(namespace=...)`.
        history: How the earlier turns of a chat are compared: "exact", not where the last message stands
            alone ("standalone"), by their meaning ("meaning"), or never ("ignore").
        **options: For `ibidem.open`: `path`, `max_error_rate`, `embedder`, ...

    Raises:
        ConfigurationError: There is no model to cache: LlamaIndex has none set and cannot load its default.
            Or `install` was called before with other arguments.
        InvalidInput: An option does not exist, or both a cache and options were given.
        IbidemError: The cache cannot be opened.
    """
    global _installed
    settings = AdapterOptions(
        namespace, question_keys, model_id, any_message, semantic, require_namespace, mode_of(history)
    )
    given = (cache, settings, options)
    with _lock:
        model = _model()
        if _installed is None:
            _installed = _install(model, given)
        elif given not in ((None, AdapterOptions(), {}), _installed.given):
            raise ConfigurationError("install() was called before, with other arguments: uninstall() first")
        elif not isinstance(model, CachedLLM):
            Settings.llm = _installed.llm = _cached(model, _installed.handler.cache, _installed.given[1])
        return _installed.handler


def uninstall() -> None:
    """Undo `install()`, if there was one, and close the cache if that opened it."""
    global _installed
    with _lock:
        if _installed is None:
            return
        done, _installed = _installed, None
        if done.llm is not None and Settings._llm is done.llm:
            Settings._llm = done.llm.llm
        if done.handler in done.manager.handlers:
            done.manager.remove_handler(done.handler)
        carried = done.own.handlers if done.manager_before is None else []
        if Settings._callback_manager is done.manager and all(h in carried for h in done.manager.handlers):
            Settings._callback_manager = done.manager_before
            if done.manager_before is None and done.model.callback_manager is done.manager:
                done.model.callback_manager = done.own
        if done.given[0] is None:
            done.handler.cache.close()
            if done.llm is not None:
                STREAMS.release(done.llm._adapter)


def _install(model: LLM, given: tuple[Any, ...]) -> _Installed:
    cache, settings, options = given
    opened = open_or_use(cache, options, "install()")
    try:
        handler = IbidemCallbackHandler(
            opened, namespace=settings.namespace, any_message=settings.any_message, serve=False
        )
        ours = None if isinstance(model, CachedLLM) else _cached(model, opened, settings)
    except Exception:
        if cache is None:
            opened.close()
        raise
    own = model.callback_manager
    before, manager = Settings._callback_manager, Settings.callback_manager
    if before is None:  # LlamaIndex replaces the model's own manager by the new one
        for each in own.handlers:
            if each not in manager.handlers:
                manager.add_handler(each)
    manager.add_handler(handler)
    Settings.llm = ours or model
    return _Installed(given, handler, ours, manager, before, model, own)


def _cached(model: LLM, cache: SemanticCache, settings: AdapterOptions) -> CachedLLM:
    return CachedLLM(model, cache, **asdict(settings))


def _model() -> LLM:
    try:
        return Settings.llm
    except (ImportError, ValueError) as error:
        raise ConfigurationError(
            f"set Settings.llm to your model before install(): {' '.join(str(error).split())}"
        ) from error
