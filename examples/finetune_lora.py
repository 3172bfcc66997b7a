"""Fine-tune a model on exported answers: LoRA (Hu et al. 2021) with trl and peft.

    ibidem export --out answers                                        # or cache.examples.export("answers")
    python examples/finetune_lora.py answers                           # anywhere: a tiny random model, to try
    python examples/finetune_lora.py answers --model Qwen/Qwen2.5-0.5B-Instruct --out adapter

Reads the forms openai-chat and prompt-completion. Prints the loss on the test file before and after; no question
there is a paraphrase of one in the training. Needs `pip install trl peft`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from datasets import Dataset, load_dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers.trainer_utils import set_seed
from trl import SFTConfig, SFTTrainer

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def load(folder: Path) -> dict[str, Dataset]:
    """The training and the test file; the chats as prompt and completion, so that only answers are learned."""
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    missing = [file for file in files.values() if not Path(file).is_file()]
    if missing:
        sys.exit(f"there is no {missing[0]}; export with a --test-share above 0")
    return {name: split.map(_halves, remove_columns=_chats(split)) for name, split in _read(files).items()}


def _read(files: dict[str, str]) -> dict[str, Dataset]:
    return load_dataset("json", data_files=files)


def _chats(split: Dataset) -> list[str]:
    if not {"messages", "prompt"} & set(split.column_names):
        sys.exit("export as openai-chat or prompt-completion")
    return ["messages"] if "messages" in split.column_names else []


def _halves(row: dict) -> dict:
    if "messages" not in row:
        return row
    return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}


def tiny_model(texts: list[str]) -> tuple[LlamaForCausalLM, FastTokenizer]:
    """A Llama of 0.3 million random weights and a tokenizer made of these texts: it learns, and is of no use."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = FastTokenizer(tokenizer_object=tokenizer, eos_token=SPECIAL[0], pad_token=SPECIAL[0])
    fast.chat_template = CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=1024, eos_token_id=0, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config), fast


def train(options: argparse.Namespace) -> tuple[float, float]:
    """The loss per token of the test's answers, before and after."""
    set_seed(options.seed)
    data = load(options.folder)
    if options.model:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        model = AutoModelForCausalLM.from_pretrained(options.model)
    else:
        model, tokenizer = tiny_model([str(row) for row in data["train"]])
    settings = SFTConfig(
        output_dir=str(options.out), num_train_epochs=options.epochs, learning_rate=options.rate,
        per_device_train_batch_size=options.batch, per_device_eval_batch_size=options.batch, seed=options.seed,
        max_length=options.tokens, completion_only_loss=True, logging_strategy="epoch", save_strategy="no",
        report_to="none", use_cpu=options.cpu, bf16=False, gradient_checkpointing=False,
    )  # fmt: skip
    lora = LoraConfig(
        r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    trainer = SFTTrainer(
        model, settings, train_dataset=data["train"], eval_dataset=data["test"],
        processing_class=tokenizer, peft_config=lora,
    )  # fmt: skip
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    trainer.save_model()
    if not options.model:
        trainer.model.get_base_model().config.save_pretrained(options.out)
    return before, after


def read_options() -> argparse.Namespace:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("folder", type=Path, help="what `ibidem export` wrote")
    options.add_argument("--model", help="a model of the Hub, or a directory; default: a tiny random one")
    options.add_argument("--out", type=Path, default=Path("adapter"), help="for the adapter")
    options.add_argument("--epochs", type=float, default=3.0)
    options.add_argument("--rate", type=float, default=2e-4, help="learning rate")
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--rank", type=int, default=16, help="of the adapter's matrices")
    options.add_argument("--tokens", type=int, default=1024, help="at which an example is cut")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--cpu", action="store_true", help="even if there is a GPU")
    return options.parse_args()


if __name__ == "__main__":
    chosen = read_options()
    before, after = train(chosen)
    print(f"loss on the test: {before:.3f} before, {after:.3f} after")
    print(f"The adapter is in {chosen.out}. To use it:")
    print(
        f"    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({chosen.model!r}), {str(chosen.out)!r})"
    )
