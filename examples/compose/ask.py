"""Ask a service that has several processes, one after the other. Needs nothing but Python.

    python ask.py http://127.0.0.1:8001 http://127.0.0.1:8002

Exit code 1 if what one process has stored is not found by the next.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.parse
import urllib.request
from itertools import cycle

# What is asked, and how it must be found: not at all, by meaning, or as the same request.
QUESTIONS = (
    ("How long can I return goods?", (None, "exact")),  # exact: there are answers of an earlier run
    ("How long can I return the goods?", ("semantic", "exact")),
    ("How long can I return goods?", ("exact",)),
    ("Do you ship to Norway?", (None, "exact")),
    ("Can you ship to Norway?", ("semantic", "exact")),
    ("Do you ship to Sweden?", (None, "exact")),
)


def get(url: str, path: str, **query: str) -> str:
    """What the service says."""
    with urllib.request.urlopen(f"{url}/{path}?{urllib.parse.urlencode(query)}", timeout=60) as told:  # noqa: S310
        return str(told.read().decode())


def main(urls: list[str]) -> int:
    """Ask each question at the next process; 0 if all was found that must be."""
    if not urls:
        sys.exit(__doc__)
    good = True
    for url, (question, expected) in zip(cycle(urls), QUESTIONS):
        told = json.loads(get(url, "ask", question=question))
        good &= told["tier"] in expected
        print(f"{question}\n    {told['answer']}\n    {told['tier'] or 'asked'}, by {told['from']}")
    time.sleep(1)  # each process writes its log every half second
    print(get(urls[0], "stats"))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
