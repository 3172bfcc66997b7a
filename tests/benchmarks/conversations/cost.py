"""How long lookups in conversations take, by `history=`, side by side in one run.

    python -m tests.benchmarks.conversations.cost

One cache holds the first conversations of the own sets as they are written, each mode in a namespace of its
own. Medians; each lookup once with the vectors of all turns in memory, as where this process has seen them,
and once without.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

import ibidem
from ibidem import Answer, Hit
from ibidem.cache import SemanticCache
from ibidem.prompts.history import HistoryMode
from tests.benchmarks.conversations.__main__ import LAST, Pair, own, request_for

MODES: tuple[HistoryMode, ...] = ("standalone", "meaning")
Conversation = tuple[Sequence[str], str]  # what is said, and the system prompt


def timed(
    cache: SemanticCache, asked: Sequence[Conversation], mode: HistoryMode, *, warm: bool
) -> list[float]:
    """Return the milliseconds of each lookup."""
    taken = []
    for texts, system in asked:
        request = request_for(texts, system, mode, mode)
        if warm:
            cache.lookup(request)
        else:
            cache._runtime.embedder._cached.clear()
        started = time.perf_counter()
        cache.lookup(request)
        taken.append(1_000 * (time.perf_counter() - started))
    return taken


def kinds(cache: SemanticCache, pairs: Sequence[Pair]) -> dict[str, list[Conversation]]:
    """What is asked, by what becomes of it with `meaning`."""
    found: dict[str, list[Conversation]] = {
        "the identical request": [(one.first, one.system) for one in pairs[:40]],
        "another conversation that means the same": [],
        "none, and others are near": [],
    }
    names = list(found)[1:]
    for one in pairs:
        result = cache.lookup(request_for(one.second, one.system, "meaning", "meaning"))
        if isinstance(result, Hit) and result.tier == "exact":
            continue
        found[names[not isinstance(result, Hit)]].append((one.second, one.system))
    return found


def main() -> None:
    """Print a table."""
    pairs = [one for name in ("development", "held_out") for one in own(name) if one.as_written]
    table = Table("lookup that finds", "turns in memory", *(f"{mode}, ms" for mode in MODES))
    with TemporaryDirectory() as folder, ibidem.open(folder, examples=False) as cache:
        for mode in MODES:
            for one in pairs:
                cache.store(request_for(one.first, one.system, mode, mode), Answer(LAST))
        for kind, asked in kinds(cache, pairs).items():
            for warm in (True, False):
                medians = (statistics.median(timed(cache, asked, mode, warm=warm)) for mode in MODES)
                named = f"{kind} ({len(asked)})"
                table.add_row(named, "yes" if warm else "no", *(f"{median:.2f}" for median in medians))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
