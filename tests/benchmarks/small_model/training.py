"""LoRA (Hu et al. 2021) of the model on an exported set, by trl and peft, on the processor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RANK, RATE, BATCH, TOKENS = 8, 1e-3, 8, 96
SEEN = 2_000  # answers that a training sees, if they are seen at most `PASSES` times
PASSES = 4


def rows(folder: Path, form: str) -> Iterator[dict[str, str]]:
    """The training set of an export as prompts and completions, whatever its form."""
    for line in (folder / "train.jsonl").read_text(encoding="utf-8").split("\n"):
        if line:
            yield _as_completion(json.loads(line), form)


def _as_completion(row: dict[str, Any], form: str) -> dict[str, str]:
    if form == "alpaca":
        said = [row.get("system", ""), row["input"], row["instruction"], row["output"]]
    elif form == "sharegpt":
        said = [turn["value"] for turn in row["conversations"]]
    elif form == "openai-chat":
        said = [turn["content"] for turn in row["messages"]]
    else:
        return {"prompt": row["prompt"], "completion": row["completion"]}
    return {"prompt": "\n\n".join(filter(None, said[:-1])) + "\n\n", "completion": said[-1]}


def passes(count: int) -> int:
    """How often the answers of a training set are seen."""
    return max(1, min(PASSES, round(SEEN / count)))


def train(model: Path, data: list[dict[str, str]], out: Path, epochs: int) -> float:
    """Train an adapter, write it to `out`, and return the mean loss of the last tenth of the steps."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers.utils import logging
    from trl import SFTConfig, SFTTrainer

    class Trainer(SFTTrainer):  # type: ignore[misc]
        """Computes the loss of the answers alone.

        On a processor trl multiplies every position by the head, which is larger than the rest of the model.
        """

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **given: Any) -> Any:
            from torch.nn.functional import cross_entropy

            inner = self.accelerator.unwrap_model(model).get_base_model()
            labels = inputs["labels"][:, 1:]
            read = inner.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            learned = labels != -100
            scores = inner.lm_head(read.last_hidden_state[:, :-1][learned])
            loss = cross_entropy(scores.float(), labels[learned])
            return (loss, {"loss": loss}) if return_outputs else loss

    logging.disable_progress_bar()
    settings = SFTConfig(
        output_dir=str(out), num_train_epochs=epochs, learning_rate=RATE, warmup_steps=10,
        per_device_train_batch_size=BATCH, max_length=TOKENS, completion_only_loss=True, seed=0, use_cpu=True,
        bf16=False, activation_checkpointing=False, logging_steps=5, save_strategy="no", report_to="none",
        disable_tqdm=True, train_sampling_strategy="group_by_length",
        model_init_kwargs={"dtype": "bfloat16"},
    )  # fmt: skip
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = Trainer(str(model), settings, train_dataset=Dataset.from_list(data), peft_config=lora)
    trainer.train()
    trainer.save_model()
    losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)
