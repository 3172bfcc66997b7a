"""Every form of an export, loaded by the libraries that train on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

import ibidem_lab
from ibidem import Example
from ibidem_lab.exporting.choice import Format
from tests.conftest import OpenCache

SYSTEM = "Answer in one sentence.\u2028Be brief."
# Of these libraries, at import and in use; nothing of ours warns so.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def question(n: int) -> str:
    return f"question {n} of {n}"


def answer(n: int) -> str:
    return f'answer "{n}"\n\u0085 of {n}'


def expected(form: str, n: int) -> dict[str, Any]:
    """What the documentation of the consumers asks for."""
    turns = (SYSTEM, question(n), answer(n))
    roles, speakers = ("system", "user", "assistant"), ("system", "human", "gpt")
    return {
        "openai-chat": {"messages": [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]},
        "prompt-completion": {"prompt": f"{SYSTEM}\n\n{question(n)}\n\n", "completion": answer(n)},
        "alpaca": {"instruction": question(n), "input": "", "output": answer(n), "system": SYSTEM},
        "sharegpt": {
            "conversations": [{"from": s, "value": t} for s, t in zip(speakers, turns, strict=True)]
        },
    }[form]


@pytest.fixture
def exported(open_cache: OpenCache, tmp_path: Path) -> Callable[..., Path]:
    """Writes an export in a form; returns its folder."""
    cache = open_cache()
    for n in range(30):
        cache.examples.add(Example(question(n), answer(n)))

    def export(form: Format) -> Path:
        ibidem_lab.export(
            cache.examples, tmp_path / form, form, system=SYSTEM, near=1, apart=0.99, test_share=0.2
        )
        return tmp_path / form

    return export


def loaded(folder: Path) -> dict[str, list[dict[str, Any]]]:
    datasets = pytest.importorskip("datasets")
    files = {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}
    data = datasets.load_dataset("json", data_files=files, cache_dir=str(folder / ".cache"))
    return {name: list(rows) for name, rows in data.items()}


@pytest.mark.parametrize("form", get_args(Format))
def test_datasets_reads_every_form(exported: Callable[..., Path], form: Format) -> None:
    """As many rows as the manifest says, every text as it was, in its place."""
    folder = exported(form)
    told = json.loads((folder / "manifest.json").read_text("utf-8"))
    data = loaded(folder)

    assert {name: len(rows) for name, rows in data.items()} == {"train": 24, "test": 6}
    assert (told["train"], told["test"]) == (24, 6)
    rows = sorted(map(repr, (*data["train"], *data["test"])))
    assert rows == sorted(repr(expected(form, n)) for n in range(30))


def test_datasets_reads_the_folder_by_its_name(exported: Callable[..., Path]) -> None:
    """Manifest and list of what was dropped are not taken for data."""
    datasets = pytest.importorskip("datasets")
    folder = exported("openai-chat")
    data = datasets.load_dataset(str(folder), cache_dir=str(folder.parent / "cached"))

    assert {name: rows.column_names for name, rows in data.items()} == {
        "train": ["messages"],
        "test": ["messages"],
    }


@pytest.mark.slow  # the import takes seconds
class TestTrl:
    """Its own functions turn the rows into what is trained on."""

    @pytest.fixture(scope="class")
    def tokenizer(self) -> Any:
        """A tokenizer of single bytes with a chat template."""
        transformers = pytest.importorskip("transformers")
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        letters = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        raw = Tokenizer(models.BPE(vocab=letters, merges=[]))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        found = transformers.PreTrainedTokenizerFast(tokenizer_object=raw)
        found.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        return found

    @pytest.mark.parametrize(
        ("form", "user", "model"), [("openai-chat", "user", "assistant"), ("sharegpt", "human", "gpt")]
    )
    def test_chats_pass_its_chat_template(
        self, exported: Callable[..., Path], tokenizer: Any, form: Format, user: str, model: str
    ) -> None:
        """ShareGPT's form after trl's conversion, which leaves the names of the speakers."""
        trl = pytest.importorskip("trl.data_utils")
        rows = [trl.maybe_convert_to_chatml(row) for row in loaded(exported(form))["test"]]
        texts = [trl.apply_chat_template(row, tokenizer)["text"] for row in rows]

        assert all(trl.is_conversational(row) for row in rows)
        assert len(texts) == 6
        for text in texts:
            n = int(text.rsplit(" ", 1)[1])
            assert text == f"[system]{SYSTEM}[{user}]{question(n)}[{model}]{answer(n)}"
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    def test_completions_are_joined_as_they_are(self, exported: Callable[..., Path], tokenizer: Any) -> None:
        """The tokens of the prompt are the beginning of those of both, which trl warns of if they are not."""
        trl = pytest.importorskip("trl.data_utils")
        for row in loaded(exported("prompt-completion"))["test"]:
            prompt = tokenizer(row["prompt"])["input_ids"]

            assert not trl.is_conversational(row)
            assert tokenizer(row["prompt"] + row["completion"])["input_ids"][: len(prompt)] == prompt
