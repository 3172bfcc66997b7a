"""An example as a line of training data, in the forms that fine-tuning programs read."""

from __future__ import annotations

import json
from typing import Any, Literal

Format = Literal["openai-chat", "prompt-completion", "alpaca", "sharegpt"]
FORMATS = ("openai-chat", "prompt-completion", "alpaca", "sharegpt")

# Legal in JSON, but ends of lines to `str.splitlines`.
_LINE_ENDS = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "\u0085\u2028\u2029"})


def line(form: Format, question: str, answer: str, context: str = "", system: str = "") -> bytes:
    """The example as one line of JSON in UTF-8, with its newline.

    | form | keys | read by |
    |---|---|---|
    | openai-chat | messages: role, content | OpenAI, trl, axolotl, LLaMA-Factory, Unsloth |
    | prompt-completion | prompt, completion | trl, OpenAI's completion models |
    | alpaca | instruction, input, output, and system if given | LLaMA-Factory, axolotl, Unsloth |
    | sharegpt | conversations: from, value | LLaMA-Factory, axolotl, Unsloth |

    Args:
        form: One of `FORMATS`.
        question: The user's question.
        answer: What the model learns to say.
        context: Documents that stand before the question in the prompt.
        system: The system prompt; it stands first.
    """
    record = _RECORDS[form](question, answer, context, system)
    return json.dumps(record, ensure_ascii=False).translate(_LINE_ENDS).encode() + b"\n"


def _chat(question: str, answer: str, context: str, system: str) -> dict[str, Any]:
    turns = (("system", system), ("user", _joined(context, question)), ("assistant", answer))
    return {"messages": [{"role": role, "content": text} for role, text in turns if text]}


def _completion(question: str, answer: str, context: str, system: str) -> dict[str, Any]:
    # Trainers put the two together as they are.
    return {"prompt": _joined(system, context, question) + "\n\n", "completion": answer}


def _alpaca(question: str, answer: str, context: str, system: str) -> dict[str, Any]:
    record = {"instruction": question, "input": context, "output": answer}
    return {**record, "system": system} if system else record


def _sharegpt(question: str, answer: str, context: str, system: str) -> dict[str, Any]:
    turns = (("system", system), ("human", _joined(context, question)), ("gpt", answer))
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in turns if text]}


_RECORDS = {
    "openai-chat": _chat,
    "prompt-completion": _completion,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
}


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)
