"""Ibidem at its three presets, with everything else at its default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import ibidem
from ibidem_lab.decisions import LabelledPair
from tests.benchmarks.conversations import __main__ as conversations
from tests.benchmarks.field.contenders import Cache, Judged, Settings, Tools
from tests.benchmarks.field.sets import TurnPair
from tests.benchmarks.pair_decisions import decide, presets
from tests.benchmarks.speed.contenders import SCOPE, emptied

PRESETS = ("default", "strict", "generous")


class Ibidem(Cache):
    """The whole product: guards, encoder and pair model."""

    name = "Ibidem"
    settings: ClassVar[Settings] = {preset: preset for preset in PRESETS}
    options: ClassVar[dict[str, Any]] = {}  # of `ibidem.open`, for tests

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self._cache: ibidem.cache.SemanticCache | None = None

    def judge(self, pairs: Sequence[TurnPair]) -> dict[str, list[Judged]]:
        """Questions are decided by `decide`, conversations stored and asked as they are written."""
        if any(len(pair.asked) > 1 for pair in pairs):
            return {preset: self._conversations(pairs, preset) for preset in PRESETS}
        labelled = [LabelledPair(pair.stored[-1], pair.asked[-1], pair.same, {}) for pair in pairs]
        decided = presets(decide(labelled, **self.options))
        return {
            preset: [Judged(bool(served), float(score)) for score, served in zip(*both, strict=True)]
            for preset, both in zip(PRESETS, decided.values(), strict=True)
        }

    def _conversations(self, pairs: Sequence[TurnPair], preset: str) -> list[Judged]:
        given = [
            conversations.Pair("", pair.same, pair.stored, pair.asked, as_written=True) for pair in pairs
        ]
        hits = conversations.served(given, "standalone", rate=preset)
        return [Judged(bool(hit), float("nan")) for hit in hits]

    def begin(self, setting: Any = None) -> None:
        self.close()
        self.tools.folder.mkdir(parents=True, exist_ok=True)
        rate = PRESETS[0] if setting is None else setting
        folder = emptied(self.tools.folder / "ibidem")
        self._cache = ibidem.open(folder, max_error_rate=rate, examples=False, **self.options)

    def store(self, text: str, answer: str) -> None:
        self._open.store(ibidem.Request(text, scope=SCOPE), ibidem.Answer(answer))

    def lookup(self, text: str, setting: str) -> str | None:
        found = self._open.lookup(ibidem.Request(text, scope=SCOPE))
        return found.answer.text if isinstance(found, ibidem.Hit) else None

    @property
    def _open(self) -> ibidem.cache.SemanticCache:
        assert self._cache is not None
        return self._cache

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()
