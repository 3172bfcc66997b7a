"""The service of `langchain_service.py`, tried by two tenants."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from common.telling import summary
from ibidem.cache import Stats

ACME, GLOBEX = "key-of-acme", "key-of-globex"
ASKED = "How long can I return goods?"
REWORDED = "How long can I return the goods, please?"
STREAMED = "What does express delivery cost?"


class Client:
    """A tenant over HTTP; what it is answered is printed."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def ask(self, key: str, question: str, what: str) -> tuple[str, str]:
        """The answer, and the header `Cache-Status`."""
        told = self.http.post(
            "/ask", json={"question": question}, headers={"X-API-Key": key}
        ).raise_for_status()
        answer, status = told.json()["answer"], told.headers["Cache-Status"]
        print(f"\n{what}: {question}\n    {status}\n    {answer}")
        return answer, status

    def stream(self, key: str, question: str, what: str, most: int | None = None) -> tuple[list[str], str]:
        """The pieces of a streamed answer, the first `most` of them, and the header `Cache-Status`."""
        headers, pieces = {"X-API-Key": key, "Accept": "text/event-stream"}, []
        with self.http.stream("POST", "/ask", json={"question": question}, headers=headers) as told:
            status = told.raise_for_status().headers["Cache-Status"]
            for line in told.iter_lines():
                if text := json.loads(line.removeprefix("data: ") if line.startswith("data: ") else "{}").get(
                    "text"
                ):
                    pieces.append(text)
                if len(pieces) == most:
                    break
        print(f"\n{what}: {question}\n    {status}\n    {len(pieces)} pieces: {'|'.join(pieces)}")
        return pieces, status

    def judge(self, key: str, status: str, good: bool) -> int:
        """The HTTP status of feedback on the answer with this `Cache-Status`."""
        said = {"key": status.partition('key="')[2].partition('"')[0], "good": good}
        return self.http.post("/feedback", json=said, headers={"X-API-Key": key}).status_code

    def stats(self) -> dict[str, Any]:
        """What the cache counts."""
        return dict(self.http.get("/stats", headers={"X-API-Key": ACME}).raise_for_status().json()["cache"])


def try_out(url: str, folder: Path) -> bool:
    """Ask, change a file, leave, complain; whether all went as it must."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        return tried(Client(http), folder)


def tried(client: Client, folder: Path) -> bool:
    """The same over an HTTP client."""
    good: dict[str, bool] = {}

    answer, status = client.ask(ACME, ASKED, "acme asks")
    good["the model answers first"] = "30" in answer and "fwd=miss" in status
    again, repeated = client.ask(ACME, REWORDED, "acme asks in other words")
    good["other words get the answer again"] = again == answer and "hit" in repeated
    _, other = client.ask(GLOBEX, ASKED, "globex asks")
    good["another tenant does not"] = "fwd=miss" in other

    half, _ = client.stream(ACME, STREAMED, "acme asks for a stream, and leaves", most=1)
    whole, left = client.stream(ACME, STREAMED, "acme asks again, and stays")
    replayed, hit = client.stream(ACME, STREAMED, "and once more")
    good["half a stream is not stored, a whole one is"] = "fwd=miss" in left and "hit" in hit
    good["a repeated stream says the same"] = "".join(replayed) == "".join(whole) != "".join(half)

    good["no tenant judges another's answer"] = client.judge(GLOBEX, hit, good=False) == 404
    good["a bad answer is deleted"] = client.judge(ACME, hit, good=False) == 200
    print("\nacme says that the answer about express delivery is bad")
    _, anew = client.ask(ACME, STREAMED, "acme asks")
    good["and the model is asked again"] = "fwd=miss" in anew

    before, file = client.stats()["entries"], folder / "returns.md"
    file.write_text(file.read_text("utf-8").replace("30 days", "14 days"), "utf-8")
    print("\nreturns.md is changed: 14 days in the place of 30")
    wait_for(lambda: client.stats()["entries"] < before)
    edited, anew = client.ask(ACME, ASKED, "acme asks")
    good["a changed file has new answers"] = "14" in edited and "fwd=" in anew

    print()
    for text, fine in good.items():
        print(f"{'ok    ' if fine else 'FAILED'} {text}")
    print(f"\n{summary(Stats(**client.stats()))}")
    return all(good.values())


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Until it holds, or for so long."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.1)
