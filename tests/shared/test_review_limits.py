"""The server of the review against clients that send too much, too slowly or too often: over real sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from threading import Thread

import httpx
import pytest

from ibidem.storage.store import Store
from ibidem_lab.review.gate import HEADER_BYTES, HEADER_COUNT
from tests import reviewed
from tests.helpers import Child

pytestmark = pytest.mark.slow

PATIENCE, CONNECTIONS = 0.6, 20
# The command itself, with limits that a test can wait for.
REVIEW = f"""
import sys
from ibidem.cli import main
from ibidem_lab.review import server

server.CONNECTION_SECONDS, server.CONNECTIONS = {PATIENCE}, {CONNECTIONS}
sys.argv = ["ibidem", "review", "--no-open", "--path", sys.argv[1]]
main()
"""


@dataclass(frozen=True)
class Served:
    """A running review and a browser that was let in."""

    child: Child
    port: int
    browser: httpx.Client

    def socket(self) -> socket.socket:
        """A connection of its own."""
        found = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        found.settimeout(10)
        return found

    def head(self, first: str, *more: str) -> bytes:
        """A request as this browser would send it, up to its body."""
        cookies = "; ".join(f"{name}={value}" for name, value in self.browser.cookies.items())
        host = f"127.0.0.1:{self.port}"
        lines = (first, f"Host: {host}", f"Origin: http://{host}", f"Cookie: {cookies}", *more)
        return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"

    def status(self, request: bytes) -> int:
        """Of the answer to what is sent at once; 0 if the connection just ends.

        That is tried thrice: on a busy machine the server may lose its patience with this process.
        """
        return next(filter(None, (self._status(request) for _ in range(3))), 0)

    def _status(self, request: bytes) -> int:
        with closing(self.socket()) as client, suppress(ConnectionError):
            with suppress(ConnectionError):  # it may answer before all is sent
                client.sendall(request)
            if said := client.recv(1000):
                return int(said.split()[1])
        return 0

    def is_well(self) -> bool:
        """Whether somebody who asks as usual gets an answer, and soon."""
        began = time.monotonic()
        with httpx.Client(base_url=self.browser.base_url, cookies=self.browser.cookies) as browser:
            return browser.get("/").status_code == 200 and time.monotonic() - began < 5


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The command, started on a place with something to judge; it complains about nothing."""
    place = tmp_path_factory.mktemp("place")
    with closing(Store(f"sqlite:///{place / 'ibidem.sqlite3'}")) as store:
        reviewed.fill(store)
    with Child(REVIEW, place) as child:
        address = child.line().removeprefix("Review: ")
        with httpx.Client(base_url=httpx.URL(address).copy_with(query=None), timeout=10) as browser:
            assert browser.get(address).status_code == 200
            yield Served(child, httpx.URL(address).port or 0, browser)
        assert child.said() == ""


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([f"X-{n}: 1" for n in range(HEADER_COUNT - 10)], 200),
        ([f"X-{n}: 1" for n in range(HEADER_COUNT)], 431),
        (["X: 1"] * 2_000, 431),
        ([f"X: {'a' * (HEADER_BYTES // 2)}"], 200),
        ([f"X: {'a' * HEADER_BYTES}"], 431),
        ([f"{'a' * HEADER_BYTES}: 1"], 431),
        ([f"Cookie: {'a=b; ' * HEADER_BYTES}"], 431),
        ([f"X-{n}: {'a' * 1000}" for n in range(60)], 431),
    ],
    ids=["90", "102", "2000", "16 KB", "32 KB", "a name of 32 KB", "cookies", "60 of 1 KB"],
)
def test_headers_are_bounded_in_number_and_size(served: Served, headers: list[str], status: int) -> None:
    """Whether or not who sends them was let in, also where they come in one piece."""
    found = served.status(served.head("GET / HTTP/1.1", "Connection: close", *headers))

    assert found in ({200} if status == 200 else {400, 431})  # 400 where h11 saw only a part of them
    assert served.is_well()


def test_addresses_are_bounded(served: Served) -> None:
    """Path and query."""
    for address in ("/" + "a" * HEADER_BYTES, "/?q=" + "a" * HEADER_BYTES):
        assert served.status(served.head(f"GET {address} HTTP/1.1")) in (400, 431)
    assert served.status(b"A" * (3 * HEADER_BYTES)) in (0, 400)


