"""The caches that are compared, each as its documentation says, at its default and at two other settings.

They are asked for what they would serve by nothing but the text: no filters, tenants or contexts of the
user's making, which all would tell traps from one another where the user knows to tell them apart.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from tests.benchmarks.field.encoders import Encoder
from tests.benchmarks.field.sets import TurnPair, Turns

Settings = Mapping[str, Any]  # name in the tables -> threshold; the first is the default


class Judged(NamedTuple):
    """Whether a pair is served, and the score behind it; NaN where the cache tells none."""

    served: bool
    score: float


@dataclass(frozen=True)
class Tools:
    """What contenders are made with: a folder of their own, encoders, and a Redis with search."""

    folder: Path
    minilm: Callable[[], Encoder]
    mpnet: Callable[[], Encoder] | None = None
    redis: str | None = None


class Cache(ABC):
    """One cache.

    `settings` has what is tried on pairs, and `alone` which of them get a cache of their own to fill, where
    hits decide on what is stored: the default, as filling takes time.
    """

    name: ClassVar[str]
    package: ClassVar[str] = "ibidem-cache"
    settings: ClassVar[Settings]
    alone: ClassVar[Sequence[str]] = ()

    def __init__(self, tools: Tools) -> None:
        self.tools = tools

    @classmethod
    def missing(cls, tools: Tools) -> str:
        """What there is not that it needs; "" if all is there."""
        try:
            version(cls.package)
        except PackageNotFoundError:
            return f"pip install {cls.package}"
        return ""

    def text_of(self, turns: Turns) -> str:
        """What of a conversation it is given: the last message, unless it takes all by itself."""
        return turns[-1]

    @abstractmethod
    def begin(self, setting: Any = None) -> None:
        """Become empty, for lookups at this setting if one is given."""

    @abstractmethod
    def store(self, text: str, answer: str) -> None:
        """Keep an answer."""

    @abstractmethod
    def lookup(self, text: str, setting: Any) -> str | None:
        """The answer that is served, if any; changes nothing."""

    def score(self, text: str) -> float:
        """That of the nearest question."""
        return float("nan")

    def prepare(self, texts: Sequence[str]) -> None:  # noqa: B027 - some encode themselves
        """Encode in batches what will be asked."""

    def judge(self, pairs: Sequence[TurnPair]) -> dict[str, list[Judged]]:
        """Each pair in a cache that holds nothing else, at each setting."""
        read = [(self.text_of(pair.stored), self.text_of(pair.asked)) for pair in pairs]
        self.prepare([text for both in read for text in both])
        found: dict[str, list[Judged]] = {name: [] for name in self.settings}
        for stored, asked in read:
            self.begin()
            self.store(stored, "answer")
            served = {name: self.lookup(asked, at) is not None for name, at in self.settings.items()}
            score = self.score(asked)
            for name, one in served.items():
                found[name].append(Judged(one, score))
        return found

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """Let go of files and servers."""


class Encoded(Cache):
    """A cache that is given an encoder."""

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self.encode = self._encoder(tools)

    def _encoder(self, tools: Tools) -> Encoder:
        return tools.minilm()

    def prepare(self, texts: Sequence[str]) -> None:
        self.encode.prepare(texts)


class PlainCosine(Encoded):
    """The nearest question, if its cosine reaches the threshold: what most semantic caches are."""

    name = "plain cosine, all-MiniLM-L6-v2"
    package = "sentence-transformers"
    settings: ClassVar[Settings] = {"0.90": 0.90, "0.80": 0.80, "0.95": 0.95}
    alone = tuple(settings)

    def text_of(self, turns: Turns) -> str:
        return "\n".join(turns)

    def begin(self, setting: Any = None) -> None:
        self.answers: list[str] = []
        self.rows = np.empty((4_096, self.encode.width), np.float32)

    def store(self, text: str, answer: str) -> None:
        if len(self.answers) == len(self.rows):
            self.rows = np.concatenate([self.rows, np.empty_like(self.rows)])
        self.rows[len(self.answers)] = self.encode(text)
        self.answers.append(answer)

    def lookup(self, text: str, setting: float) -> str | None:
        cosines = self.rows[: len(self.answers)] @ self.encode(text)
        if not len(cosines) or cosines.max() < setting:
            return None
        return self.answers[int(cosines.argmax())]

    def score(self, text: str) -> float:
        return float((self.rows[: len(self.answers)] @ self.encode(text)).max())


class PlainCosineMpnet(PlainCosine):
    """The same with a larger encoder."""

    name = "plain cosine, all-mpnet-base-v2"

    @classmethod
    def missing(cls, tools: Tools) -> str:
        return super().missing(tools) or ("" if tools.mpnet else "--mpnet FOLDER names no model")

    def _encoder(self, tools: Tools) -> Encoder:
        assert tools.mpnet is not None
        return tools.mpnet()


class GPTCache(Encoded):
    """SQLite, FAISS and `SearchDistanceEvaluation`, which is its default."""

    name = "GPTCache"
    package = "gptcache"
    settings: ClassVar[Settings] = {"0.8": 0.8, "0.95": 0.95, "0.975": 0.975}

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self._number = 0

    def begin(self, setting: Any = None) -> None:
        from gptcache.adapter import api
        from gptcache.utils.log import gptcache_log

        from tests.benchmarks.speed import contenders as speed

        encode = self.encode

        class Given(speed.GPTCache):
            def _encoder(self) -> Callable[..., Any]:
                return lambda text, **_: encode(text)

        shutil.rmtree(self.tools.folder / f"gptcache-{self._number}", ignore_errors=True)
        self._number += 1
        gptcache_log.disabled = True  # at exit it complains of folders that are gone
        cache = Given(self.tools.folder / f"gptcache-{self._number}", encode.width)
        self._api, self._cache = api, cache._open(cache._encoder())

    def store(self, text: str, answer: str) -> None:
        self._api.put(text, answer, cache_obj=self._cache)

    def lookup(self, text: str, setting: float) -> str | None:
        self._cache.config.similarity_threshold = setting
        found = self._api.get(text, cache_obj=self._cache)
        return str(found) if found else None


class Waggle(Encoded):
    """Cosine, and guards for numbers, identifiers and negation."""

    name = "Waggle"
    package = "waggle-cache"
    settings: ClassVar[Settings] = {"0.85": 0.85, "0.90": 0.90, "0.95": 0.95}
    model_id = "all-MiniLM-L6-v2"

    def __init__(self, tools: Tools) -> None:
        from waggle import Waggle as Product

        super().__init__(tools)
        self._cache = Product(tools.folder / "waggle.sqlite", embedding_provider=self)
        self._number = 0

    def embed(self, texts: list[str]) -> list[list[float]]:
        """As its embedding providers do."""
        return [[float(value) for value in self.encode(text)] for text in texts]

    def begin(self, setting: Any = None) -> None:
        self._number += 1

    def store(self, text: str, answer: str) -> None:
        self._cache.set(text, answer, namespace=str(self._number))

    def lookup(self, text: str, setting: float) -> str | None:
        found = self._cache.get(text, namespace=str(self._number), threshold=setting)
        return found.value if found.hit else None

    def score(self, text: str) -> float:
        found = self._cache.get(text, namespace=str(self._number), debug=True)
        return max((one.similarity for one in found.candidates if one.similarity is not None), default=0.0)


class LangChainExact(Cache):
    """LangChain's own: the very same prompt, serialised."""

    name = "LangChain InMemoryCache"
    package = "langchain-core"
    settings: ClassVar[Settings] = {"exact": None}
    MODEL = "model"

    def text_of(self, turns: Turns) -> str:
        return serialised(turns)

    def begin(self, setting: Any = None) -> None:
        from langchain_core.caches import InMemoryCache

        self._cache: Any = InMemoryCache()

    def store(self, text: str, answer: str) -> None:
        from langchain_core.messages import AIMessage
        from langchain_core.outputs import ChatGeneration

        self._cache.update(text, self.MODEL, [ChatGeneration(message=AIMessage(answer))])

    def lookup(self, text: str, setting: None) -> str | None:
        found = self._cache.lookup(text, self.MODEL)
        return found[0].text if found else None


class LangChainSQLite(LangChainExact):
    """The same in a file."""

    name = "LangChain SQLiteCache"
    package = "langchain-community"

    def begin(self, setting: Any = None) -> None:
        from langchain_community.cache import SQLiteCache

        file = self.tools.folder / "langchain.sqlite"
        file.unlink(missing_ok=True)
        self._cache = SQLiteCache(str(file))


def serialised(turns: Turns) -> str:
    """The prompt that LangChain gives a cache for these messages."""
    from langchain_core.load import dumps
    from langchain_core.messages import AIMessage, HumanMessage

    return dumps([(AIMessage if at % 2 else HumanMessage)(text) for at, text in enumerate(turns)])


def first(cache: type[Cache]) -> str:
    """The name of the default setting."""
    return next(iter(cache.settings))
