"""`IbidemExampleSelector`: few-shot examples from the example log, for LangChain's few-shot templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from langchain_core.example_selectors import BaseExampleSelector
from langchain_core.runnables import ensure_config

from ibidem._util.concurrency import in_thread
from ibidem._util.faults import Faults
from ibidem.adapter.call import attempt
from ibidem.errors import InvalidInput
from ibidem.example import Example
from ibidem.options import ExampleOptions
from ibidem.prompts.few_shot import FewShotBlock, settings_of
from ibidem.scope import current
from ibidem.types import require_bool, require_name, require_text
from langchain_ibidem.cache import IbidemCache
from langchain_ibidem.call import HOOKS
from langchain_ibidem.tracking import tracker

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache


class IbidemExampleSelector(BaseExampleSelector):
    """Selects examples from the log of a cache, for `FewShotPromptTemplate` and its chat twin.

    Each example is a dict with `question` and `answer`. Without the cache or its embedder there are none: a
    prompt never fails because of them.

    By default the selected examples are no part of the cache key: prompts that differ in them alone share
    their answers, so a growing log ends no hits. That holds for templates that are run (`invoke`, in a chain
    or by themselves) and name questions and answers unchanged; elsewhere the examples are compared.

    Args:
        cache: An `IbidemCache`, or what `ibidem.open` gave.
        k: How many examples at most.
        input_key: The variable that holds the question; else the usual ones ("question", "query", "input").
        question_key: Under which name an example gives its question.
        answer_key: Under which name it gives its answer.
        in_key: True to compare the selected examples as any other part of the prompt.
        namespace: Whose examples; `ibidem.scope` takes its place.
        max_tokens: The maximum number of tokens of all questions and answers together.
        **options: For `cache.examples.select`: `diversity`, `min_feedback`, `tags`, `model`, `count_tokens`.

    Raises:
        InvalidInput: An argument cannot be used.
    """

    def __init__(
        self,
        cache: SemanticCache | IbidemCache,
        k: int = 4,
        *,
        input_key: str = "",
        question_key: str = "question",
        answer_key: str = "answer",
        in_key: bool = False,
        namespace: str = "",
        max_tokens: int | None = None,
        **options: Unpack[ExampleOptions],
    ) -> None:
        require_bool("in_key", in_key)
        self.cache = cache.cache if isinstance(cache, IbidemCache) else cache
        self._k, self._in_key = k, in_key
        self._options: dict[str, Any] = {**options, "max_tokens": max_tokens}
        self._input_key = require_text("input_key", input_key)
        self._names = (require_text("question_key", question_key), require_text("answer_key", answer_key))
        self._options["namespace"] = self._namespace = require_name("namespace", namespace)
        self._settings = settings_of(k, **self._options)
        self._faults = Faults()
        self._tracker = tracker()
        HOOKS.hold(self)
        try:
            self.cache.examples.check(k, **self._options)
        except TypeError as error:
            raise InvalidInput(f"IbidemExampleSelector: {error}") from None

    def add_example(self, example: Mapping[str, str]) -> bool:
        """Add an example to the log; return whether it was kept. It needs a question and an answer.

        Raises:
            InvalidInput: One of them is missing or empty.
        """
        for name in self._names:
            if name not in example:
                raise InvalidInput(f"an example needs {' and '.join(self._names)}; {name!r} is missing")
        question, answer = (example[name] for name in self._names)
        return self.cache.examples.add(Example(question, answer, namespace=current().name(self._namespace)))

    async def aadd_example(self, example: Mapping[str, str]) -> bool:
        """As `add_example`, which only queues the example."""
        return self.add_example(example)

    def select_examples(self, input_variables: Mapping[str, Any]) -> list[dict[str, str]]:
        """Select examples for the question among these variables, nearest last; none without a question."""
        return self._recorded(_run(), self._select(input_variables), input_variables)

    async def aselect_examples(self, input_variables: Mapping[str, Any]) -> list[dict[str, str]]:
        """As `select_examples`, in a thread."""
        run = _run()
        return self._recorded(run, await in_thread(self._select, input_variables), input_variables)

    def faults(self) -> dict[str, int]:
        """How often a failure was swallowed, by cause."""
        return self._faults.counts()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(k={self._k}, namespace={self._namespace!r})"

    def _select(self, variables: Mapping[str, Any]) -> list[Example]:
        """Select examples; none if that fails."""
        select = partial(self.cache.examples.select_for, variables, self._k, input_key=self._input_key)
        return attempt(self._faults, "select examples", partial(select, **self._options)) or []

    def _recorded(
        self, run: Any, found: Sequence[Example], variables: Mapping[str, Any]
    ) -> list[dict[str, str]]:
        """Record the examples for the prompt that is being rendered, and return them as dicts."""
        if run is not None and found and not self._in_key:
            pairs = tuple((example.question, example.answer) for example in found)
            given = frozenset(text for text in variables.values() if isinstance(text, str))
            self._tracker.examples_selected(run.int, FewShotBlock(self._settings, pairs, other_texts=given))
        question, answer = self._names
        return [{question: example.question, answer: example.answer} for example in found]


def _run() -> Any:
    """Return the id of the run that fills a template now; None outside of one."""
    return getattr(ensure_config().get("callbacks"), "parent_run_id", None)
