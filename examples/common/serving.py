"""What a service needs beside the app: its headers, its events, a command line, and somebody who tries it."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import tempfile
import threading
from argparse import ArgumentParser, RawTextHelpFormatter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from langchain_core.vectorstores import InMemoryVectorStore
from platformdirs import user_cache_path

import ibidem
from common.langchain_parts import LocalEmbeddings, OfflineReader, choose_model
from common.reader import LABEL
from common.trial import try_out
from ibidem.embedding import resolve_embedder

DOCUMENTS = Path(__file__).parent.parent / "documents"
STALE = ("documents_changed", "documents_added", "expired")


Lookup = tuple[ibidem.Request, ibidem.Hit | ibidem.Miss]
_lookups: ContextVar[list[Lookup]] = ContextVar("lookups")  # of the HTTP request that is answered


def lookups_from_now() -> list[Lookup]:
    """What the cache is asked from now on by this task, and the tasks and threads that it begins."""
    _lookups.set(found := [])
    return found


def note(request: ibidem.Request, result: ibidem.Hit | ibidem.Miss) -> None:
    """The cache's `on_lookup`."""
    _lookups.get([]).append((request, result))


def cache_headers(found: Sequence[Lookup]) -> dict[str, str]:
    """`Cache-Status` (RFC 9211) and `Age` of an answer, by the lookups made for it: the last one counts.

    The key is that of the stored answer, or under which the new one is stored if it is worth it.
    """
    if not found:
        return {"Cache-Status": "ibidem; fwd=bypass"}
    request, result = found[-1]
    if isinstance(result, ibidem.Hit):
        status = f'ibidem; hit; key="{result.entry_id}"; detail={result.tier}'
        return {"Cache-Status": status, "Age": str(int(result.age))}
    forwarded = "stale" if result.reason in STALE else "miss"
    return {"Cache-Status": f'ibidem; fwd={forwarded}; key="{request.key}"; detail={result.reason}'}


async def events(first: str, pieces: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    """Server-sent events: a piece of the answer each, then `end`.

    If the client leaves, the rest of the answer is closed: the model need not finish, and nothing is stored.
    """
    async with aclosing(pieces):
        yield _event(first)
        async for piece in pieces:
            yield _event(piece)
    yield "event: end\ndata: {}\n\n"


def _event(piece: str) -> str:
    """Of an empty piece, as models send at the beginning, nothing."""
    return f"data: {json.dumps({'text': piece})}\n\n" if piece else ""


def run(build_app: Callable[..., FastAPI], about: str) -> None:
    """Read the options; serve, or try."""
    parser = ArgumentParser(description=about, formatter_class=RawTextHelpFormatter)
    add = parser.add_argument
    add(
        "folder",
        type=Path,
        nargs="?",
        default=DOCUMENTS,
        help="md and txt files; default: examples/documents",
    )
    add(
        "--model",
        metavar="NAME",
        help="provider:name for init_chat_model; default: an offline reader, not an LLM",
    )
    add(
        "--answers", type=Path, default=user_cache_path("ibidem-demo") / "service", help="where they are kept"
    )
    add("--port", type=int, default=8000, help="0: any that is free")
    add("--delay", type=float, default=0.3, help="seconds the offline reader pretends to think; default: 0.3")
    add(
        "--try",
        dest="try_out",
        action="store_true",
        help="ask about examples/documents, and show what happens",
    )
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is no folder")
    print(f"Model: {options.model or LABEL}", flush=True)
    parts = (
        choose_model(options, OfflineReader(delay=options.delay)),
        InMemoryVectorStore(LocalEmbeddings(resolve_embedder())),
    )
    if not options.try_out:
        uvicorn.run(build_app(*parts, options.folder, options.answers), port=options.port)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = shutil.copytree(DOCUMENTS, Path(place, "documents"))
        with serving(build_app(*parts, folder, Path(place, "answers"))) as url:
            good = try_out(url, folder)
    sys.exit(0 if good else 1)


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The app on a free port of this machine, in a thread; the address."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
