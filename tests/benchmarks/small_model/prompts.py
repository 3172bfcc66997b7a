"""Few-shot prompts of a task, by LangChain's template, within so many tokens of the model's own tokenizer."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from langchain_core.example_selectors import BaseExampleSelector
from langchain_core.prompts import FewShotPromptTemplate, PromptTemplate

import ibidem
from ibidem.cache import SemanticCache
from langchain_ibidem import IbidemExampleSelector
from tests.benchmarks.small_model.tasks import Pair, Task

Kind = Literal["none", "labels named", "fixed", "random", "similarity", "diversity", "turned round"]
DRAWS = 5  # of random examples, for as many parts of what is asked
MOST = 60  # examples in a prompt
DIVERSITY = {
    "similarity": 0.0,
    "turned round": 0.0,
    "diversity": 0.3,
}  # the second is the default of `select`


@dataclass(frozen=True)
class Arm:
    """A kind of prompt: its examples, its most tokens (0: no limit), and whether it holds the document."""

    kind: Kind
    budget: int = 0
    document: bool = False


class Chosen(BaseExampleSelector):
    """Examples that are the same for every question."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        self.pairs = [{"question": question, "answer": answer} for question, answer in pairs]

    def select_examples(self, input_variables: dict[str, str]) -> list[dict[str, Any]]:
        """Whatever is asked."""
        return self.pairs

    def add_example(self, example: dict[str, str]) -> None:
        """There are no others."""


class TurnedRound(Chosen):
    """The examples of another selector in the opposite order."""

    def __init__(self, selector: BaseExampleSelector) -> None:
        self.selector = selector

    def select_examples(self, input_variables: dict[str, str]) -> list[dict[str, Any]]:
        """The last first."""
        return self.selector.select_examples(input_variables)[::-1]


class Prompts:
    """The prompts of a task.

    Args:
        task: The task.
        cache: Its log.
        count: Counts the tokens of a text.
    """

    def __init__(self, task: Task, cache: SemanticCache, count: Callable[[str], int]) -> None:
        self.task, self.cache, self.count = task, cache, count
        shown = f"{task.question} {{question}}\n{task.answer} {{answer}}"
        self._shown = PromptTemplate.from_template(shown)
        # Of each example, what stands around question and answer; half of it is counted with each.
        self._around = -(-(count(self._shown.format(question="", answer="") + "\n\n") + 1) // 2)

    def of(self, arm: Arm) -> list[str]:
        """The prompt of each question asked."""
        size = len(self.task.asked)
        parts = DRAWS if arm.kind == "random" else 1
        templates = [self._template(arm, draw) for draw in range(parts)]
        return [
            templates[at * parts // size].format(question=question, context=self._context(question, arm))
            for at, (question, _) in enumerate(self.task.asked)
        ]

    def _template(self, arm: Arm, draw: int) -> FewShotPromptTemplate:
        named = f" The topics: {', '.join(self.task.labels)}." if arm.kind == "labels named" else ""
        return FewShotPromptTemplate(
            prefix=self.task.says + named,
            example_selector=self._selector(arm, draw),
            example_prompt=self._shown,
            suffix=f"{{context}}{self.task.question} {{question}}\n{self.task.answer}",
            input_variables=["question", "context"],
        )

    def _context(self, question: str, arm: Arm) -> str:
        return f"Text: {self.task.passages[question]}\n" if arm.document else ""

    def room(self, arm: Arm) -> int:
        """How many tokens the examples may have beside the longest question."""
        bare = self._template(Arm("none", document=arm.document), 0)
        lengths = [
            self.count(bare.format(question=question, context=self._context(question, arm)))
            for question, _ in self.task.asked
        ]
        return arm.budget - max(lengths) - 2  # the token that begins a text, and a blank line that may be two

    def _selector(self, arm: Arm, draw: int) -> BaseExampleSelector:
        if arm.kind in ("none", "labels named"):
            return Chosen([])
        if arm.kind == "fixed":
            return Chosen(self._filled(self.one_each, arm))
        if arm.kind == "random":
            log = list(self.task.log)
            random.Random(draw).shuffle(log)
            return Chosen(self._filled(log, arm))
        selector = IbidemExampleSelector(
            self.cache,
            k=MOST,
            max_tokens=self.room(arm),
            count_tokens=self._counted,
            diversity=DIVERSITY[arm.kind],
        )
        return TurnedRound(selector) if arm.kind == "turned round" else selector

    def _counted(self, text: str) -> int:
        return self.count(f" {text}") + self._around

    def _filled(self, pairs: Sequence[Pair], arm: Arm) -> list[Pair]:
        """As many as there is room for, from the first; one that is too long is passed over."""
        left, found = self.room(arm), list[Pair]()
        for question, answer in pairs:
            if len(found) < MOST and (tokens := self._counted(question) + self._counted(answer)) <= left:
                left -= tokens
                found.append((question, answer))
        return found

    @cached_property
    def one_each(self) -> list[Pair]:
        """What somebody would put into a prompt by hand: one example of each kind, the commonest first."""
        kinds = Counter(answer for _, answer in self.task.log)
        first = {answer: question for question, answer in reversed(self.task.log)}
        return [(first[answer], answer) for answer, _ in kinds.most_common()]


def fill(cache: SemanticCache, pairs: Iterable[Pair]) -> None:
    """Put answered questions into the log, called good, with their vectors."""
    for question, answer in pairs:
        cache.examples.add(ibidem.Example(question, answer, feedback=True))
    cache.flush()
    while cache.examples._shared.selector.embed_some(""):
        pass
