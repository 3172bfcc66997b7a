"""A LangChain RAG app over Python's language reference whose answers are cached by meaning.

    python examples/langchain_rag.py                                # anywhere: no key, no network
    python examples/langchain_rag.py --model openai:gpt-4o-mini     # any `provider:name` of init_chat_model

The app is `index`, `build_chain` and the line with `set_llm_cache`. The rest asks questions and shows what
the cache did with them. Exit code 1 if it did anything wrong.
"""

from __future__ import annotations

import platform
import sys
from argparse import Namespace
from pathlib import Path

from common.corpus import language_reference
from common.demo import App, Lookups, batches, demonstrate, start
from common.langchain_parts import (
    LocalEmbeddings,
    OfflineReader,
    StoredPassages,
    as_document,
    choose_model,
)
from common.telling import summary
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough
from rich.console import Console

from ibidem.embedding import resolve_embedder
from langchain_ibidem import IbidemCache

PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer from these excerpts of the Python reference, in two sentences.\n\n{context}"),
        ("human", "{question}"),
    ]
)


def index(directory: Path, embeddings: LocalEmbeddings, console: Console) -> Chroma:
    """The language reference as a vector store; what an earlier run has indexed is not embedded again."""
    name = f"python-{platform.python_version()}"
    store = Chroma(name, embeddings, persist_directory=str(directory / "documents"))
    known = set(store.get(include=[])["ids"])
    new = [passage for passage in language_reference() if passage.id not in known]
    for batch in batches(new, console):
        store.add_documents([as_document(passage) for passage in batch])
    return store


def build_chain(store: Chroma, model: BaseChatModel) -> Runnable[str, str]:
    """The plainest RAG chain there is. Nothing in it knows of the cache."""
    context = store.as_retriever(search_kwargs={"k": 4}) | join
    return {"context": context, "question": RunnablePassthrough()} | PROMPT | model | StrOutputParser()


def join(documents: list[Document]) -> str:
    """The documents as the prompt shows them."""
    return "\n\n".join(document.page_content for document in documents)


def run(options: Namespace, answers: Path, console: Console) -> bool:
    """The demo; whether all went as it must."""
    model = choose_model(options, OfflineReader(delay=options.delay))
    embedder = resolve_embedder()
    store = index(options.dir, LocalEmbeddings(embedder), console)
    chain = build_chain(store, model)

    seen: Lookups = []  # a program that need not know why a question missed leaves `on_lookup` out
    cache = IbidemCache(
        path=answers,
        embedder=embedder,
        min_probability=options.min_probability,
        on_lookup=lambda request, result: seen.append(result),
    )
    set_llm_cache(cache)

    with cache:
        good = demonstrate(App(chain.invoke, StoredPassages(store), seen), options, console)
        console.print(summary(cache.cache.stats()), markup=False)
    return good


if __name__ == "__main__":
    sys.exit(start(run, __doc__, model="provider:name for init_chat_model"))
