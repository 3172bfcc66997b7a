"""Names under which model providers report why a model stopped and how many tokens it took."""

from __future__ import annotations

from typing import Any

#: In order of precedence.
FINISH_REASON_KEYS = ("finish_reason", "stop_reason", "done_reason", "stopReason", "finishReason")
INPUT_TOKEN_KEYS = (
    "prompt_tokens",
    "input_tokens",
    "prompt_token_count",
    "prompt_eval_count",
    "inputTokens",
)
OUTPUT_TOKEN_KEYS = (
    "completion_tokens",
    "output_tokens",
    "candidates_token_count",
    "eval_count",
    "outputTokens",
)
TOTAL_TOKEN_KEYS = ("total_tokens", "total_token_count", "totalTokens")
#: Fields that hold all token counts of a response.
USAGE_KEYS = ("usage", "usage_metadata", "token_usage")
MODEL_KEYS = ("model_name", "model")


def zeroed(usage: Any) -> Any:
    """Return the same shape with every number 0, for programs that add up the usage of responses."""
    if isinstance(usage, dict):
        return {key: zeroed(value) for key, value in usage.items()}
    return 0 if isinstance(usage, (int, float)) else usage
