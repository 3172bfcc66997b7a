"""SemanticMemo: the plain cosine at its default, and the small net that it ships, which a user turns on."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from tests.benchmarks.field.contenders import Encoded, Settings, Tools
from tests.benchmarks.field.encoders import Encoder


class _Asked(Exception):
    """The model is asked: a miss."""


class SemanticMemo(Encoded):
    """Its net decides, and its rules for entities."""

    name = "SemanticMemo, its net"
    package = "semanticmemo"
    settings: ClassVar[Settings] = {"0.95": 0.95, "0.85": 0.85, "0.99": 0.99}
    with_net = True

    def __init__(self, tools: Tools) -> None:
        from semanticmemo import CacheConfig
        from semanticmemo import SemanticMemo as Product
        from semanticmemo.models import ClassifierConfig

        super().__init__(tools)
        self._number, self._loop = 0, asyncio.new_event_loop()
        self._cache: Any = Product(
            domain="benchmark",
            config=CacheConfig(db_path=tools.folder / "memo.sqlite"),
            embedding_provider=_Provider(self.encode),
            classifier=ClassifierConfig.bundled() if self.with_net else None,
        )

    def begin(self, setting: Any = None) -> None:
        """A tenant of its own, who sees nothing of the others."""
        self._number += 1
        self._user = f"user-{self._number}"
        self._cache.bootstrap_default_user(self._user, tenant_id=f"tenant-{self._number}")

    def _ask(self, text: str, answer: str | None) -> Any:
        async def model(prompt: str) -> str:
            if answer is None:
                raise _Asked
            return answer

        asked = self._cache.get_or_call(prompt=text, llm_function=model, user_id=self._user)
        return self._loop.run_until_complete(asked)

    def _at(self, setting: float) -> None:
        if self.with_net:
            self._cache.orchestrator.classifier_service.threshold = setting

    def store(self, text: str, answer: str) -> None:
        self._ask(text, answer)

    def lookup(self, text: str, setting: float) -> str | None:
        self._at(setting)
        try:
            return str(self._ask(text, None).response)
        except _Asked:
            return None

    def score(self, text: str) -> float:
        self._at(1.0)
        told = self._ask(text, "stored by now")  # a miss tells its scores, and is stored
        score = told.classifier_score if self.with_net else told.similarity_score
        return float("nan") if score is None else float(score)

    def close(self) -> None:
        self._cache.close()
        self._loop.close()


class SemanticMemoCosine(SemanticMemo):
    """As `SemanticMemo(domain=...)` is without more."""

    name = "SemanticMemo, default"
    settings: ClassVar[Settings] = {"0.90": 0.90}
    with_net = False


class _Provider:
    """As its embedding providers are."""

    def __init__(self, encode: Encoder) -> None:
        self._encode, self.dim = encode, encode.width

    def embed(self, text: str) -> Any:
        return self._encode(text)
