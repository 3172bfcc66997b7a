"""Two questions, one call of the model: the shortest program that shows a hit. No key, no network."""

from __future__ import annotations

import time

from langchain_core.language_models import FakeListChatModel

import langchain_ibidem

langchain_ibidem.install()
model = FakeListChatModel(responses=["Within 30 days, with the receipt.", "Another answer."], sleep=1)  # yours

for question in ("How long can I return goods?", "How long can I return the goods?"):
    started = time.perf_counter()
    answer = model.invoke(question)
    told = answer.response_metadata.get("ibidem", {})
    print(f"{question:35}{answer.content:36}{time.perf_counter() - started:6.3f} s  {told.get('tier', 'asked')}")
