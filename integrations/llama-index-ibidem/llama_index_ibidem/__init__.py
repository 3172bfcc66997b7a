"""LlamaIndex on Ibidem: `Settings.callback_manager.add_handler(IbidemCallbackHandler())` is all it needs."""

import ibidem._util.foreign

try:
    ibidem._util.foreign.require_ours()
    import llama_index.core  # noqa: F401
except ModuleNotFoundError as error:
    from ibidem.errors import MissingExtra

    raise MissingExtra("llama_index_ibidem", "llama-index") from error

from ibidem.adapter.warming import KnownAnswer, warm
from llama_index_ibidem.before_retrieval import AnswerFirst
from llama_index_ibidem.few_shot import few_shot
from llama_index_ibidem.handlers import IbidemCallbackHandler
from llama_index_ibidem.indexing import invalidating
from llama_index_ibidem.install import install, uninstall
from llama_index_ibidem.llm import CachedLLM
from llama_index_ibidem.synthesizer import CachedSynthesizer

__all__ = [
    "AnswerFirst",
    "CachedLLM",
    "CachedSynthesizer",
    "IbidemCallbackHandler",
    "KnownAnswer",
    "few_shot",
    "install",
    "invalidating",
    "uninstall",
    "warm",
]
