"""A transformer of the shape of the base models that is small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

if TYPE_CHECKING:
    from ibidem_lab.models.network import CrossEncoder

WORDS = """a an the my which car one please never red green blue black white brown pink grey first thing
another matter north south and much longer text behind it word b"""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random MPNet of four layers that knows some words."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    known = {word: place for place, word in enumerate([*SPECIAL, *WORDS.split()])}
    config = transformers.MPNetConfig(
        vocab_size=len(known),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
    )
    transformers.MPNetModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", known["[CLS]"]), ("[SEP]", known["[SEP]"])],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def model(tiny: Path) -> CrossEncoder:
    """A cross-encoder that is not trained, but tells pairs apart: its weights are larger than usual."""
    torch = pytest.importorskip("torch")
    from ibidem_lab.models.network import CrossEncoder

    torch.manual_seed(1)
    made = CrossEncoder(tiny)
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(3.0) if weight.ndim > 1 else None
    return made.eval()
