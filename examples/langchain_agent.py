"""A LangChain agent whose steps are cached: what it found out is not found out again, and not kept too long.

    python examples/langchain_agent.py                                # anywhere: no key, no network
    python examples/langchain_agent.py --model openai:gpt-4o-mini     # any `provider:name` of init_chat_model

The agent is `build_agent`: two tools over real data, and `IbidemMiddleware`. The rest asks it and shows how
often model and tools were called. Exit code 1 if the cache did anything wrong.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from common.corpus import language_reference
from common.demo import start
from common.langchain_parts import OfflineAgent, choose_model
from common.reader import rare_words
from common.telling import summary
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import StructuredTool
from rich.console import Console
from rich.table import Table

from langchain_ibidem import IbidemMiddleware

ASKED = "When is the else clause of a while loop executed?"
OTHER = "When is the finally clause of a try statement executed?"


class Reference:
    """Python's language reference and the clock of this machine, as tools of an agent."""

    def __init__(self) -> None:
        self.passages = language_reference()
        self.called: Counter[str] = Counter()

    def search_reference(self, words: str) -> str:
        """Search Python's language reference for words; returns the three passages that fit best."""
        self.called["search_reference"] += 1
        held = [rare_words(passage.text) for passage in self.passages]
        frequency = Counter(word for words_of_one in held for word in words_of_one)
        asked = rare_words(words)
        scores = [sum(math.log(len(held) / frequency[word]) for word in asked & one) for one in held]
        best = sorted(range(len(held)), key=lambda number: -scores[number])[:3]
        return "\n\n".join(self.passages[number].text for number in best)

    def read_clock(self) -> str:
        """Tell what time it is."""
        self.called["read_clock"] += 1
        return f"It is {datetime.now():%H:%M:%S.%f}."

    def edit(self, old: str, new: str) -> None:
        """Put other words in the place of some."""
        self.passages = [replace(one, text=one.text.replace(old, new)) for one in self.passages]


def build_agent(model: BaseChatModel, reference: Reference, middleware: IbidemMiddleware) -> Any:
    """An agent with two tools."""
    tools = [StructuredTool.from_function(one) for one in (reference.read_clock, reference.search_reference)]
    prompt = "Answer in two sentences from what your tools tell you; call a tool first."
    return create_agent(model, tools, system_prompt=prompt, middleware=[middleware])


def run(options: Namespace, answers: Path, console: Console) -> bool:
    """The demo; whether all went as it must."""
    model, reference = choose_model(options, OfflineAgent(delay=options.delay)), Reference()
    table = Table("question", "model calls", "tool calls", "tokens saved", "answer", box=None)

    def ask(agent: Any, what: str, question: str) -> tuple[int, str]:
        """How often the model was called for the answer, and the answer."""
        before = reference.called.total()
        messages = agent.invoke({"messages": [("user", question)]})["messages"]
        steps = [one for one in messages if isinstance(one, AIMessage)]
        hits = [one.response_metadata["ibidem"] for one in steps if "ibidem" in one.response_metadata]
        saved = sum(hit["saved_tokens"]["total_tokens"] for hit in hits)
        calls, tools, answer = len(steps) - len(hits), reference.called.total() - before, steps[-1].text
        table.add_row(f"{what}: {question}", str(calls), str(tools), str(saved), answer[:60])
        return calls, answer

    own = {"path": answers, "min_probability": options.min_probability}
    with IbidemMiddleware(volatile=["read_clock"], **own) as middleware:
        agent = build_agent(model, reference, middleware)
        first, answer = ask(agent, "first", ASKED)
        again, repeated = ask(agent, "the same", ASKED)
        other, _ = ask(agent, "another", OTHER)
        reference.edit("else", "otherwise")
        edited, _ = ask(agent, "reference edited", ASKED)
        (_, earlier), (_, later) = (ask(agent, "volatile", "What time is it?") for _ in range(2))
        done = summary(middleware.cache.cache.stats())

    console.print(table)
    checks = {
        "the same question gets the answer without asking the model": again == 0 and repeated == answer,
        "another question is asked": other > 0 and first > 0,
        "when the reference says something else, the model is asked again": edited > 0,
        "what the clock says is not kept": earlier != later,
    }
    for text, good in checks.items():
        console.print(f"{'ok    ' if good else 'FAILED'} {text}")
    console.print(done, markup=False)
    return all(checks.values())


if __name__ == "__main__":
    sys.exit(start(run, __doc__, model="provider:name for init_chat_model"))