@pytest.mark.parametrize(
    ("more", "body"),
    [
        (["Content-Length: 11000"], b"a=" + b"b" * 10_998),
        (["Content-Length: 999999999999"], b"a" * 200_000),
        (
            ["Transfer-Encoding: chunked"],
            b"2710\r\n" + b"a" * 10_000 + b"\r\n2710\r\n" + b"a" * 10_000 + b"\r\n",
        ),
    ],
    ids=["announced", "endless", "chunked"],
)
def test_forms_are_bounded(served: Served, more: list[str], body: bytes) -> None:
    """Whatever length they announce."""
    kind = "Content-Type: application/x-www-form-urlencoded"
    assert served.status(served.head("POST /judge HTTP/1.1", kind, *more) + body) == 413
    assert served.is_well()


def test_a_stranger_sends_no_body(served: Served) -> None:
    """It is refused before its body is read, and may not go on sending it for ever."""
    head = b"POST /judge HTTP/1.1\r\nHost: elsewhere\r\nContent-Length: 999999999\r\n\r\n"
    with closing(served.socket()) as client:
        client.sendall(head + b"a" * 100_000)
        assert client.recv(100).startswith(b"HTTP/1.1 403")
        assert ends(client, lambda: b"a" * 1000)


def ends(client: socket.socket, more: Callable[[], bytes]) -> bool:
    """Whether the server ends this connection while `more` is sent, in a few times its patience."""
    client.settimeout(PATIENCE / 10)
    until = time.monotonic() + 10 * PATIENCE  # it shares the machine
    while time.monotonic() < until:
        try:
            if not client.recv(65_536):
                return True
        except TimeoutError:
            pass
        except ConnectionError:
            return True
        with suppress(ConnectionError):
            client.sendall(more())
    return False


def test_who_is_slow_is_given_up(served: Served) -> None:
    """Nothing sent; headers or a form that drip or stop; after a whole request too. Others are served."""
    get, post = served.head("GET / HTTP/1.1"), served.head("POST /judge HTTP/1.1", "Content-Length: 5000")
    chunked = served.head("POST /judge HTTP/1.1", "Transfer-Encoding: chunked")
    ways: dict[str, tuple[bytes, bytes]] = {
        "silent": (b"", b""),
        "blank lines": (b"", b"\r\n"),
        "half a line": (b"GET /", b""),
        "a long line that drips": (b"GET /", b"a"),
        "headers that drip": (get[:-2], b"X: 1\r\n"),
        "headers that stop": (get[:-2], b""),
        "a form that stops": (post, b""),
        "a form that drips": (post, b"a"),
        "chunks that drip": (chunked, b"1\r\na\r\n"),
        "the size of a chunk drips": (chunked, b"0"),
        "trailers that drip": (chunked + b"0\r\n", b"X: 1\r\n"),
        "a second request drips": (get + get[:-2], b"X: 1\r\n"),
        "a second form stops": (get + post, b""),
        "a stranger's body drips": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n", b"a"),
    }
    ended: dict[str, bool] = {}

    def attack(name: str, first: bytes, more: bytes) -> None:
        with closing(served.socket()) as client:
            client.sendall(first)
            ended[name] = ends(client, lambda: more)

    threads = [Thread(target=attack, args=(name, *way)) for name, way in ways.items()]
    for thread in threads:
        thread.start()
    assert served.is_well()
    for thread in threads:
        thread.join()

    assert [name for name in ways if not ended[name]] == []


def test_who_does_not_read_is_given_up(served: Served) -> None:
    """Though its requests are whole: the answers are held for it."""
    with closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", served.port))
        client.settimeout(PATIENCE / 5)
        until = time.monotonic() + 30
        requests, is_ended = served.head("GET /static/page.css HTTP/1.1") * 1500, False
        while not is_ended and time.monotonic() < until:
            try:
                client.sendall(requests)
            except TimeoutError:  # both directions are full
                pass
            except ConnectionError:
                is_ended = True
    assert is_ended
    assert served.is_well()


def test_many_connections_keep_nobody_out(served: Served) -> None:
    """Those that ask nothing make room for one that asks, long before their time is over."""
    with ExitStack() as held:
        clients = [held.enter_context(closing(served.socket())) for _ in range(3 * CONNECTIONS)]
        began = time.monotonic()
        assert served.is_well()
        assert time.monotonic() - began < 5
        open_ones = 0
        for client in clients:
            client.setblocking(False)
            try:
                open_ones += bool(client.recv(1))
            except BlockingIOError:
                open_ones += 1
            except ConnectionError:
                pass
        assert open_ones <= CONNECTIONS
