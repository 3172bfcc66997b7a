"""Contenders that keep their answers in Redis or Valkey, with its search: `--redis URL`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, ClassVar

from tests.benchmarks.field.contenders import Encoded, LangChainExact, Settings, Tools, serialised
from tests.benchmarks.field.sets import Turns

NAME = "ibidem_bench_field"
ALL = 2.0  # a distance that everything is within


class OnRedis(Encoded):
    """A cache in the Redis that the user names."""

    settings: ClassVar[Settings] = {"distance 0.1": 0.1, "distance 0.05": 0.05, "distance 0.2": 0.2}

    @classmethod
    def missing(cls, tools: Tools) -> str:
        return super().missing(tools) or ("" if tools.redis else "--redis URL names no Redis with search")


class RedisVL(OnRedis):
    """`SemanticCache`."""

    name = "RedisVL SemanticCache"
    package = "redisvl"

    def __init__(self, tools: Tools) -> None:
        from redisvl.extensions.cache.llm import SemanticCache
        from redisvl.utils.vectorize import CustomVectorizer

        super().__init__(tools)
        self._cache = SemanticCache(
            name=NAME,
            redis_url=tools.redis,
            vectorizer=CustomVectorizer(lambda text: [float(value) for value in self.encode(text)]),
            overwrite=True,
        )

    def begin(self, setting: Any = None) -> None:
        self._cache.clear()

    def store(self, text: str, answer: str) -> None:
        self._cache.store(prompt=text, response=answer)

    def lookup(self, text: str, setting: float) -> str | None:
        found = self._cache.check(prompt=text, num_results=1, distance_threshold=setting)
        return found[0]["response"] if found else None

    def score(self, text: str) -> float:
        found = self._cache.check(prompt=text, num_results=1, distance_threshold=ALL)
        return 1 - float(found[0]["vector_distance"])

    def close(self) -> None:
        self._cache.delete()


class LangChainRedis(OnRedis):
    """`RedisSemanticCache`, which is given the serialised prompt, as by any chat model of LangChain."""

    name = "langchain-redis RedisSemanticCache"
    package = "langchain-redis"
    settings: ClassVar[Settings] = {"distance 0.2": 0.2, "distance 0.1": 0.1, "distance 0.05": 0.05}
    store = LangChainExact.store
    MODEL = LangChainExact.MODEL

    def __init__(self, tools: Tools) -> None:
        from langchain_core.embeddings import Embeddings
        from langchain_redis import RedisSemanticCache

        super().__init__(tools)
        encode = self.encode

        class Given(Embeddings):
            def embed_query(self, text: str) -> list[float]:
                return [float(value) for value in encode(text)]

            def embed_documents(self, texts: list[str]) -> list[list[float]]:
                return [self.embed_query(text) for text in texts]

        self._given = Given()
        self._cache: Any = RedisSemanticCache(self._given, redis_url=tools.redis, name=f"{NAME}_langchain")

    def text_of(self, turns: Turns) -> str:
        return serialised(turns)

    def begin(self, setting: Any = None) -> None:
        self._cache.clear()

    def lookup(self, text: str, setting: float) -> str | None:
        self._cache.cache.set_threshold(setting)
        found = self._cache.lookup(text, self.MODEL)
        return found[0].text if found else None

    def score(self, text: str) -> float:
        found = self._cache.cache.check(vector=self._given.embed_query(text), distance_threshold=ALL)
        return 1 - float(found[0]["vector_distance"])

    def close(self) -> None:
        self._cache.cache.delete()


class BetterDB(OnRedis):
    """Its `SemanticCache`, without telemetry, and without the judge that a user has to bring."""

    name = "BetterDB semantic-cache"
    package = "betterdb-semantic-cache"

    def __init__(self, tools: Tools) -> None:
        import valkey.asyncio
        from betterdb_semantic_cache import SemanticCache
        from betterdb_semantic_cache import types as option

        super().__init__(tools)

        async def embed(text: str) -> list[float]:
            return [float(value) for value in self.encode(text)]

        self._loop = asyncio.new_event_loop()
        self._client = valkey.asyncio.Valkey.from_url(tools.redis)
        options = option.SemanticCacheOptions(
            client=self._client,
            embed_fn=embed,
            name=f"{NAME}_betterdb",
            embedding_cache=option.EmbeddingCacheOptions(enabled=False),
            analytics=option.AnalyticsOptions(disabled=True),
            config_refresh=option.ConfigRefreshOptions(enabled=False),
            discovery=option.DiscoveryOptions(enabled=False),
        )
        self._types, self._cache = option, SemanticCache(options)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)

    def begin(self, setting: Any = None) -> None:
        self._run(self._cache.initialize())
        self._run(self._cache.flush())
        self._run(self._cache.initialize())

    def store(self, text: str, answer: str) -> None:
        self._run(self._cache.store(text, answer))

    def lookup(self, text: str, setting: float) -> str | None:
        found = self._run(self._cache.check(text, self._types.CacheCheckOptions(threshold=setting)))
        return found.response if found.hit else None

    def score(self, text: str) -> float:
        found = self._run(self._cache.check(text, self._types.CacheCheckOptions(threshold=ALL)))
        return 1 - float(found.similarity)

    def close(self) -> None:
        self._run(self._cache.initialize())
        self._run(self._cache.flush())
        self._run(self._cache.shutdown())
        self._run(self._client.aclose())
        self._loop.close()
