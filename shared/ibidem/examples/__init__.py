"""The example log: answered questions, kept for few-shot prompts and for training."""
