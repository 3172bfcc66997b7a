"""`install()`: LlamaIndex's global settings on the cache, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms.llm import LLM

from ibidem._util.concurrency import ForkSafeLock
from ibidem.adapter.options import open_or_use
from ibidem.errors import ConfigurationError
from llama_index_ibidem.handler import IbidemCallbackHandler
from llama_index_ibidem.llm import CachedLLM
from llama_index_ibidem.stream_scopes import STREAMS

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache


@dataclass(slots=True)
class _Installed:
    """What was installed, and what was there before. `llm` is None if `Settings.llm` was cached already.

    `own` is the manager that the model had for itself, whose handlers are carried over.
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
    **options: Any,
) -> IbidemCallbackHandler:
    """Put `Settings.llm` on the cache, and a logging handler into `Settings.callback_manager`; returns it.

    Call it after `Settings.llm` was set and before engines are built: they keep the model they find. Called
    again, it puts a model that was set since on the same cache, and changes nothing else.

    Args:
        cache: An open `ibidem.SemanticCache`, which stays yours to close. By default one is opened.
        namespace: As for `CachedLLM`; so are the other arguments.
        question_keys: Template variables that hold the question.
        model_id: Names the model where its fields do not.
        any_message: Take every line of the user for a question.
        semantic: False to repeat answers to identical prompts only.
        require_namespace: True to cache only what is asked within `ibidem.scope(namespace=...)`.
        **options: For `ibidem.open`: `path`, `threshold`, `embedder`, ...

    Raises:
        ConfigurationError: There is no model to cache: LlamaIndex has none set and cannot load its default.
            Or `install` was called before with other arguments.
        InvalidInput: An option does not exist, or both a cache and options were given.
        IbidemError: The cache cannot be opened.
    """
    global _installed
    asking: dict[str, Any] = {
        "namespace": namespace,
        "question_keys": (question_keys,) if isinstance(question_keys, str) else tuple(question_keys),
        "model_id": model_id,
        "any_message": any_message,
        "semantic": semantic,
        "require_namespace": require_namespace,
    }
    given = (cache, asking, options)
    with _lock:
        model = _model()
        if _installed is None:
            _installed = _install(model, given)
        elif given not in ((None, _NOTHING_ASKED, {}), _installed.given):
            raise ConfigurationError("install() was called before, with other arguments: uninstall() first")
        elif not isinstance(model, CachedLLM):
            Settings.llm = _installed.llm = CachedLLM(model, _installed.handler.cache, **_installed.given[1])
        return _installed.handler


_NOTHING_ASKED = {
    "namespace": "",
    "question_keys": (),
    "model_id": "",
    "any_message": False,
    "semantic": True,
    "require_namespace": False,
}


def uninstall() -> None:
    """Undo `install()`; without one, nothing happens. A cache that was opened by it is closed."""
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
                STREAMS.release(done.llm._desk)


def _install(model: LLM, given: tuple[Any, ...]) -> _Installed:
    cache, asking, options = given
    opened = open_or_use(cache, options, "install()")
    try:
        handler = IbidemCallbackHandler(
            opened, namespace=asking["namespace"], any_message=asking["any_message"]
        )
        ours = None if isinstance(model, CachedLLM) else CachedLLM(model, opened, **asking)
    except Exception:
        if cache is None:
            opened.close()
        raise
    own = model.callback_manager
    before, manager = Settings._callback_manager, Settings.callback_manager
    if before is None:  # LlamaIndex will put the new manager in the place of the model's own
        for each in own.handlers:
            if each not in manager.handlers:
                manager.add_handler(each)
    manager.add_handler(handler)
    Settings.llm = ours or model
    return _Installed(given, handler, ours, manager, before, model, own)


def _model() -> LLM:
    try:
        return Settings.llm
    except (ImportError, ValueError) as error:
        raise ConfigurationError(
            f"set Settings.llm to your model before install(): {' '.join(str(error).split())}"
        ) from error
