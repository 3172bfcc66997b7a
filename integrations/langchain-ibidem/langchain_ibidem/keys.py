"""From LangChain's prompt and model strings to the request that the core compares."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ibidem.adapter.object_identity import token_of
from ibidem.prompts.documents import Retrieved
from ibidem.prompts.key import build_request
from ibidem.prompts.prompt import Prompt
from ibidem.prompts.question import PromptContext, QuestionFinder
from ibidem.types import Request, Scope, digest
from langchain_ibidem.callers import Caller
from langchain_ibidem.identity import Described, describe
from langchain_ibidem.memory import Memory, Render
from langchain_ibidem.prompt import is_dump, parse
from langchain_ibidem.tenants import scope_for

# An answer in a given form is data for a program: "almost the same question" is not good enough for it.
_STRUCTURED = re.compile(
    r"""['"](response_format|response_schema|response_json_schema|output_format|output_config)['"]"""
    r"""|\('format', [{']|"format": [{"]"""
)


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a model as it is seen when it begins, and again when it has been answered."""

    prompt: str | Prompt
    llm_string: str
    model: Described
    scope: Scope
    caller: Caller | None = None

    @property
    def of_chat(self) -> bool:
        """Whether a chat model is called, not a completion model."""
        return not isinstance(self.prompt, str) or is_dump(self.prompt)

    @property
    def mark(self) -> str:
        """Tells it from all others under way: two tenants may ask the same at once.

        It is the same once the call has been answered, though the model may be set differently by then.
        """
        asked = self.prompt if isinstance(self.prompt, str) else self.prompt.fingerprint
        run = self.caller.run if self.caller else None
        which = self.model.texts if run is None else (token_of(run),)
        return digest(asked, self.llm_string, repr(self.scope), *which)


class RequestBuilder:
    """Builds requests for one cache. Stateless but for what `memory` holds."""

    def __init__(
        self,
        memory: Memory,
        namespace: str,
        question_keys: Sequence[str],
        *,
        model_id: str = "",
        semantic: bool = True,
        any_message: bool = False,
        require_namespace: bool = False,
    ) -> None:
        self._memory = memory
        self._namespace, self._required = namespace, require_namespace
        self._model_id, self._semantic = model_id, semantic
        self._questions = QuestionFinder(question_keys, any_message=any_message)

    def read(self, prompt: str | Prompt, llm_string: str, caller: Caller | None = None) -> Call:
        """The call of the model that `llm_string` describes with `prompt`, by `caller` if he is known.

        Args:
            prompt: As LangChain hands it to a cache, or taken apart.
            llm_string: As LangChain hands it to a cache.
            caller: Who calls; None if it is not known.

        Raises:
            NotCacheable: They do not say all that the answer depends on, or not whose call it is.
        """
        scope = scope_for(caller, required=self._required)
        model = describe(llm_string, caller, named=bool(self._model_id))
        return Call(prompt, llm_string, model, scope, caller)

    def build(self, prompt: str | Prompt, llm_string: str, caller: Caller | None = None) -> Request:
        """The request for such a call; raises as `read` does."""
        return self.request(self.read(prompt, llm_string, caller))

    def request(self, call: Call, known: Sequence[Retrieved] = ()) -> Request:
        """The request for the call; `known` are documents that the caller knows to stand in the prompt."""
        parsed = parse(call.prompt) if isinstance(call.prompt, str) else call.prompt
        render = self._memory.render_of(parsed.fingerprint)
        told = (call.llm_string, *call.model.texts)
        judges = call.caller is not None and self._memory.judges(call.caller.parent)
        return build_request(
            parsed,
            self._context(render, known),
            self._questions,
            model=("langchain/1", self._model_id, *call.model.texts),
            scope=call.scope,
            namespace=self._namespace,
            exact=not self._semantic or judges or any(map(_STRUCTURED.search, told)),
            temperature=call.model.temperature,
            example=not judges,
        )

    def _context(self, render: Render | None, known: Sequence[Retrieved]) -> PromptContext:
        recent = self._memory.recent_documents
        if render is None:
            return PromptContext(documents=known, recent=recent)
        return PromptContext(
            render.named,
            render.texts,
            render.asked,
            documents=[*known, *render.documents, *self._memory.documents_of(render.run)],
            recent=recent,
            few_shot=render.shown,
        )
