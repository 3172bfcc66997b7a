"""Times of calls, and what a process uses."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np


def times(work: Callable[[Any], Any], of: Iterable[Any]) -> list[float]:
    """Milliseconds of each call."""
    took = []
    for one in of:
        began = time.perf_counter()
        work(one)
        took.append((time.perf_counter() - began) * 1000)
    return took


def percentiles(took: list[float]) -> dict[str, float]:
    """p50, p95 and p99, in the unit of what is given."""
    return dict(zip(("p50", "p95", "p99"), map(float, np.percentile(took, [50, 95, 99])), strict=True))


def throughput(work: Callable[[int], Any], threads: int, seconds: float) -> float:
    """Calls a second that so many threads make together; each gets numbers of its own."""
    until = time.perf_counter() + seconds

    def run(first: int) -> int:
        done = 0
        while time.perf_counter() < until:
            work(first + done * threads)
            done += 1
        return done

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(run, range(threads)))
    return done / (time.perf_counter() - began)


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
