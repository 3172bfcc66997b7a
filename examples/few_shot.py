"""Few-shot from the log: a prompt that holds the answered questions nearest to the new one.

    python examples/few_shot.py                                # anywhere: no key, no network
    python examples/few_shot.py --model openai:gpt-4o-mini     # any `provider:name` of init_chat_model

The prompt is `few_shot_prompt`. The rest fills the log step by step with messages to a shop that people have
sorted. After each step the model sorts 24 others: without examples, with four drawn at random, and with the
four that Ibidem selects. Exit code 1 if these do not help.
"""

from __future__ import annotations

import random
import sys
import tempfile
from argparse import ArgumentParser, RawTextHelpFormatter
from collections.abc import Sequence
from typing import Any

from common.langchain_parts import choose_model
from common.reader import estimated_tokens
from common.report import make_console
from common.tickets import COPIER, Copier, read_tickets
from langchain_core.example_selectors import BaseExampleSelector
from langchain_core.language_models import BaseChatModel
from langchain_core.prompts import FewShotPromptTemplate, PromptTemplate
from rich.table import Table

import ibidem
from ibidem.cache import SemanticCache
from langchain_ibidem import IbidemExampleSelector

TASK = "Whose is this message to a shop: return, delivery, payment, account, repair or stock? One word."
EXAMPLE = PromptTemplate.from_template("Message: {question}\nTeam: {answer}")
SIZES = (6, 12, 24, 48)


def few_shot_prompt(selector: BaseExampleSelector) -> FewShotPromptTemplate:
    """The prompt: task, examples, message."""
    return FewShotPromptTemplate(
        prefix=TASK,
        example_selector=selector,
        example_prompt=EXAMPLE,
        suffix="Message: {question}\nTeam:",
        input_variables=["question"],
    )


class Drawn(BaseExampleSelector):
    """Examples without a choice: some at random, or all."""

    def __init__(self, log: Sequence[tuple[str, str]], count: int) -> None:
        self.log, self.count, self.draw = log, count, random.Random(0)  # noqa: S311

    def select_examples(self, input_variables: dict[str, str]) -> list[dict[str, Any]]:
        """Whatever is asked."""
        found = self.draw.sample(self.log, min(self.count, len(self.log)))
        return [{"question": text, "answer": team} for text, team in found]

    def add_example(self, example: dict[str, str]) -> None:
        """There are no others."""


def sort(model: BaseChatModel, selector: BaseExampleSelector, tickets: list[tuple[str, str]]) -> int:
    """How many messages the model gives to the right team."""
    said = (few_shot_prompt(selector) | model).batch([{"question": text} for text, _ in tickets])
    return sum(one.text.strip(" .").lower() == team for one, (_, team) in zip(said, tickets, strict=True))


def tokens(selector: BaseExampleSelector, tickets: list[tuple[str, str]]) -> int:
    """About how long the prompts are."""
    prompts = [few_shot_prompt(selector).format(question=text) for text, _ in tickets]
    return sum(map(estimated_tokens, prompts)) // len(prompts)


def learn(model: BaseChatModel, cache: SemanticCache) -> tuple[Table, bool]:
    """Fill the log and ask; what came of it, and whether the examples helped."""
    tickets = read_tickets()
    known, asked = tickets[: max(SIZES)], tickets[max(SIZES) :]
    columns = (
        "examples in the log",
        "right without",
        "with 4 at random",
        "with 4 selected",
        "tokens",
        "with all",
    )
    table = Table(*columns, box=None)
    without, filled, selected = sort(model, Drawn([], 0), asked), 0, 0
    for size in SIZES:
        for text, team in known[filled:size]:
            cache.examples.add(ibidem.Example(text, team))
        cache.flush()
        log, filled = known[:size], size
        selector = IbidemExampleSelector(cache, k=4)
        selected, at_random = sort(model, selector, asked), sort(model, Drawn(log, 4), asked)
        lengths = tokens(selector, asked), tokens(Drawn(log, size), asked)
        table.add_row(*map(str, (size, without, at_random, selected, *lengths)))
    return table, selected > without


def main() -> int:
    """Read the options; 0 if examples helped."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument(
        "--model", metavar="NAME", help=f"provider:name for init_chat_model; default: {COPIER}"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, ibidem.open(place) as cache:
        table, helped = learn(choose_model(options, Copier()), cache)
    console = make_console(plain=True)
    console.print(f"Model: {options.model or COPIER}. Of {len(read_tickets()) - max(SIZES)} messages:")
    console.print(table)
    return 0 if helped else 1


if __name__ == "__main__":
    sys.exit(main())
