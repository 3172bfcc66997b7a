"""A LlamaIndex RAG app over Python's language reference whose answers are cached by meaning.

    python examples/llama_index_rag.py                                # anywhere: no key, no network
    python examples/llama_index_rag.py --model openai:gpt-4o-mini     # any model of OpenAI

The app is `index`, `build_engine` and the line with `CachedLLM`. The rest asks questions and shows what the
cache did with them. Exit code 1 if it did anything wrong.
"""

from __future__ import annotations

import platform
import sys
from argparse import Namespace
from pathlib import Path
from typing import cast

from common.corpus import language_reference
from common.demo import App, Lookups, batches, demonstrate, start
from common.llama_index_parts import (
    IndexedPassages,
    LocalEmbedding,
    OfflineReaderLLM,
    as_node,
    choose_model,
)
from common.telling import summary
from llama_index.core import Settings, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.base.base_query_engine import BaseQueryEngine
from rich.console import Console

import ibidem
from ibidem.embedding import resolve_embedder
from llama_index_ibidem import CachedLLM


def index(directory: Path, console: Console) -> VectorStoreIndex:
    """The language reference as an index; what an earlier run has indexed is not embedded again."""
    folder = directory / "llama_index" / f"python-{platform.python_version()}"
    if folder.exists():
        stored = StorageContext.from_defaults(persist_dir=str(folder))
        return cast(VectorStoreIndex, load_index_from_storage(stored))
    found = VectorStoreIndex([])
    for batch in batches(language_reference(), console):
        found.insert_nodes([as_node(passage) for passage in batch])
    unfinished = folder.with_name(f"{folder.name}-unfinished")
    found.storage_context.persist(str(unfinished))
    unfinished.rename(folder)
    return found


def build_engine(passages: VectorStoreIndex) -> BaseQueryEngine:
    """The plainest query engine there is. Nothing in it knows of the cache."""
    return passages.as_query_engine(similarity_top_k=4)


def run(options: Namespace, answers: Path, console: Console) -> bool:
    """The demo; whether all went as it must."""
    model = choose_model(options.model, OfflineReaderLLM(delay=options.delay))
    embedder = resolve_embedder()
    Settings.embed_model = LocalEmbedding(embedder)
    passages = index(options.dir, console)

    seen: Lookups = []  # a program that need not know why a question missed leaves `on_lookup` out
    cache = ibidem.open(
        path=answers,
        embedder=embedder,
        min_probability=options.min_probability,
        on_lookup=lambda request, result: seen.append(result),
    )
    Settings.llm = CachedLLM(model, cache)
    engine = build_engine(passages)

    def answer(question: str) -> str:
        return str(engine.query(question))

    with cache:
        good = demonstrate(App(answer, IndexedPassages(passages), seen), options, console)
        console.print(summary(cache.stats()), markup=False)
    return good


if __name__ == "__main__":
    sys.exit(start(run, __doc__, model="openai:NAME"))
