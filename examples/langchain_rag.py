"""A RAG app over Python's language reference whose answers are cached by meaning.

    python examples/langchain_rag.py                                # anywhere: no key, no network
    python examples/langchain_rag.py --model openai:gpt-4o-mini     # any `provider:name` of init_chat_model

The app is `index`, `build_chain` and the line with `set_llm_cache`. The rest asks questions and shows what
the cache did with them. Exit code 1 if it did anything wrong.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path

from common.corpus import language_reference
from common.langchain_parts import LocalEmbeddings, OfflineReader, edited, resting_on
from common.reader import LABEL
from common.report import Question, Row, make_console, print_checks, print_rows, print_totals, read_questions
from langchain.chat_models import init_chat_model
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import track

from ibidem import Hit, Miss
from ibidem.embedding import resolve_embedder
from langchain_ibidem import IbidemCache

Lookups = list[Hit | Miss]

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
    batches = [new[at : at + 16] for at in range(0, len(new), 16)]
    for batch in track(batches, f"Indexing {len(new)} passages", console=console, disable=not new):
        store.add_documents([Document(p.text, id=p.id, metadata={"topic": p.topic}) for p in batch])
    return store


def build_chain(store: Chroma, model: BaseChatModel) -> Runnable[str, str]:
    """The plainest RAG chain there is. Nothing in it knows of the cache."""
    context = store.as_retriever(search_kwargs={"k": 4}) | join
    return {"context": context, "question": RunnablePassthrough()} | PROMPT | model | StrOutputParser()


def choose_model(options: argparse.Namespace) -> BaseChatModel:
    """The model asked for, else the offline reader."""
    if not options.model:
        return OfflineReader(delay=options.delay)
    try:
        return init_chat_model(options.model, temperature=0)
    except Exception as error:  # every provider has its own
        sys.exit(f"--model {options.model}: {error}\nWithout --model, the offline reader answers.")


def join(documents: list[Document]) -> str:
    """The documents as the prompt shows them."""
    return "\n\n".join(document.page_content for document in documents)


def ask(chain: Runnable[str, str], seen: Lookups, question: Question) -> Row:
    """A question, its answer, and what the cache said to it."""
    seen.clear()
    started = time.perf_counter()
    answer = chain.invoke(question.text)
    return Row(question, answer, seen[-1] if seen else None, time.perf_counter() - started)


def edit_documents(
    chain: Runnable[str, str], seen: Lookups, store: Chroma, text: str
) -> tuple[list[Row], dict[str, bool]]:
    """Edit documents around a cached answer: it must go with what it rests on, and with nothing else."""

    def again(when: str) -> Row:
        return ask(chain, seen, Question(text, "edited document", difference=when))

    before = again("no edit")
    retrieved, elsewhere = store.similarity_search(text, k=4), store.similarity_search(text, k=20)[-1]
    source = resting_on(before.answer, text, retrieved)[0]
    with edited(store, elsewhere):
        other = again(f"{elsewhere.id} edited, not retrieved")
    with edited(store, source):
        changed, settled = again(f"{source.id} edited, the answer rests on it"), again("once more")
    checks = {
        "edited elsewhere: still answered from the cache": before.hit is not None and other.hit is not None,
        "edited where the answer comes from: asked again, once": not changed.hit and bool(settled.hit),
    }
    return [before, other, changed, settled], checks


def run(options: argparse.Namespace, answers: Path, console: Console) -> bool:
    """The demo; whether all went as it must."""
    console.print(f"Model: {options.model or LABEL}")
    model = choose_model(options)
    embedder = resolve_embedder()
    store = index(options.dir, LocalEmbeddings(embedder), console)
    chain = build_chain(store, model)

    seen: Lookups = []  # a program that need not know why a question missed leaves `on_lookup` out
    cache = IbidemCache(
        path=answers,
        embedder=embedder,
        threshold=options.threshold,
        on_lookup=lambda request, result: seen.append(result),
    )
    set_llm_cache(cache)

    with cache:
        questions = read_questions(options.questions or Path(__file__).with_name("questions_python.json"))
        rows = [ask(chain, seen, question) for question in track(questions, "Asking", console=console)]
        edits, checks = edit_documents(chain, seen, store, questions[0].text)
    console.print(f"\nFor example: {rows[0].question.text}\n  {rows[0].answer}", markup=False)
    print_rows(console, rows + edits)
    times = (
        "the model's time"
        if options.model
        else f"the offline reader's simulated {options.delay} s per answer"
    )
    print_totals(console, rows + edits, f"Total ms and time saved hold {times}; lookups are measured.")
    return print_checks(console, rows + edits, checks)


def main() -> int:
    """Read the options and run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--model", help="provider:name for init_chat_model; default: an offline reader, not an LLM")
    add("--threshold", type=float, help="least similarity of two questions; default: Ibidem's")
    add("--questions", type=Path, help="a JSON file; default: questions_python.json beside this file")
    add("--dir", type=Path, default=user_cache_path("ibidem-demo"), help="where the index stays between runs")
    add("--keep", action="store_true", help="keep the answers there too")
    add("--delay", type=float, default=0.3, help="seconds the offline reader pretends to think; default: 0.3")
    add("--plain", action="store_true", help="no colours")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        answers = options.dir / "answers" if options.keep else Path(fresh)
        return 0 if run(options, answers, make_console(options.plain)) else 1


if __name__ == "__main__":
    sys.exit(main())
