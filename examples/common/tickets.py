"""Messages to a shop, each with who has to read it; and a stand-in for a model that sorts them."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from common.reader import estimated_tokens

COPIER = "offline copier of examples, not an LLM"
_EXAMPLE = re.compile(r"^Team: (\w+)$", re.MULTILINE)


class Copier(BaseChatModel):
    """Says what most examples in its prompt say, the last of them if that is a draw: "unknown" without any.

    So it is right exactly as often as the examples that it is shown fit the question.
    """

    @property
    def _llm_type(self) -> str:
        return "offline-copier"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": COPIER}

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        shown = "\n".join(str(message.content) for message in messages)
        said = [name for name, _ in Counter(reversed(_EXAMPLE.findall(shown))).most_common(1)] or ["unknown"]
        asked = estimated_tokens(shown)
        usage: Any = {"input_tokens": asked, "output_tokens": 1, "total_tokens": asked + 1}
        told = {"model_name": COPIER, "finish_reason": "stop"}
        message = AIMessage(said[0], usage_metadata=usage, response_metadata=told)
        return ChatResult(generations=[ChatGeneration(message=message)])


def read_tickets() -> list[tuple[str, str]]:
    """All messages with their team, in an order that is random and always the same."""
    path = Path(__file__).parent.parent / "tickets.json"
    teams: dict[str, Sequence[str]] = json.loads(path.read_text("utf-8"))
    tickets = [(text, team) for team, texts in teams.items() for text in texts]
    random.Random(0).shuffle(tickets)  # noqa: S311
    return tickets
