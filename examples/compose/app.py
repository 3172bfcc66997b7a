"""A service whose processes share one cache: which database they use says the variable `IBIDEM_DATABASE`.

    docker compose up --build --wait      # here: two processes, and PostgreSQL with pgvector

A model of yours is named by `MODEL`, as `provider:name` of init_chat_model; its package must be in the image.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from common.telling import summary
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from langchain.chat_models import init_chat_model
from langchain_core.language_models import SimpleChatModel
from langchain_core.prompts import ChatPromptTemplate

import langchain_ibidem

PROMPT = ChatPromptTemplate([("system", "You answer for a shop."), ("human", "{question}")])


def here() -> str:
    """Name this process. As a global, its name would be part of the model, and so of the cache's key."""
    return f"{socket.gethostname()}, process {os.getpid()}"


class StandIn(SimpleChatModel):
    """No LLM: it names the process that has asked it."""

    @property
    def _llm_type(self) -> str:
        return "stand-in"

    def _call(self, *args: Any, **kwargs: Any) -> str:
        return f"The model was asked by {here()}."


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The cache is open while the service is up."""
    cache = langchain_ibidem.install()
    cache.cache.load_models()  # now, and not with the first question
    model = init_chat_model(os.environ["MODEL"]) if os.environ.get("MODEL") else StandIn()
    app.state.cache, app.state.chain = cache.cache, PROMPT | model
    yield
    langchain_ibidem.uninstall()


app = FastAPI(title="One cache, several processes", lifespan=lifespan)


@app.get("/ask")
async def ask(question: str) -> dict[str, Any]:
    """An answer, from whom, and what the cache knows of it."""
    message = await app.state.chain.ainvoke({"question": question})
    hit = message.response_metadata.get("ibidem")
    return {"answer": message.text, "from": here(), "tier": hit["tier"] if hit else None}


@app.get("/stats", response_class=PlainTextResponse)
def stats() -> str:
    """What the cache did, in all processes."""
    return summary(app.state.cache.stats())


@app.get("/health")
def health() -> None:
    """The service is up; without its database it goes on, and asks the model each time."""
