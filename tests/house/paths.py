"""The ways of a question through the code: which files of the project it enters.

A file is entered when the calling thread runs any code of it: a function, a generator, a property. What the
background does is not counted, nor what is only done the first time. The frameworks are the real ones; the
models are fakes, and the embedder is a bag of words.

`python -m tests.house.paths` records the files as they are now in `paths.json`. The record only serves to say
which files are new when a budget is exceeded; the budgets are in `test_path_budget.py`.
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from langchain_core.runnables import RunnablePassthrough
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.memory import ChatMemoryBuffer

import ibidem
import langchain_ibidem
import llama_index_ibidem
from ibidem import Answer, Document, Request
from ibidem.cache import SemanticCache
from tests.contracts import langchain, llama_index
from tests.contracts.langchain_streams import StreamingChat
from tests.embedders import BagOfWords
from tests.helpers import question
from tests.house.imports import FOLDERS

RECORD = Path(__file__).with_name("paths.json")
Entered = dict[str, str]  # the files, in the order they were entered, each with the one it was entered from
Follow = Callable[[SemanticCache], dict[str, Entered]]  # what is entered on each of some ways

_SOURCES = tuple(str(folder / package) for package, folder in FOLDERS.items())
# Of made-up texts that no other test uses: what is remembered of a text would make its way shorter.
_numbers = itertools.count(10_000_000)


def entered(core: SemanticCache, call: Callable[[], object], expected: object) -> Entered:
    """Run `call`, which must return what is expected, and return the files of the project that it enters."""
    files: dict[str, str] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name not in files and name.startswith(_SOURCES):
            files[name] = _caller(frame)

    core.flush()  # so that the background is idle: a call that finds it so has to wake it
    before = sys.getprofile()
    gc.disable()  # the finalizers of what others have left are not part of the call
    sys.setprofile(note)
    try:
        result = call()
    finally:
        sys.setprofile(before)
        gc.enable()
    assert result == expected
    return {_shown(name): _shown(caller) for name, caller in files.items()}


def of_core() -> dict[str, Entered]:
    """Follow the calls of a program that uses the core itself."""
    document = Document("terms#4", "Goods can be returned within 30 days.", source="terms.md")
    answer = Answer("Within 30 days.")

    def follow(core: SemanticCache) -> dict[str, Entered]:
        asked, reworded, _ = (Request(text, documents=(document,)) for text in _wordings())
        return {
            "core: store": entered(core, lambda: bool(core.store(asked, answer)), True),
            "core: exact hit": entered(core, lambda: core.lookup(asked).tier, "exact"),
            "core: hit by meaning": entered(core, lambda: core.lookup(reworded).tier, "semantic"),
            "core: invalidate": entered(core, lambda: core.invalidate(document="terms#4").count, 1),
        }

    return _warm(follow)


def of_langchain() -> dict[str, Entered]:
    """Follow a RAG chain, installed as the README says."""
    model = StreamingChat()
    library = langchain.Library(shelves=langchain.shelves())
    context = {"context": library | langchain.join, "question": RunnablePassthrough()}
    chain = context | langchain.RAG | model

    def follow(core: SemanticCache) -> dict[str, Entered]:
        asked, reworded, streamed = _wordings()
        answer = f"answer {model.calls + 1}"
        return {
            "LangChain: miss until stored": entered(core, lambda: chain.invoke(asked).text, answer),
            "LangChain: exact hit": entered(core, lambda: chain.invoke(asked).text, answer),
            "LangChain: hit by meaning": entered(core, lambda: chain.invoke(reworded).text, answer),
            "LangChain: stream hit": entered(
                core, lambda: "".join(chunk.text for chunk in chain.stream(streamed)), answer
            ),
        }

    try:
        return _warm(follow, langchain_ibidem.install)
    finally:
        langchain_ibidem.uninstall()


def of_llama_index() -> dict[str, Entered]:
    """Follow a RAG chat, installed as the README says."""
    model = llama_index.CountingFunctionCalling()
    library = llama_index.Library(llama_index.shelves())

    def chat(question: str) -> Callable[[], object]:
        memory = ChatMemoryBuffer.from_defaults()  # the default one leaves a database connection open
        engine = ContextChatEngine.from_defaults(retriever=library, memory=memory)
        return lambda: str(engine.chat(question))

    def follow(core: SemanticCache) -> dict[str, Entered]:
        asked, reworded, _ = _wordings()
        answer = f"answer {len(model.script.asked) + 1}"
        return {
            "LlamaIndex: miss until stored": entered(core, chat(asked), answer),
            "LlamaIndex: hit by meaning": entered(core, chat(reworded), answer),
        }

    with llama_index.settings_restored():
        Settings.llm, Settings.callback_manager = model, CallbackManager([])
        try:
            return _warm(follow, llama_index_ibidem.install)
        finally:
            llama_index_ibidem.uninstall()


def _warm(follow: Follow, install: Callable[[SemanticCache], object] = lambda _: None) -> dict[str, Entered]:
    """What `follow` finds in a new cache, the second time."""
    with (
        TemporaryDirectory() as folder,
        ibidem.open(folder, embedder=BagOfWords(), min_similarity=0.8) as core,
    ):
        install(core)
        follow(core)
        return follow(core)


def _wordings() -> tuple[str, str, str]:
    """A question unlike all before, for which the libraries have documents, and two other wordings of it."""
    asked = f"What does the library say about {question(next(_numbers), words=5)} in France?"
    return asked, asked.replace("?", ", please?"), f"Please: {asked}"


def _caller(frame: FrameType) -> str:
    """The file that a frame was called from; what dataclasses generate has none."""
    above = frame.f_back
    while above is not None and above.f_code.co_filename == "<string>":
        above = above.f_back
    return above.f_code.co_filename if above is not None else ""


def _shown(name: str) -> str:
    """The path of a file from its package on; of a file of others, its name."""
    for package, folder in FOLDERS.items():
        if name.startswith(str(folder / package)):
            return Path(name).relative_to(folder).as_posix()
    return Path(name).name


if __name__ == "__main__":
    ways = of_core() | of_langchain() | of_llama_index()
    RECORD.write_text(
        json.dumps({way: sorted(files) for way, files in ways.items()}, indent=1) + "\n", "utf-8"
    )
    for way, files in ways.items():
        print(f"{len(files):4} {way}")
