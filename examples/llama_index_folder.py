"""Ask a folder of yours: RAG over its md, txt and pdf files, which may change while you ask.

    python examples/llama_index_folder.py FOLDER                              # anywhere: no key, no network
    python examples/llama_index_folder.py FOLDER --model openai:gpt-4o-mini

The app is `Folder` and the line with `add_handler`. The rest reads your questions, and says of each answer
whether it was repeated, or why not. Answers are kept until the program ends, or in `--answers DIRECTORY`.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import ArgumentParser, RawTextHelpFormatter
from pathlib import Path
from threading import Event, Lock, Thread

from common.files import ENDINGS, read_files
from common.llama_index_parts import LocalEmbedding, OfflineReaderLLM, choose_model
from common.reader import LABEL
from common.telling import Lookup, summary, told
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.node_parser import SentenceSplitter
from watchfiles import watch

import ibidem
from ibidem.cache import SemanticCache
from ibidem.embedding import resolve_embedder
from llama_index_ibidem import IbidemCallbackHandler, invalidating


class Folder:
    """The files of a folder in an index that follows them."""

    def __init__(self, path: Path, cache: SemanticCache) -> None:
        self.path, self.cache = path, cache
        self.index = VectorStoreIndex([])
        self.lock = Lock()  # LlamaIndex's own store does not like to be changed while it is searched

    def update(self) -> list[str]:
        """Index what the files say now, and forget what rests on those that have changed: these."""
        with self.lock, invalidating(self.index.docstore, self.cache):
            documents = {document.id_: document for document in read_files(self.path)}
            new = self.index.refresh_ref_docs(list(documents.values()))
            gone = (self.index.docstore.get_all_ref_doc_info() or {}).keys() - documents.keys()
            for name in gone:
                self.index.delete_ref_doc(name, delete_from_docstore=True)
        changed = {id_ for id_, is_new in zip(documents, new, strict=True) if is_new} | gone
        return sorted({Path(id_.partition("_part_")[0]).name for id_ in changed})

    def follow(self, stop: Event) -> None:
        """Update whenever something changes, until told to stop."""
        for _ in watch(self.path, stop_event=stop):
            try:
                if names := self.update():
                    print(f"[{', '.join(names)}: read again; answers that rested on it are gone]", flush=True)
            except Exception as error:
                print(f"[{error}; the next change tries again]", flush=True)

    def ask(self, question: str) -> str:
        """An answer from the files."""
        with self.lock:
            engine = self.index.as_query_engine(
                similarity_top_k=4
            )  # made anew: it searches what was there then
            return str(engine.query(question))


def chat(folder: Folder, lookups: list[Lookup]) -> None:
    """Answer line by line, until there is none."""
    print("Your question (an empty line ends):", flush=True)
    for line in sys.stdin:
        if not (question := line.strip()):
            break
        lookups.clear()
        print(folder.ask(question))
        print(f"[{told(lookups[-1] if lookups else None)}]\n", flush=True)


def main() -> None:
    """Read the options, and the folder."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help=f"{', '.join(ENDINGS)} files, also in folders in it")
    parser.add_argument("--model", metavar="NAME", help="openai:NAME; default: an offline reader, not an LLM")
    parser.add_argument("--answers", type=Path, help="where answers are kept")
    parser.add_argument("--delay", type=float, default=0.3, help="seconds the offline reader takes")
    options = parser.parse_args()
    if not options.folder.is_dir():
        sys.exit(f"{options.folder} is no folder")

    lookups, stop = list[Lookup](), Event()
    Settings.llm = choose_model(options.model, OfflineReaderLLM(delay=options.delay))
    Settings.embed_model = LocalEmbedding(resolve_embedder())
    Settings.text_splitter = SentenceSplitter(chunk_size=200, chunk_overlap=0)  # tokens; it reads 256
    told_by = {"on_lookup": lambda request, found: lookups.append(found)}
    with tempfile.TemporaryDirectory() as place, ibidem.open(options.answers or place, **told_by) as cache:
        Settings.callback_manager.add_handler(IbidemCallbackHandler(cache))
        folder = Folder(options.folder.resolve(), cache)
        following = Thread(target=folder.follow, args=(stop,))
        following.start()  # before the first look, so that no change is missed
        try:
            folder.update()
            print(f"Model: {options.model or LABEL}. {len(folder.index.docstore.docs)} passages.")
            chat(folder, lookups)
            print(summary(cache.stats()))
        finally:
            stop.set()
            following.join()


if __name__ == "__main__":
    main()
