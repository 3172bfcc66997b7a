"""Two questions, one call of the model: the shortest program that shows a hit. No key, no network."""

from __future__ import annotations

import time

from common.telling import summary
from langchain_core.language_models import FakeListChatModel

import langchain_ibidem

cache = langchain_ibidem.install()
answers = ["Within 30 days, with the receipt.", "I was asked again."]
model = FakeListChatModel(responses=answers, sleep=1)  # yours

for question in ("How long can I return goods?", "How long can I return the goods?"):
    started = time.perf_counter()
    answer = model.invoke(question)
    took = time.perf_counter() - started
    told = answer.response_metadata.get("ibidem", {"tier": "asked"})
    print(f"{question:35}{answer.text:36}{took:6.3f} s  {told['tier']}")

print(summary(cache.cache.stats()))
