"""A RAG service over a folder of texts: streams, tenants, feedback, answers that go when their file changes.

python examples/langchain_service.py --try                  # asks itself, shows what happened, and ends
python examples/langchain_service.py FOLDER --model openai:gpt-4o-mini         # serves, on port 8000
curl -i localhost:8000/ask -H 'X-API-Key: key-of-acme' --json '{"question": "Can I return a gift?"}'
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from common.serving import cache_headers, events, lookups_from_now, note, run
from fastapi import Body, Depends, FastAPI, Header, HTTPException, Response
from fastapi.responses import JSONResponse, StreamingResponse
from langchain_core.indexing import InMemoryRecordManager, aindex
from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import VectorStore
from langchain_text_splitters import RecursiveCharacterTextSplitter
from watchfiles import awatch

import ibidem
from langchain_ibidem import IbidemCache, install, uninstall

KEYS = {"key-of-acme": "acme", "key-of-globex": "globex"}  # yours are in a database
PROMPT = ChatPromptTemplate([("system", "Answer from these excerpts.\n\n{context}"), ("human", "{question}")])
SPLITTER = RecursiveCharacterTextSplitter(chunk_size=400, chunk_overlap=0)


class Library:
    """A folder of texts in a vector store, which follows its changes."""

    def __init__(self, folder: Path, store: VectorStore, cache: IbidemCache) -> None:
        self.folder, self.store, self.cache = folder, store, cache.cache
        self.records, self.lock = InMemoryRecordManager("folder"), asyncio.Lock()
        self.texts: dict[str, str] = {}  # what the files said when they were read

    async def update(self) -> None:
        """Index what the files say now; then answers that rest on a changed file are forgotten."""
        async with self.lock:
            files = [path for path in self.folder.rglob("*") if path.suffix in (".md", ".txt")]
            texts = {str(file.relative_to(self.folder)): file.read_text("utf-8", "replace") for file in files}
            chunks = SPLITTER.create_documents(list(texts.values()), [{"source": name} for name in texts])
            await aindex(chunks, self.records, self.store, cleanup="full", key_encoder="sha256")
            if changed := [name for name, text in self.texts.items() if texts.get(name) != text]:
                await asyncio.to_thread(self.cache.invalidate, document=changed)
            self.texts = texts

    async def follow(self) -> None:
        """Update whenever something in the folder changes."""
        async for _ in awatch(self.folder):
            try:
                await self.update()
            except Exception:
                logging.exception("The folder could not be read; the next change tries again")


def caller(x_api_key: Annotated[str, Header()], x_user: Annotated[str, Header()] = "") -> tuple[str, str]:
    """Tenant and user. The key says who the tenant is; which of its users asks, the tenant says."""
    if x_api_key not in KEYS:
        raise HTTPException(401, "unknown key")
    return KEYS[x_api_key], x_user


Caller = Annotated[tuple[str, str], Depends(caller)]
Text = Annotated[str, Body(embed=True, pattern=r"^[^\x00]{1,2000}$")]


def build_app(model: BaseChatModel, store: VectorStore, folder: Path, answers: Path) -> FastAPI:
    """The service. All that makes it repeat answers is `install` and `scope`."""
    cache = install(path=answers, require_namespace=True, on_lookup=note)
    library = Library(folder, store, cache)
    context = store.as_retriever() | (lambda found: "\n\n".join(one.page_content for one in found))
    chain = {"context": context, "question": RunnablePassthrough()} | PROMPT | model | StrOutputParser()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(library.follow())
        await asyncio.sleep(0)  # it has begun: no change is missed
        await library.update()
        yield
        following.cancel()
        uninstall()  # closes the cache

    app = FastAPI(title="A RAG service", lifespan=lifespan)

    @app.post("/ask")
    async def ask(caller: Caller, question: Text, accept: Annotated[str, Header()] = "") -> Response:
        found = lookups_from_now()
        with ibidem.scope(namespace=caller[0], user=caller[1] or None):
            pieces = chain.astream(question)
            first = await anext(pieces, "")  # by now the cache was asked
        headers = cache_headers(found)
        if "text/event-stream" in accept:
            return StreamingResponse(events(first, pieces), headers=headers, media_type="text/event-stream")
        return JSONResponse({"answer": first + "".join([piece async for piece in pieces])}, headers=headers)

    @app.post("/feedback")
    def feedback(caller: Caller, key: Text, good: Annotated[bool, Body()]) -> None:
        own = {"entry": key, "namespace": ibidem.namespace_of(*caller)}  # nobody judges another's answers
        if not cache.cache.invalidate(**own, dry_run=True).count or not cache.cache.feedback(key, good=good):
            raise HTTPException(404, "no such answer")

    @app.get("/stats")
    def stats(caller: Caller) -> dict[str, Any]:
        return {"files": len(library.texts), "cache": cache.cache.stats()}

    return app


if __name__ == "__main__":
    run(build_app, __doc__)
