"""Put few-shot examples from the example log into LlamaIndex's templates (`function_mappings`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from ibidem._util.faults import Faults
from ibidem.adapter.call import attempt
from ibidem.errors import InvalidInput
from ibidem.example import Example
from ibidem.options import ExampleOptions
from ibidem.prompts.few_shot import FewShotBlock, settings_of
from ibidem.prompts.key import question_of
from ibidem.types import require_bool, require_text
from llama_index_ibidem.spans import STREAMS, span_watcher

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache

MAX_TOKENS = 1_000
_LABELS = 16  # tokens around each example, about
_SETTINGS = "__ibidem_examples__"


def few_shot(
    cache: SemanticCache,
    k: int = 4,
    *,
    question_key: str = "query_str",
    example: str = "Question: {question}\nAnswer: {answer}",
    separator: str = "\n\n",
    max_tokens: int = MAX_TOKENS,
    in_key: bool = False,
    namespace: str = "",
    **options: Unpack[ExampleOptions],
) -> Callable[..., str]:
    """Return a function that selects the examples for the question of a template, as one text.

    `PromptTemplate("... {examples} ...", function_mappings={"examples": few_shot(cache)})`. It never raises:
    without the cache or its embedder there are no examples, and the text is empty.

    By default the examples are not part of the cache key of `CachedLLM` and `CachedSynthesizer`: prompts that
    differ only in them share their answers, so a growing log costs no hits.

    LlamaIndex also fills templates with empty texts, to measure how much room is left for documents; then the
    text is as long as the examples may become.

    Args:
        cache: An open `ibidem.SemanticCache`.
        k: The maximum number of examples.
        question_key: The variable that holds the question; else the usual ones.
        example: The format of one example.
        separator: The text between two examples.
        max_tokens: The maximum number of tokens of all questions and answers together.
        in_key: True to compare the examples like any other part of the prompt.
        namespace: Whose examples; `ibidem.scope` overrides it.
        **options: For `cache.examples.select`: `diversity`, `min_feedback`, `tags`, `model`, `count_tokens`.

    Raises:
        InvalidInput: An argument cannot be used.
    """
    require_bool("in_key", in_key)
    _check_format(require_text("example", example), require_text("separator", separator))
    chosen: dict[str, Any] = {**options, "max_tokens": max_tokens, "namespace": namespace}
    try:
        cache.examples.check(k, **chosen)
    except TypeError as error:
        raise InvalidInput(f"few_shot: {error}") from None
    settings = settings_of(k, question_key, example, separator, **chosen)
    require_text("question_key", question_key)
    faults = Faults()

    def select(variables: Mapping[str, Any]) -> str:
        found = cache.examples.select_for(variables, k, input_key=question_key, **chosen)
        text = separator.join(map(partial(_filled, example), found))
        if text and not in_key:
            span_watcher.record_few_shot(FewShotBlock(settings, text=text))
        return text

    # A closure: LlamaIndex copies templates with the objects of methods, which hold locks.
    def examples(**variables: Any) -> str:
        if question_of(variables, question_key):
            return attempt(faults, "select examples", partial(select, variables)) or ""
        return " x" * (max_tokens + _LABELS * k) if _is_measure(variables) else ""

    setattr(examples, _SETTINGS, None if in_key else settings)
    STREAMS.hold(examples)
    return examples


def selected_by(function: Callable[..., Any]) -> str | None:
    """Return the settings of a `few_shot` function whose text is not part of the key; None for any other."""
    settings = getattr(function, _SETTINGS, None)
    return settings if isinstance(settings, str) else None


def _is_measure(variables: Mapping[str, Any]) -> bool:
    return not any(isinstance(value, str) and value.strip() for value in variables.values())


def _filled(format_: str, example: Example) -> str:
    return format_.format(question=example.question, answer=example.answer)


def _check_format(format_: str, separator: str) -> None:
    try:
        filled = format_.format(question="\0", answer="\1")
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise InvalidInput(f"example must be a string with {{question}} and {{answer}}: {error!r}") from None
    if "\0" not in filled or "\1" not in filled or not separator:
        raise InvalidInput("example must hold {question} and {answer}, and separator must not be empty")
