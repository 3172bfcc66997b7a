"""Fine-tune a model on exported answers: LoRA (Hu et al. 2021) with trl and peft.

    ibidem export --out answers                           # or ibidem_lab.export(cache.examples, "answers")
    python examples/finetune_lora.py answers                   # anywhere: a tiny random model, to try
    python examples/finetune_lora.py answers --model NAME      # of the Hugging Face Hub, or a directory

Reads the forms openai-chat and prompt-completion. Prints the loss on the answers of the test file before
and after; no question there is a paraphrase of one in the training. Needs `pip install trl peft`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_utils import set_seed
from trl import SFTConfig, SFTTrainer

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
END = "<|end|>"
SPECIAL = [END, "<|system|>", "<|user|>", "<|assistant|>"]


def load(folder: Path) -> dict[str, Dataset]:
    """Training and test as prompts and completions, so that only the answers are learned."""
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    if missing := [file for file in files.values() if not Path(file).is_file()]:
        sys.exit(f"there is no {missing[0]}; export with a --test-share above 0")
    data = load_dataset("json", data_files=files)
    if "messages" in data["train"].column_names:
        data = data.map(halves, remove_columns=["messages"])
    if "prompt" not in data["train"].column_names:
        sys.exit("export with --format openai-chat or prompt-completion")
    return dict(data)


def halves(row: dict[str, Any]) -> dict[str, Any]:
    """A chat as what is asked, and the answer."""
    return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}


def write_tiny_model(texts: list[str], folder: Path) -> str:
    """A Llama of random weights and a tokenizer made of these texts: it learns, and is of no use."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, special_tokens=SPECIAL, initial_alphabet=letters)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=1024,
        initializer_range=0.1,  # with the usual 0.02 no adapter could make such a small model sure of a word
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def train(options: argparse.Namespace) -> None:
    """Train the adapter and say what came of it."""
    set_seed(options.seed)
    data = load(options.folder)
    model = options.model or write_tiny_model([str(row) for row in data["train"]], options.out / "base")
    settings = SFTConfig(
        output_dir=str(options.out), num_train_epochs=options.epochs, learning_rate=options.rate,
        per_device_train_batch_size=options.batch, per_device_eval_batch_size=options.batch,
        max_length=options.tokens, completion_only_loss=True, seed=options.seed, use_cpu=options.cpu,
        bf16=False, logging_strategy="epoch", save_strategy="no", report_to="none",
    )  # fmt: skip
    rank = options.rank
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model, settings, train_dataset=data["train"], eval_dataset=data["test"], peft_config=lora
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    trainer.save_model()
    print(f"loss on the test: {before:.3f} before, {after:.3f} after")
    print(f"The adapter is in {options.out}. To load it:")
    print("    from peft import AutoPeftModelForCausalLM")
    print(f"    model = AutoPeftModelForCausalLM.from_pretrained({str(options.out)!r})")


def read_options() -> argparse.Namespace:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    options.add_argument("folder", type=Path, help="what `ibidem export` wrote")
    options.add_argument("--model", help="to fine-tune; default: a tiny one of random weights")
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
    train(read_options())
